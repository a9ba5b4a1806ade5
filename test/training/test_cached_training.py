"""Training on cached episodes: which are trained on, with which statistics, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from ki_ros.commands.train import train as command
from ki_ros.data.bag import BagWriter, encode
from ki_ros.data.cache import Cache, CacheWriter
from ki_ros.model.config import KIConfig
from ki_ros.rig import GRIPPER_JOINT, PANDA, CameraRole
from ki_ros.training import config as configuration
from ki_ros.training.assets import open_sources
from ki_ros.training.state import ResumeError
from ki_ros.training.trainer import train


@dataclass
class Reaching:
    """An arm that moves about at random before a picture of its task's colour."""

    number: int
    outcome: str = "success"
    bag: Path = Path("bags")
    robot: str = "panda"
    rate: float = 15.0
    action_source: str = "joint_command"
    ended: bool = True
    damage: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.number)
        self.id = f"run {self.number}"
        self.instruction = f"reach block {self.number % 3}"
        self.stamps_ns = np.arange(30, dtype=np.int64) * 66_666_667
        self.states = np.cumsum(rng.normal(0, 0.02, (30, 8)), axis=0) + 0.5
        self.targets = self.states + rng.normal(0, 0.02, (30, 8))
        self.segment = np.zeros(30, np.int32)
        self.idle = np.zeros(30, bool)

    def views(self, step: int) -> dict[CameraRole, np.ndarray]:
        pixels = np.full((28, 28, 3), 40 + 5 * step, np.uint8)
        pixels[..., self.number % 3] = 200
        return {CameraRole.EXTERIOR_1: pixels, CameraRole.WRIST: pixels[::-1]}


def write_cache(directory: Path, count: int) -> Path:
    outcomes = ["success"] * count
    outcomes[3] = "failure"
    with CacheWriter(directory) as writer:
        for number in range(count):
            if not writer.has(str(number), "1"):
                writer.add(str(number), "1", [Reaching(number, outcomes[number])])
        writer.commit({str(number): "1" for number in range(count)})
    return directory


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_cache(tmp_path_factory.mktemp("cache"), 10)


def run(directory: Path, cache: Path, *, resume: bool = False, data: dict | None = None, **changes: Any):
    values = tiny.settings(directory / "out", **changes)
    values["data"] = {"kind": "bags", "cache": str(cache), "held_out": 2} | (data or {})
    return train(configuration.parse(values), resume=resume)


def test_statistics_are_of_the_episodes_that_are_trained_on(cache: Path, tmp_path: Path) -> None:
    """Not of those that failed, nor of those that are held out."""
    outcome = run(tmp_path, cache, steps=4)
    assert outcome.evaluation is not None
    values = configuration.parse(
        tiny.settings(tmp_path / "x", data={"kind": "bags", "cache": str(cache), "held_out": 2})
    )
    sources = open_sources(values, KIConfig.from_preset("ki_tiny"))
    assert len(sources.train) == 7 * 30
    assert len(sources.held_out) == 2 * 30
    assert not set(sources.train.episodes) & set(sources.held_out.episodes)
    used = [Reaching(number) for number in sources.train.episodes]
    assert 3 not in sources.train.episodes
    states = np.concatenate([episode.states for episode in used])
    actions = np.concatenate([episode.targets for episode in used])
    actions[:, :7] = (actions[:, :7] - states[:, :7]) / 0.2
    written = json.loads((tmp_path / "out" / "assets" / "norm_stats.json").read_text())["norm_stats"]
    for name, rows in (("state", states), ("actions", actions)):
        for key, value in (
            ("mean", rows.mean(0)),
            ("std", rows.std(0)),
            ("q01", np.percentile(rows, 1, axis=0)),
            ("q99", np.percentile(rows, 99, axis=0)),
        ):
            np.testing.assert_allclose(written[name][key], value, rtol=1e-12, atol=1e-12)


def test_loader_processes_open_the_cache_by_themselves_and_change_nothing(cache: Path, tmp_path: Path) -> None:
    for name, workers in (("alone", 0), ("loaders", 1)):
        run(tmp_path / name, cache, steps=3, workers=workers)
    one, other = tiny.saved(tmp_path / "alone", 3), tiny.saved(tmp_path / "loaders", 3)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_run_does_not_go_on_with_more_episodes(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", 8)
    run(tmp_path, cache, steps=4, save_every=2)
    write_cache(cache, 9)
    with pytest.raises(ResumeError):
        run(tmp_path, cache, steps=6, save_every=2, resume=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data.directory and data.cache are both missing"),
        ({"cache": "c", "held_out": 1.5}, "data.held_out is 1.5; give a share .* or a whole number"),
        ({"cache": "c", "held_out": -1}, "data.held_out is -1.0"),
        ({"cache": "c", "held_out": float("inf")}, "data.held_out is inf"),
        ({"cache": "c", "outcomes": []}, "data.outcomes is empty"),
        ({"cache": "c", "outcomes": ["good"]}, r"data.outcomes.0 is 'good'"),
        ({"cache": "c", "encoding": "png"}, "data.encoding is 'png'"),
        ({"cache": "c", "quality": 0}, "data.quality is 0; give 1 to 100"),
        ({"cache": "c", "build_workers": 0}, "data.build_workers is 0"),
        ({"cache": "c", "train": "0-3"}, "data.train is '0-3', but there is no such field"),
    ],
)
def test_wrong_data_settings_are_named(tmp_path: Path, data: dict, message: str) -> None:
    with pytest.raises(configuration.TrainConfigError, match=message):
        configuration.parse(tiny.settings(tmp_path, data={"kind": "bags"} | data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"held_out": 9}, "held_out is 9, but there are 9 episodes"),
        ({"outcomes": ["unknown"]}, "no episode of outcome unknown among 10"),
        ({"views": ["exterior_2"]}, "7 of 7 episodes lack a view, the first is 'run 0' of bags without exterior_2"),
        (
            {"action_space": "joint_position"},
            "is 'joint_position', the model's 'joint_velocity'; set data.action_space=joint_velocity, or, ",
        ),
        ({"cache": "/nowhere"}, "/nowhere holds no complete cache"),
    ],
)
def test_data_that_cannot_be_trained_on_are_named(cache: Path, tmp_path: Path, data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, cache, data=data)


