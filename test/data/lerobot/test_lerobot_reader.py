"""Datasets read as episodes: what was exported comes back, and DROID as it is published."""

from __future__ import annotations

import json
import shutil

import droid_set
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exported_episodes import VIEWS, Made, cached, episodes

from ki_ros.data.bag_chunks import BagChunks
from ki_ros.data.cache import Cache, CacheError
from ki_ros.data.cache.build import build_cache
from ki_ros.data.cache.part import Storage
from ki_ros.data.idle import idle_steps
from ki_ros.data.lerobot import (
    Dataset,
    ExportOptions,
    LeRobotError,
    export_dataset,
    lerobot_origins,
    lerobot_settings,
    origins,
)
from ki_ros.data.lerobot.source import open_source
from ki_ros.rig import ActionSpace, CameraRole

PNG = ExportOptions(images="png")


@pytest.fixture(scope="module")
def droid(tmp_path_factory):
    return droid_set.write(tmp_path_factory.mktemp("droid") / "set")


@pytest.fixture
def copy(droid, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(droid, tmp_path / "copy")


@pytest.mark.parametrize("action_space", list(ActionSpace))
def test_what_was_exported_comes_back(action_space, tmp_path):
    cached(tmp_path / "cache", *episodes())
    options = ExportOptions(images="png", action_space=action_space)
    export_dataset(open_source(tmp_path / "cache"), tmp_path / "out", options)
    dataset = Dataset(tmp_path / "out")
    assert len(dataset) == 3
    for number, given in enumerate(episodes()):
        found = dataset.episode(number)
        for name in ("id", "instruction", "outcome", "robot", "rate", "action_source", "ended"):
            assert getattr(found, name) == getattr(given, name)
        for name in ("stamps_ns", "segment", "idle"):
            np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
        np.testing.assert_array_equal(found.states, given.states.astype(np.float32))
        # Through a velocity, positions lose the last bits of float32: here up to 3 rad, and velocities of up to 2.
        tolerance = 0 if action_space is ActionSpace.JOINT_POSITION else 4e-7
        np.testing.assert_allclose(found.targets, given.targets.astype(np.float32), rtol=0, atol=tolerance)
        for step in (*range(len(found)), 3, 3, 0):
            views = found.views(step)
            assert views.keys() == set(VIEWS)
            for role, view in views.items():
                np.testing.assert_array_equal(view, given.views(step)[role])


def test_samples_are_those_of_the_cache_that_was_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(origins, "GROUP", 2)
    before = cached(tmp_path / "cache", *episodes(), Made("three", 30, 4))
    export_dataset(open_source(tmp_path / "cache"), tmp_path / "set", PNG)
    storage = Storage("raw", settings=lerobot_settings(tmp_path / "set"))
    given = lerobot_origins(tmp_path / "set")
    assert [origin.name for origin in given] == ["episodes 000000-000001", "episodes 000002-000003"]
    report = build_cache(given, tmp_path / "again", storage, workers=2)
    assert (len(report.added), report.refused) == (2, {})
    for action_space in ActionSpace:
        sources = [
            BagChunks(cache, horizon=6, action_space=action_space, outcomes=("success", "failure", "unknown"))
            for cache in (before, Cache(tmp_path / "again"))
        ]
        assert len(sources[0]) == len(sources[1]) > 40
        for index in range(len(sources[0])):
            one, other = sources[0][index], sources[1][index]
            assert one.instruction == other.instruction
            for role in VIEWS:
                np.testing.assert_array_equal(one.views[role], other.views[role])
            np.testing.assert_array_equal(one.state.astype(np.float32), other.state)
            np.testing.assert_array_equal(one.action_mask, other.action_mask)
            # A velocity is a difference of two rounded positions, divided by 0.2.
            np.testing.assert_allclose(one.actions, other.actions, rtol=0, atol=3e-6)
    again = build_cache(lerobot_origins(tmp_path / "set"), tmp_path / "again", storage)
    assert (again.added, len(again.kept)) == ((), 2)


def test_droid_as_it_is_published(droid):
    dataset = Dataset(droid)
    assert len(dataset) == 3
    begins = np.cumsum([0, *droid_set.LENGTHS])
    texts = ("put the marker in the pot", "open the drawer", "")
    for number, (text, outcome) in enumerate(zip(texts, ("success", "failure", "success"), strict=True)):
        found = dataset.episode(number)
        rows = slice(begins[number], begins[number + 1])
        assert (found.instruction, found.outcome, found.robot, found.rate) == (text, outcome, "panda", 15.0)
        assert found.id == f"episode_{number:06d}"
        for name, kind in (("states", "observation.state"), ("targets", "action")):
            joints = droid_set.values(f"{kind}.joint_position", 7)[rows]
            gripper = droid_set.values(f"{kind}.gripper_position", 1)[rows]
            np.testing.assert_array_equal(getattr(found, name), np.concatenate([joints, gripper], axis=1))
        np.testing.assert_allclose(found.stamps_ns, np.arange(len(found)) * 1e9 / 15, rtol=0, atol=100)
        expected = idle_steps(found.states, found.targets, np.zeros(len(found)), 15.0)
        np.testing.assert_array_equal(found.idle, expected)
        for step in (*range(len(found)), 5, 2):
            views = found.views(step)
            assert set(views) == set(CameraRole)
            for camera, role in enumerate((CameraRole.EXTERIOR_1, CameraRole.EXTERIOR_2, CameraRole.WRIST)):
                view = views[role].astype(int)
                assert view.shape == (224, 224, 3)
                # 90 x 160 pixels fitted into a square: bars above and below.
                assert not view[:49].any()
                assert not view[-49:].any()
                assert abs(view[51:173] - droid_set.level(camera, begins[number] + step)).max() <= 2


def test_droid_with_the_velocities_that_were_commanded(droid):
    found = Dataset(droid, "droid_velocity").episode(1)
    velocity = droid_set.values("action.joint_velocity", 7)[7:19]
    np.testing.assert_allclose((found.targets[:, :7] - found.states[:, :7]) / 0.2, velocity, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.targets[:, 7], droid_set.values("action.gripper_position", 1)[7:19, 0])


def test_episodes_without_an_instruction_are_not_cached(droid, tmp_path):
    build_cache(lerobot_origins(droid), tmp_path, Storage("raw", settings=lerobot_settings(droid)))
    assert [episode.id for episode in Cache(tmp_path).episodes] == ["episode_000000", "episode_000001"]


def test_a_damaged_file_costs_the_episodes_beside_it_and_no_others(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(origins, "GROUP", 1)
    (copy / "videos/observation.images.wrist_left/chunk-000/file-001.mp4").write_bytes(b"")
    report = build_cache(lerobot_origins(copy), tmp_path / "cache", Storage("raw", settings=lerobot_settings(copy)))
    assert report.added == ("episodes 000000-000000",)
    assert "file-001.mp4 cannot be decoded" in report.refused["episodes 000001-000001"]
    assert "no episode has an instruction" in report.refused["episodes 000002-000002"]
    assert [episode.id for episode in Cache(tmp_path / "cache").episodes] == ["episode_000000"]


def test_other_features_are_another_cache(droid, tmp_path):
    build_cache(lerobot_origins(droid), tmp_path, Storage("raw", settings=lerobot_settings(droid)))
    other = Storage("raw", settings=lerobot_settings(droid, "droid_velocity"))
    with pytest.raises(CacheError, match="holds a cache with settings"):
        build_cache(lerobot_origins(droid, "droid_velocity"), tmp_path, other)


def test_a_map_of_ones_own(droid):
    changes = {
        "state": "observation.state",
        "action": "action",
        "images": {"wrist": "observation.images.exterior_2_left"},
        "instruction": None,
        "success": None,
        "outcome": "success",
        "image_size": None,
    }
    found = Dataset(droid, "droid", changes).episode(0)
    np.testing.assert_array_equal(found.states, droid_set.values("observation.state", 8)[:7])
    assert (found.outcome, found.instruction) == ("success", "put the marker in the pot")
    view = found.views(4)[CameraRole.WRIST]
    assert view.shape == (90, 160, 3)
    assert abs(view.astype(int) - droid_set.level(1, 4)).max() <= 2


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("ki_ros", {}, "features.action_space is missing, and the names of action, None, do not tell it"),
        ("own", {}, "preset is 'own'; use auto or one of ki_ros, droid, droid_velocity"),
        ("auto", {"states": ["x"]}, "features.states: there is no such field; use some of state, action"),
        (
            "auto",
            {"state": "observation.joints"},
            r"features.state: the dataset has no feature 'observation.joints'; it ",
        ),
        ("auto", {"state": "observation.state.joint_position"}, r"joint_position \(7\) have 7 values; 8 are needed"),
        ("auto", {"action": "language_instruction"}, "language_instruction has dtype 'string'; float32 or float64 is"),
        ("auto", {"images": {"wrist": "observation.images.hand"}}, "features.images.wrist: the dataset has no feature"),
        ("auto", {"images": {"hand": "observation.images.wrist_left"}}, "'hand' is no camera; use some of exterior_1"),
        ("auto", {"images": {"wrist": "action"}}, "features.images.wrist: action has dtype 'float32'; image or video"),
        ("auto", {"success": "discount"}, "features.success: discount has dtype 'float32'; bool is needed"),
        ("auto", {"outcome": "good"}, "features.outcome is 'good'; use one of success, failure, unknown"),
        ("auto", {"robot": "ur5"}, "features.robot is 'ur5'; use one of panda, fr3"),
        ("auto", {"action_space": "cartesian"}, "action_space 'cartesian' is not known"),
    ],
)
def test_features_that_do_not_fit_are_named(preset, changes, message, droid):
    with pytest.raises(ValueError, match=message):
        Dataset(droid, preset, changes)


