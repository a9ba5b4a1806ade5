"""Samples of DROID episodes against loops over the files, and what is refused."""

from __future__ import annotations

import json
import operator
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from ki_ros.chunk import target_position
from ki_ros.data.chunks import DroidChunks
from ki_ros.data.droid import EpisodeError
from ki_ros.rig import ActionSpace, CameraRole
from ki_ros.sample import Sample

VELOCITY, POSITION = ActionSpace.JOINT_VELOCITY, ActionSpace.JOINT_POSITION
FILES = {CameraRole.EXTERIOR_1: "exterior_image_1_left", CameraRole.WRIST: "wrist_image_left"}


@pytest.fixture(scope="session")
def droid(test_data):
    return test_data / "droid_100"


@pytest.fixture
def directory(tmp_path):
    """Episodes 3, of four steps, with images of the wrist camera, and 8, of two steps, without images."""
    tasks = {}
    rng = np.random.default_rng(5)
    for number, steps in ((3, 4), (8, 2)):
        np.savez(tmp_path / f"episode_{number:03d}.npz", state=rng.uniform(0.1, 1.0, (steps, 8)))
        tasks[f"episode_{number:03d}"] = {"length": steps, "task": f"task {number}"}
    (tmp_path / "episodes.json").write_text(json.dumps(tasks))
    images = tmp_path / "images" / "episode_003"
    images.mkdir(parents=True)
    for step in range(4):
        Image.fromarray(np.full((4, 6, 3), 60 * step, np.uint8)).save(
            images / f"wrist_image_left__image_{step:08d}.png"
        )
    return tmp_path


def brute_force(droid, number, step, horizon, space):
    """State, actions and mask of a sample, row by row."""
    states = np.load(droid / f"episode_{number:03d}.npz")["state"].astype(np.float64)
    last = len(states) - 1
    actions, mask = [], []
    for row in range(step, step + horizon):
        inside = row < last
        after = states[row + 1] if inside else states[last]
        joints = after[:7]
        if space is VELOCITY:
            joints = [(b - a) / 0.2 for a, b in zip(states[row][:7], joints, strict=True)] if inside else [0.0] * 7
        actions.append([*joints, after[7]])
        mask.append(inside)
    return states[step], np.array(actions), np.array(mask)


@pytest.mark.parametrize("space", [VELOCITY, POSITION])
@pytest.mark.parametrize("horizon", [1, 15])
def test_samples_are_those_of_a_loop_over_the_steps(droid, space, horizon):
    numbers = (7, 0, 42)
    source = DroidChunks(droid, numbers, horizon=horizon, action_space=space, views=())
    tasks = json.loads((droid / "episodes.json").read_text())
    index = 0
    for number in numbers:
        name = f"episode_{number:03d}"
        for step in range(tasks[name]["length"] - 1):
            sample = source[index]
            state, actions, mask = brute_force(droid, number, step, horizon, space)
            np.testing.assert_array_equal(sample.state, state)
            np.testing.assert_allclose(sample.actions, actions, rtol=0, atol=1e-15)
            np.testing.assert_array_equal(sample.action_mask, mask)
            assert sample.instruction == tasks[name]["task"]
            assert sample.views == {}
            index += 1
    assert len(source) == index
    assert source.action_space is space


@pytest.mark.parametrize("space", [VELOCITY, POSITION])
def test_executing_a_chunk_takes_the_arm_along_the_recorded_path(droid, space):
    """Also past the end, where the arm must stay: at any step there the target is the last recorded position."""
    source = DroidChunks(droid, [11], action_space=space, views=())
    path = np.load(droid / "episode_011.npz")["state"].astype(np.float64)
    for step in range(0, len(source), 4):
        sample = source[step]
        joints = sample.state[:7]
        for row, action in enumerate(sample.actions):
            joints = target_position(action, space, joints)
            expected = path[min(step + row + 1, len(path) - 1)]
            np.testing.assert_allclose(joints, expected[:7], rtol=0, atol=1e-12)
            assert action[7] == expected[7]