def test_a_checkpoint_s_statistics_are_for_actions_of_its_own_kind(cache: Path, tmp_path: Path) -> None:
    run(tmp_path / "first", cache, steps=3)
    (checkpoint,) = (tmp_path / "first" / "out" / "checkpoints").iterdir()
    other = {"model": {"init": str(checkpoint), "changes": {"action_space": "joint_position"}}, "steps": 3}
    data = {"action_space": "joint_position"}
    message = "statistics are of 'joint_velocity' actions.* is 'joint_position'; give norm_stats=data"
    with pytest.raises(configuration.TrainConfigError, match=message):
        run(tmp_path / "refused", cache, data=data, norm_stats="checkpoint", **other)
    assert not (tmp_path / "refused" / "out").exists()
    run(tmp_path / "computed", cache, data=data, norm_stats="data", **other)
    run(tmp_path / "kept", cache, norm_stats="checkpoint", model={"init": str(checkpoint)}, steps=3)
    written = {
        name: json.loads((tmp_path / name / "out" / "assets" / "norm_stats.json").read_text())["norm_stats"]
        for name in ("first", "computed", "kept")
    }
    assert written["kept"] == written["first"]
    assert written["computed"]["state"] == written["first"]["state"]
    assert written["computed"]["actions"] != written["first"]["actions"]


def test_a_configuration_of_bags_survives_its_own_form(tmp_path: Path) -> None:
    data = {"kind": "bags", "directory": "bags", "outcomes": ["success", "unknown"], "held_out": 20, "views": ["wrist"]}
    values = configuration.parse(tiny.settings(tmp_path, data=data))
    assert configuration.parse(values.to_dict()) == values
    assert values.data.cache_directory == Path("bags.cache")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"kind": "droid", "directory": "d", "train": "0-3", "views": ["wrist"], "action_space": "joint_position"},
            {"views": ["wrist"], "action_space": "joint_position"},
        ),
        ({"kind": "pointing", "train": 10}, {}),
        ({"kind": "bags", "directory": "a", "cache": "a.cache", "held_out": 3}, {"held_out": 3}),
    ],
)
def test_bags_take_the_place_of_a_files_data(tmp_path: Path, data: dict, expected: dict) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(tiny.settings(tmp_path / "out", data=data)))
    loaded = configuration.load(file, ["data.quality=80"], bags=tmp_path / "mine")
    plain = {"kind": "bags", "directory": str(tmp_path / "mine"), "quality": 80}
    assert loaded.data == configuration.parse(tiny.settings(tmp_path / "out", data=plain | expected)).data


def record(directory: Path, number: int) -> None:
    """A second of a rig whose arm is commanded about, recorded as `ros2 bag record` would."""
    rng = np.random.default_rng(number)
    cameras = ("/camera/exterior_1/image_raw", "/camera/wrist/image_raw")
    with BagWriter(directory / f"run_{number}") as bag:
        for topic in cameras:
            bag.add_topic(topic, "sensor_msgs/msg/Image")
        for topic in ("/joint_states", "/gripper/joint_states", "/joint_command"):
            bag.add_topic(topic, "sensor_msgs/msg/JointState")
        bag.add_topic("/episode", "ki_ros/msg/Episode")
        bag.write("/episode", 10**9, encode.episode(10**9, f"run {number}", "reach it", 0, 0, "panda"))
        for tick in range(150):
            now = 10**9 + tick * 10_000_000
            joints = rng.uniform(0.1, 0.4, 7)
            if tick % 3 == 0:
                pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                for topic in cameras:
                    bag.write(topic, now, encode.image(now, "", pixels))
            bag.write("/joint_states", now, encode.joint_state(now, PANDA.joint_names, joints))
            bag.write("/gripper/joint_states", now, encode.joint_state(now, (GRIPPER_JOINT,), (rng.uniform(0, 0.8),)))
            command = (*(joints + rng.normal(0, 0.05, 7)), rng.uniform(0, 0.8))
            bag.write("/joint_command", now, encode.joint_state(now, PANDA.state_names, command))
        end = now + 1
        bag.write("/episode", end, encode.episode(end, f"run {number}", "reach it", 1, 1, "panda"))


def test_command_trains_on_a_directory_of_bags(tmp_path: Path) -> None:
    """The same command again finds all of it read."""
    bags = tmp_path / "bags"
    for number in range(4):
        record(bags, number)
    file = tiny.write(tmp_path, steps=4)
    arguments: dict[str, Any] = {
        "config": file,
        "bags": bags,
        "set": ("data.held_out=1", "data.build_workers=1"),
        "output": None,
    }
    assert command(**arguments, resume=False, dry_run=False, json=tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["step"] == 4
    cache = Cache(tmp_path / "bags.cache")
    assert {episode.id for episode in cache.episodes} == {f"run {number}" for number in range(4)}
    before = (tmp_path / "bags.cache" / "manifest.json").stat().st_mtime_ns
    assert command(**arguments, resume=True, dry_run=False, json=None) == 0
    assert (tmp_path / "bags.cache" / "manifest.json").stat().st_mtime_ns == before