def test_no_preset_for_unknown_features(copy):
    info = json.loads((copy / "meta/info.json").read_text())
    for name in [name for name in info["features"] if name.startswith("observation.state")]:
        del info["features"][name]
    (copy / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(LeRobotError, match=r"no preset fits a dataset with the features action, .* in features.state"):
        Dataset(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v2.1"}, "codebase_version is 'v2.1'; v3.0 is read. .*convert_dataset_v21_to_v30"),
        ({"fps": 0}, "fps is 0; a positive rate is needed"),
        ({"features": None}, "features is None"),
        ({"features": {"action": 3}}, "features.action is 3; a dtype and a shape are needed"),
    ],
)
def test_a_description_that_is_wrong_is_refused(changes, message, tmp_path):
    with pytest.raises(LeRobotError, match=message):
        Dataset(droid_set.write(tmp_path / "set", **changes))


def test_where_there_is_no_dataset_it_is_said(tmp_path):
    with pytest.raises(LeRobotError, match=r"is no LeRobot dataset: it has no meta/info\.json"):
        Dataset(tmp_path)


def read_all(directory) -> None:
    dataset = Dataset(directory)
    for number in range(len(dataset)):
        episode = dataset.episode(number)
        for step in range(len(episode)):
            episode.views(step)


KEY = "observation.images.wrist_left"