@pytest.mark.parametrize("space", [VELOCITY, POSITION])
def test_past_the_end_the_gripper_stays_as_it_was(directory, space):
    last = np.load(directory / "episode_003.npz")["state"][-1]
    assert last[7] >= 0.1
    actions = DroidChunks(directory, [3], horizon=6, action_space=space, views=())[1].actions
    joints = np.zeros(7) if space is VELOCITY else last[:7]
    np.testing.assert_array_equal(actions[2:], np.tile([*joints, last[7]], (4, 1)))


def test_the_mask_tells_the_steps_of_the_episode(droid):
    source = DroidChunks(droid, [0, 1], action_space=VELOCITY, views=())
    first, second = 166 - 1, 238 - 1
    counts = [int(source[index].action_mask.sum()) for index in range(len(source))]
    assert counts == [min(15, left) for steps in (first, second) for left in range(steps, 0, -1)]


def test_views_are_the_images_of_the_same_step(droid):
    source = DroidChunks(droid, [1, 0], action_space=VELOCITY)
    for index, number, step in ((0, 1, 0), (236, 1, 236), (237, 0, 0), (401, 0, 164)):
        views = source[index].views
        assert set(views) == set(FILES)
        for role, file in FILES.items():
            path = droid / "images" / f"episode_{number:03d}" / f"{file}__image_{step:08d}.webp"
            with Image.open(path) as image:
                np.testing.assert_array_equal(views[role], np.asarray(image.convert("RGB")))


def test_images_are_opened_only_when_they_are_asked_for(directory):
    source = DroidChunks(directory, [3], action_space=VELOCITY, views=(CameraRole.WRIST,))
    (directory / "images" / "episode_003" / "wrist_image_left__image_00000001.png").unlink()
    assert source[0].views[CameraRole.WRIST].shape == (4, 6, 3)
    source.states_and_actions()
    with pytest.raises(FileNotFoundError):
        source[1]


def test_episodes_without_images_are_refused_by_name(droid):
    with pytest.raises(EpisodeError, match=r"without images of exterior_1: 4, 7 to 9; wrist: 4, 7 to 9\. .*views=\(\)"):
        DroidChunks(droid, [8, 0, 4, 9, 7], action_space=VELOCITY)


def test_only_the_missing_view_is_named(directory):
    with pytest.raises(EpisodeError, match=r"without images of exterior_1: 3\. "):
        DroidChunks(directory, [3], action_space=VELOCITY)


def test_missing_views_are_masked_on_request(directory):
    source = DroidChunks(directory, [8, 3], action_space=VELOCITY, missing_views="mask")
    assert [set(source[index].views) for index in range(4)] == [set(), *[{CameraRole.WRIST}] * 3]


def test_states_and_actions_count_each_step_once(droid):
    source = DroidChunks(droid, [5, 30], action_space=VELOCITY, views=())
    states, actions = source.states_and_actions()
    files = [np.load(droid / f"episode_{number:03d}.npz")["state"] for number in (5, 30)]
    np.testing.assert_array_equal(states, np.concatenate(files))
    np.testing.assert_array_equal(actions, [source[index].actions[0] for index in range(len(source))])


def test_what_is_done_to_a_sample_stays_there(droid):
    source = DroidChunks(droid, [5], action_space=VELOCITY, views=())
    before = source[3]
    for values in (before.state, before.actions, before.action_mask):
        values[...] = 0
    assert source[3].state.any()
    assert source[3].actions.any()
    assert source[3].action_mask.all()


