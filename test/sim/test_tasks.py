import numpy as np
import pytest

from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS, CameraRole
from ki_ros.sim import scene
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.tasks import BLOCKS, GAP, HOVER, Referee, Task, draw_layout


@pytest.fixture(scope="module")
def kinematics(_shared_rig):
    return Kinematics(_shared_rig.model, PANDA.position_lower, PANDA.position_upper)


@pytest.fixture
def restored(simulated):
    yield simulated
    simulated.place_area(None)


@pytest.mark.parametrize("task", Task)
def test_an_episode_is_a_function_of_task_and_seed(kinematics, task):
    first, again, other = (draw_layout(task, seed, kinematics) for seed in (5, 5, 6))
    assert first.instruction == again.instruction
    for colour in first.blocks:
        np.testing.assert_array_equal(first.blocks[colour], again.blocks[colour])
    np.testing.assert_array_equal(first.start, again.start)
    np.testing.assert_array_equal(first.variation.camera_shift, again.variation.camera_shift)
    assert not np.array_equal(first.area, other.area)


def test_scenes_leave_room_and_name_one_of_the_blocks(kinematics):
    named = set()
    for seed in range(60):
        layout = draw_layout(list(Task)[seed % 3], seed, kinematics)
        places = [*(block[:2] for block in layout.blocks.values()), layout.area]
        assert len(layout.blocks) == BLOCKS
        assert min(np.linalg.norm(a - b) for i, a in enumerate(places) for b in places[:i]) >= GAP
        assert layout.target in layout.blocks
        assert [colour for colour in scene.BLOCK_COLOURS if colour in layout.instruction] == [layout.target]
        named.add(layout.target)
    assert named == set(scene.BLOCK_COLOURS)


def test_the_instruction_alone_tells_the_tasks_apart(kinematics):
    words = {task: {phrase.split()[0] for phrase in task.phrasings} for task in Task}
    assert not words[Task.REACH] & words[Task.PUSH]
    assert not words[Task.PUSH] & words[Task.PICK]
    # The marked area lies on the table whether or not it is spoken of.
    assert all(np.all(np.isfinite(draw_layout(task, 1, kinematics).area)) for task in Task)


@pytest.mark.usefixtures("graphics")
def test_the_rig_looks_as_the_layout_says_and_as_before_when_it_is_placed_again(restored, kinematics):
    first, second = (draw_layout(Task.REACH, seed, kinematics) for seed in (1, 2))
    pictures = []
    for layout in (first, second, first):
        layout.place(restored)
        pictures.append({role: restored.render(role) for role in CameraRole})
    for role in CameraRole:
        np.testing.assert_array_equal(pictures[0][role], pictures[2][role])
        assert not np.array_equal(pictures[0][role], pictures[1][role])
    white = np.all(pictures[0][CameraRole.EXTERIOR_1].astype(int) > 215, axis=2)
    restored.place_area(None)
    assert white.sum() > 1.2 * np.all(restored.render(CameraRole.EXTERIOR_1).astype(int) > 215, axis=2).sum()


def put(rig, kinematics, place):
    """Puts the arm there without touching the blocks."""
    q = kinematics.solve(np.array(place))
    rig.command(q)
    rig.step(2.0)


def test_reaching_counts_when_it_is_held_and_only_at_the_named_block(restored, kinematics):
    layout = draw_layout(Task.REACH, 3, kinematics)
    for colour, expected in ((layout.target, True), (next(c for c in layout.blocks if c != layout.target), False)):
        layout.place(restored)
        put(restored, kinematics, [*layout.blocks[colour][:2], HOVER])
        referee = Referee(layout, restored)
        referee.look()
        assert not referee.success
        restored.step(0.4)
        referee.look()
        assert not referee.success
        restored.step(0.2)
        referee.look()
        assert referee.success is expected
        assert referee.went_to == colour
        assert referee.followed is expected


def test_pushing_counts_when_the_block_lies_in_the_area(restored, kinematics):
    layout = draw_layout(Task.PUSH, 3, kinematics)
    for offset, expected in (((0.05, -0.05), True), ((0.075, 0.0), False)):
        layout.place(restored)
        restored.set_block_pose(layout.target, [*np.add(layout.area, offset), scene.BLOCK_HALF_SIZE])
        referee = Referee(layout, restored)
        for _ in range(8):
            referee.look()
            restored.step(0.1)
        assert referee.success is expected


def test_picking_counts_when_the_fingers_hold_the_block_up(restored, kinematics):
    layout = draw_layout(Task.PICK, 3, kinematics)
    layout.place(restored)
    referee = Referee(layout, restored)
    put(restored, kinematics, [*layout.blocks[layout.target][:2], 0.3])
    for height, expected in ((0.3, True), (0.2, False)):
        referee = Referee(layout, restored)
        for _ in range(8):
            # Held there by hand, at the fingertips or under them.
            restored.set_block_pose(layout.target, np.add(restored.pinch_position, (0.0, 0.0, height - 0.3)))
            referee.look()
            restored.step(0.1)
        assert referee.success is expected
    assert np.all(np.abs(np.array(RESET_JOINT_POSITIONS) - layout.start) <= 0.06)