@pytest.mark.parametrize(
    "file",
    [
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
        f"videos/{KEY}/chunk-000/file-001.mp4",
    ],
)
def test_files_that_are_missing_or_cut_off_are_named(file, copy):
    whole = (copy / file).read_bytes()
    for part in (0.0, 0.3, 0.9):
        (copy / file).write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(LeRobotError, match=file.rpartition("/")[2]):
            read_all(copy)
    (copy / file).unlink()
    with pytest.raises(LeRobotError, match=r"does not exist|lists no episode"):
        read_all(copy)


def test_a_flipped_bit_in_what_was_exported_is_noticed(tmp_path):
    """Or makes no difference: whatever comes back is what was written."""
    export_dataset(open_source(cached(tmp_path / "cache", *episodes()).directory), tmp_path / "out", PNG)
    file = tmp_path / "out/data/chunk-000/file-000.parquet"
    whole = bytearray(file.read_bytes())
    given = [episode.states.astype(np.float32) for episode in episodes()]
    noticed = []
    for place in range(4, len(whole) - 12_000, len(whole) // 40):
        whole[place] ^= 4
        file.write_bytes(whole)
        whole[place] ^= 4
        dataset = Dataset(tmp_path / "out")
        try:
            for number, states in enumerate(given):
                found = dataset.episode(number)
                np.testing.assert_array_equal(found.states, states)
                for step in range(len(found)):
                    np.testing.assert_array_equal(found.views(step)[VIEWS[0]], episodes()[number].views(step)[VIEWS[0]])
                    found.views(step)
        except LeRobotError as error:
            noticed.append(str(error))
    # The others are in columns that are not read.
    assert len(noticed) > 25
    assert all("file-000.parquet" in message for message in noticed)


def test_a_video_that_is_too_short_is_told_by_the_frame_that_it_lacks(copy):
    droid_set.video(copy / f"videos/{KEY}/chunk-000/file-001.mp4", 2, range(7, 26))
    episode = Dataset(copy).episode(2)
    assert episode.views(6)
    with pytest.raises(LeRobotError, match=r"no frame at 1\.2667 s, frame 7 of 9 of an episode"):
        episode.views(7)


def test_rows_of_another_episode_are_not_taken(copy):
    file = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    index = table.column_names.index("episode_index")
    pq.write_table(table.set_column(index, "episode_index", pa.array([0] * 6 + [1] * 13)), file)
    with pytest.raises(LeRobotError, match="rows 0 to 6 are not the frames of episode 0"):
        Dataset(copy).episode(0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1] * 8 + [0], r"has several tasks, \['put the marker in the pot', ''\]"),
        ([7] * 9, r"has a task_index of \[7\], which"),
    ],
)
def test_an_episode_has_one_task(numbers, message, copy):
    file = copy / "data/chunk-000/file-001.parquet"
    table = pq.read_table(file)
    index = table.column_names.index("task_index")
    pq.write_table(table.set_column(index, "task_index", pa.array(numbers)), file)
    with pytest.raises(LeRobotError, match=message):
        Dataset(copy).episode(2)


def test_values_that_are_not_finite_are_refused(copy):
    file = copy / "data/chunk-000/file-001.parquet"
    table = pq.read_table(file)
    index = table.column_names.index("action.gripper_position")
    spoilt = np.zeros(9, np.float32)
    spoilt[4] = np.nan
    pq.write_table(table.set_column(index, "action.gripper_position", pa.array(spoilt)), file)
    with pytest.raises(LeRobotError, match=r"episode 2 of .*: action at frame 4 is not finite"):
        Dataset(copy).episode(2)