def assert_equal(left: Sample, right: Sample) -> None:
    assert left.instruction == right.instruction
    assert set(left.views) == set(right.views)
    for a, b in [(left.views[role], right.views[role]) for role in left.views]:
        np.testing.assert_array_equal(a, b)
    for name in ("state", "actions", "action_mask"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_another_process_sees_the_same_samples(droid):
    source = DroidChunks(droid, [0], action_space=VELOCITY)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert_equal(pool.submit(operator.getitem, source, 40).result(), source[40])


def test_the_fingerprint_does_not_depend_on_the_place(directory, tmp_path_factory):
    copy = shutil.copytree(directory, tmp_path_factory.mktemp("elsewhere") / "copy")
    left, right = (DroidChunks(there, [3], action_space=VELOCITY, missing_views="mask") for there in (directory, copy))
    assert left.fingerprint == right.fingerprint
    assert pickle.loads(pickle.dumps(left)).fingerprint == right.fingerprint


def _other_state(directory):
    with np.load(directory / "episode_003.npz") as arrays:
        states = arrays["state"].copy()
    states[2, 4] = np.nextafter(states[2, 4], 1)
    np.savez(directory / "episode_003.npz", state=states)


def _other_task(directory):
    file = directory / "episodes.json"
    file.write_text(file.read_text().replace("task 3", "task three"))


def _other_image(directory):
    image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    image.save(directory / "images" / "episode_003" / "wrist_image_left__image_00000002.png")


def _no_images(directory):
    shutil.rmtree(directory / "images")


def _nothing(directory):
    pass


@pytest.mark.parametrize(
    ("change", "arguments"),
    [
        (_other_state, {}),
        (_other_task, {}),
        (_other_image, {}),
        (_no_images, {}),
        (_nothing, {"horizon": 14}),
        (_nothing, {"action_space": POSITION}),
        (_nothing, {"views": (CameraRole.WRIST,)}),
        (_nothing, {"views": ()}),
        (_nothing, {"episodes": [8, 3]}),
        (_nothing, {"episodes": [3]}),
    ],
)
def test_the_fingerprint_changes_with_the_samples(directory, change, arguments):
    usual = {"episodes": [3, 8], "action_space": VELOCITY, "missing_views": "mask"}
    before = DroidChunks(directory, **usual).fingerprint
    change(directory)
    assert DroidChunks(directory, **(usual | arguments)).fingerprint != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon is 0; give at least 1"),
        ({"episodes": []}, "episodes is empty"),
        ({"episodes": [3, 8, 3]}, "episodes has 3 twice"),
        ({"action_space": "torque"}, "action_space 'torque' is not known; use one of joint_velocity"),
        ({"views": ("left",)}, "views has 'left', which is no camera; use some of exterior_1"),
        ({"views": (CameraRole.WRIST, CameraRole.WRIST)}, "views has wrist twice"),
        ({"missing_views": "skip"}, "missing_views is 'skip'; use 'refuse' or 'mask'"),
        ({"episodes": [4]}, r"episode_004.npz does not exist.*3 to 8"),
    ],
)
def test_what_makes_no_sense_is_refused(directory, arguments, message):
    usual = {"episodes": [3], "action_space": VELOCITY, "views": (CameraRole.WRIST,)}
    with pytest.raises(ValueError, match=message):
        DroidChunks(directory, **(usual | arguments))


def test_an_episode_of_one_step_is_refused(directory):
    np.savez(directory / "episode_008.npz", state=np.zeros((1, 8)))
    with pytest.raises(EpisodeError, match=r"episode_008 has 1 steps.*leave it out"):
        DroidChunks(directory, [8], action_space=VELOCITY, views=())


def test_an_episode_without_an_instruction_is_refused(directory):
    file = directory / "episodes.json"
    file.write_text(file.read_text().replace("task 8", " "))
    with pytest.raises(EpisodeError, match=r"episode_008 has no instruction.*or leave it out"):
        DroidChunks(directory, [3, 8], action_space=VELOCITY, views=())


@pytest.mark.parametrize("index", [-1, 4, 1000])
def test_an_index_out_of_range_is_named(directory, index):
    source = DroidChunks(directory, [3, 8], action_space=VELOCITY, views=())
    with pytest.raises(IndexError, match=rf"index is {index}; samples are 0 to 3"):
        source[index]
