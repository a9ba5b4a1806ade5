"""Forward kinematics against MuJoCo's, a real arm's, and what can be read off the arm's drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ki_ros.kinematics import FLANGE, TOOL_OFFSET, flange, link_frames, tool_point
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS
from ki_ros.sim import SimulatedRig, SimulationUnavailableError

RESET = np.array(RESET_JOINT_POSITIONS)


def some_positions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(PANDA.position_lower, PANDA.position_upper, (count, 7))


@pytest.fixture(scope="module")
def simulated():
    try:
        rig = SimulatedRig(seed=0)
    except SimulationUnavailableError as error:
        pytest.skip(str(error))
    yield rig
    rig.close()


def test_links_and_tool_point_are_where_the_physics_has_them(simulated):
    for q in some_positions(100):
        simulated.reset(q=q)
        reached = simulated.joint_positions
        frames = link_frames(reached)
        for number in range(1, 8):
            body = simulated.data.body(f"link{number}")
            np.testing.assert_allclose(frames[number, :3, 3], body.xpos, atol=1e-9)
            np.testing.assert_allclose(frames[number, :3, :3], body.xmat.reshape(3, 3), atol=1e-9)
        attachment = simulated.data.body("attachment")
        np.testing.assert_allclose(flange(reached)[:3, 3], attachment.xpos, atol=1e-9)
        np.testing.assert_allclose(flange(reached)[:3, 2], attachment.xmat.reshape(3, 3)[:, 2], atol=1e-9)
        np.testing.assert_allclose(tool_point(reached), simulated.pinch_position, atol=1e-9)


def test_a_real_arm_says_the_same(test_data):
    """Franka's controller reports the pose of its hand's tool point: 103.4 mm in front of the flange and turned by -45
    degrees, as Franka's description of the hand has it. Some rows are of a moment between two poses."""
    rows = np.load(test_data / "fr3_1khz_teleop.npy")[::50]
    q, position, (x, y, z, w) = rows[:, 1:8], rows[:, 29:32], rows[:, 32:36].T
    np.testing.assert_allclose(tool_point(q, 0.1034), position, atol=1e-3)
    approach = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=-1)
    np.testing.assert_allclose(flange(q)[:, :3, 2], approach, atol=2e-3)
    across = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=-1)
    half = math.sqrt(0.5)
    turned = half * flange(q)[:, :3, 0] - half * flange(q)[:, :3, 1]
    np.testing.assert_allclose(turned, across, atol=2e-3)


def test_the_stretched_arm_is_as_in_the_drawing():
    """All joints at zero: the arm stands up, its flange hangs down 88 mm in front of the base's axis."""
    frames = link_frames(np.zeros(7))
    np.testing.assert_allclose(frames[2, :3, 3], [0, 0, 0.333], atol=1e-12)
    np.testing.assert_allclose(frames[4, :3, 3], [0.0825, 0, 0.649], atol=1e-12)
    np.testing.assert_allclose(frames[6, :3, 3], [0, 0, 1.033], atol=1e-12)
    np.testing.assert_allclose(frames[FLANGE, :3, 3], [0.088, 0, 1.033 - 0.107], atol=1e-12)
    np.testing.assert_allclose(frames[FLANGE, :3, 2], [0, 0, -1], atol=1e-12)


def test_the_ready_pose_is_the_published_one():
    """MoveIt's "ready": programs carry the pose of `panda_link8` there as numbers, position and quaternion
    (x, y, z, w) = (0.92388, -0.382683, 0, 0)."""
    pose = flange(np.array([0, -1, 0, -3, 0, 2, 1]) * math.pi / 4)
    np.testing.assert_allclose(pose[:3, 3], [0.306891, 0, 0.590282], atol=1e-6)
    x, y = 0.92388, -0.382683
    rotation = [[x * x - y * y, 2 * x * y, 0], [2 * x * y, y * y - x * x, 0], [0, 0, -1]]
    np.testing.assert_allclose(pose[:3, :3], rotation, atol=1e-5)


def test_the_reset_pose_looks_straight_down():
    pose = flange(RESET)
    np.testing.assert_allclose(pose[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-12)
    np.testing.assert_allclose(tool_point(RESET), pose[:3, 3] - [0, 0, TOOL_OFFSET], atol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (0,)])
def test_batches_are_their_parts(shape):
    q = some_positions(math.prod(shape), seed=1).reshape(*shape, 7)
    frames = link_frames(q)
    assert frames.shape == (*shape, 9, 4, 4)
    assert flange(q).shape == (*shape, 4, 4)
    assert tool_point(q).shape == (*shape, 3)
    for index in np.ndindex(shape):
        np.testing.assert_allclose(frames[index], link_frames(q[index]), atol=1e-15)


def test_frames_are_rigid():
    frames = link_frames(some_positions(200, seed=2))
    rotations = frames[..., :3, :3]
    squares = rotations @ np.swapaxes(rotations, -1, -2)
    np.testing.assert_allclose(squares, np.broadcast_to(np.eye(3), squares.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, atol=1e-12)
    np.testing.assert_array_equal(frames[..., 3, :], np.broadcast_to([0, 0, 0, 1], (*frames.shape[:-2], 4)))
    np.testing.assert_array_equal(frames[:, 0], np.broadcast_to(np.eye(4), (200, 4, 4)))


def test_a_joint_turns_what_comes_after_it_about_its_own_z():
    """A screw motion, whatever the parameters are: finite differences of positions are cross products with the axis."""
    step = 1e-6
    for q in some_positions(20, seed=3):
        frames = link_frames(q)
        for joint in range(1, 8):
            moved = link_frames(q + step * np.eye(7)[joint - 1])
            axis, origin = frames[joint, :3, 2], frames[joint, :3, 3]
            np.testing.assert_array_equal(moved[:joint], frames[:joint])
            for later in range(joint, 9):
                velocity = (moved[later, :3, 3] - frames[later, :3, 3]) / step
                np.testing.assert_allclose(velocity, np.cross(axis, frames[later, :3, 3] - origin), atol=1e-5)


def test_nothing_of_the_input_is_changed_and_every_answer_is_new():
    q = RESET.copy()
    first = link_frames(q)
    kept = first.copy()
    first[:] = 7.0
    np.testing.assert_array_equal(q, RESET)
    np.testing.assert_array_equal(link_frames(q), kept)


def test_what_is_not_finite_stays_so():
    q = np.tile(RESET, (2, 1))
    q[1, 2] = np.nan
    points = tool_point(q)
    assert np.isfinite(points[0]).all()
    assert np.isnan(points[1]).all()


@pytest.mark.parametrize("shape", [(6,), (8,), (7, 1), ()])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"q has shape .*expected \(\.\.\., 7\)"):
        link_frames(np.zeros(shape))
