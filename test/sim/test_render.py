import itertools
import threading

import numpy as np
import pytest

from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS, CameraRole
from ki_ros.sim import CameraSize, SimulatedRig, scene
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.render import resolve_backend
from ki_ros.sim.tasks import HOVER

RESET = np.array(RESET_JOINT_POSITIONS)
pytestmark = pytest.mark.usefixtures("graphics")


def difference(a, b):
    """Share of the pixels that differ clearly."""
    return np.mean(np.abs(a.astype(int) - b.astype(int)).max(axis=2) > 24)


@pytest.mark.parametrize("role", CameraRole)
def test_a_picture_has_the_size_of_its_camera_and_shows_something(simulated, role):
    picture = simulated.render(role)
    assert picture.shape == (192, 256, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert picture.std() > 20
    assert 50 < picture.mean() < 200


def coloured(picture, colour):
    """Number of pixels in which that channel is far above the others."""
    others = [channel for channel in range(3) if channel != colour]
    p = picture.astype(int)
    return np.sum(p[..., colour] > 2 * p[..., others].max(axis=2) + 20)


@pytest.mark.parametrize("role", [CameraRole.EXTERIOR_1, CameraRole.EXTERIOR_2])
def test_exterior_cameras_see_the_blocks_and_the_hand_above_them(simulated, role):
    before = simulated.render(role)
    assert coloured(before, 0) > 30
    kinematics = Kinematics(simulated.model, PANDA.position_lower, PANDA.position_upper)
    simulated.command(kinematics.solve(np.array([0.5, 0.0, HOVER])))
    simulated.step(2.0)
    assert 0.03 < difference(before, simulated.render(role)) < 0.4


@pytest.mark.parametrize("role", [CameraRole.EXTERIOR_1, CameraRole.EXTERIOR_2])
def test_every_place_of_a_block_is_in_the_exterior_pictures(simulated, role):
    (x_low, x_high), (y_low, y_high) = scene.BLOCK_AREA
    for x, y in itertools.product((x_low, x_high), (y_low, y_high)):
        for name in simulated.block_names:
            simulated.set_block_pose(name, [-1.4, 0.0, -0.7])
        simulated.set_block_pose("red", [x, y, 0.025])
        assert coloured(simulated.render(role), 0) > 30, (x, y)


def test_colours_are_red_green_blue_and_rows_go_down(simulated):
    for name in simulated.block_names:
        simulated.set_block_pose(name, [0.9, -0.6, 0.025])
    simulated.set_block_pose("red", simulated.pinch_position + np.array([0.1, 0.0, -0.15]))
    picture = simulated.render(CameraRole.WRIST)
    rows, _ = np.nonzero(picture[..., 0].astype(int) > 2 * picture[..., 1:].max(axis=2).astype(int) + 20)
    assert len(rows) > 100
    # Ahead of the gripper is up in the wrist's picture.
    assert rows.mean() < 90


def test_the_wrist_picture_changes_when_the_arm_moves(simulated):
    before = simulated.render(CameraRole.WRIST)
    simulated.command(RESET + np.array([0.5, 0.2, 0, 0.3, 0, 0, 0]))
    simulated.step(1.0)
    assert difference(before, simulated.render(CameraRole.WRIST)) > 0.03


def test_the_wrist_camera_turns_with_the_wrist(simulated):
    before = {role: simulated.render(role) for role in CameraRole}
    simulated.command(RESET + np.array([0, 0, 0, 0, 0, 0, 1.0]))
    simulated.step(1.5)
    assert difference(before[CameraRole.WRIST], simulated.render(CameraRole.WRIST)) > 0.1
    assert difference(before[CameraRole.EXTERIOR_1], simulated.render(CameraRole.EXTERIOR_1)) < 0.05


def test_the_wrist_camera_sees_the_fingers_close(simulated):
    before = simulated.render(CameraRole.WRIST)
    simulated.command(gripper_angle=0.8)
    simulated.step(1.0)
    after = simulated.render(CameraRole.WRIST)
    assert difference(before, after) > 0.02
    # The fingers are at the picture's bottom.
    assert difference(before[90:], after[90:]) > 4 * difference(before[:60], after[:60])


def test_the_same_state_gives_the_same_picture(simulated):
    first = simulated.render(CameraRole.EXTERIOR_1)
    simulated.render(CameraRole.WRIST)
    assert np.array_equal(first, simulated.render(CameraRole.EXTERIOR_1))


def test_another_thread_draws_a_snapshot_while_the_rig_goes_on(simulated):
    expected = simulated.render(CameraRole.EXTERIOR_2)
    snapshot = simulated.snapshot()
    drawn = []

    def draw():
        renderer = simulated.make_renderer()
        drawn.append(renderer.render(CameraRole.EXTERIOR_2, snapshot))
        renderer.close()

    simulated.command(RESET + 0.3)
    thread = threading.Thread(target=draw)
    thread.start()
    for _ in range(200):
        simulated.step()
    thread.join(30)
    assert np.array_equal(drawn[0], expected)


def pictures(rig):
    return {role: rig.render(role) for role in CameraRole}


def test_rigs_in_one_thread_draw_each_its_own_picture():
    """In turn, and also after one of them is gone."""
    # What the first one draws before there is another is what it must go on to draw.
    first = SimulatedRig(seed=3)
    expected = pictures(first)
    second = SimulatedRig(seed=4, sizes={CameraRole.EXTERIOR_1: CameraSize(100, 60)})
    of_second = pictures(second)
    assert difference(expected[CameraRole.EXTERIOR_2], of_second[CameraRole.EXTERIOR_2]) > 0.002
    for role in CameraRole:
        np.testing.assert_array_equal(first.render(role), expected[role])
        np.testing.assert_array_equal(second.render(role), of_second[role])
    # The one that is closed is not the one that drew last: it must free what is its own.
    first.close()
    assert_draws(second, of_second)
    third = SimulatedRig(seed=3)
    assert_draws(third, expected)
    second.close()
    assert_draws(third, expected)
    third.close()


def assert_draws(rig, expected):
    for role, picture in pictures(rig).items():
        np.testing.assert_array_equal(picture, expected[role])


def test_each_camera_may_have_a_size_of_its_own():
    rig = SimulatedRig(sizes={CameraRole.EXTERIOR_1: CameraSize(640, 360), CameraRole.WRIST: CameraSize(100, 120)})
    assert rig.render("exterior_1").shape == (360, 640, 3)
    assert rig.render("exterior_2").shape == (192, 256, 3)
    assert rig.render("wrist").shape == (120, 100, 3)
    assert rig.render("wrist").std() > 20
    rig.close()


@pytest.mark.parametrize(("width", "height"), [(0, 10), (10, 5000), (1.5, 10)])
def test_an_impossible_size_is_refused(width, height):
    with pytest.raises(ValueError, match=r"camera (width|height) must be a whole number"):
        CameraSize(width, height)


def test_an_unknown_backend_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="'vulkan' is not known; use auto, osmesa or egl"):
        resolve_backend("vulkan")
