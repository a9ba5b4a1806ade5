"""Training on a LeRobot dataset: the samples and the run are those of the cache that it was exported from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from test_cached_training import Reaching

from ki_ros.commands.train import train as command
from ki_ros.data.cache import CacheWriter
from ki_ros.data.cache.part import Storage
from ki_ros.data.lerobot import ExportOptions, export_dataset
from ki_ros.data.lerobot.source import open_source
from ki_ros.model.config import KIConfig
from ki_ros.rig import CameraRole
from ki_ros.training import config as configuration
from ki_ros.training.assets import open_sources
from ki_ros.training.trainer import train


class InFloat32(Reaching):
    """With values that float32 holds, as rows of a dataset do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.states, self.targets = (
            values.astype(np.float32).astype(np.float64) for values in (self.states, self.targets)
        )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of eight episodes, the fourth a failure, and its exports."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("lerobot")
    with CacheWriter(directory / "cache", Storage("raw")) as writer:
        for number in range(8):
            writer.add(str(number), "1", [InFloat32(number, "failure" if number == 3 else "success")])
        writer.commit({str(number): "1" for number in range(8)})
    for name, options in (("png", ExportOptions(images="png")), ("video", ExportOptions(codec="h264"))):
        export_dataset(open_source(directory / "cache"), directory / name, options)
    return directory


def settings(output: Path, **data: object) -> configuration.TrainConfig:
    values = tiny.settings(output, steps=3)
    values["data"] = {"held_out": 2, "action_space": "joint_position", "encoding": "raw"} | data
    model = values["model"]
    values["model"] = model | {"changes": model.get("changes", {}) | {"action_space": "joint_position"}}
    return configuration.parse(values)


def test_a_run_is_the_one_of_the_cache(work: Path, tmp_path: Path) -> None:
    kinds = {"bags": {"cache": str(work / "cache")}, "lerobot": {"directory": str(work / "png")}}
    for kind, data in kinds.items():
        train(settings(tmp_path / kind / "out", kind=kind, **data), resume=False)
    one, other = (tiny.saved(tmp_path / kind, 3) for kind in kinds)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_samples_of_videos_are_close(work: Path, tmp_path: Path) -> None:
    model = KIConfig.from_dict(KIConfig.from_preset("ki_tiny").to_dict() | {"action_space": "joint_position"})
    given = open_sources(settings(tmp_path, kind="bags", cache=str(work / "cache")), model)
    found = open_sources(settings(tmp_path, kind="lerobot", directory=str(work / "video")), model)
    assert len(given.train) == len(found.train) == 5 * 30
    for index in range(0, len(given.train), 7):
        one, other = given.train[index], found.train[index]
        np.testing.assert_array_equal(one.state, other.state)
        np.testing.assert_array_equal(one.actions, other.actions)
        assert one.instruction == other.instruction
        for role in (CameraRole.EXTERIOR_1, CameraRole.WRIST):
            assert np.abs(one.views[role].astype(int) - other.views[role]).mean() < 4


def test_command_trains_on_a_dataset(work: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    places = {"directory": str(work / "png"), "cache": str(tmp_path / "cache")}
    values = settings(tmp_path / "out", kind="lerobot", **places)
    file.write_text(yaml.safe_dump(values.to_dict()))
    arguments = {"bags": None, "set": (), "output": None, "resume": False, "dry_run": False}
    assert command(config=file, json=tmp_path / "run.json", **arguments) == 0
    assert (tmp_path / "run.json").is_file()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"features": {"state": "joints"}}, "features.state: the dataset has no feature 'joints'; it has action, idle"),
        ({"features": {"robot": "ur5"}}, "features.robot is 'ur5'"),
        ({"preset": "other"}, "data.preset is 'other'; input should be 'auto', 'ki_ros', 'droid' or 'droid_velocity'"),
        ({"features": {"outcome": "success"}, "held_outs": 1}, "data.held_outs is 1, but there is no such field"),
    ],
)
def test_what_does_not_fit_is_named(work: Path, tmp_path: Path, data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(settings(tmp_path / "out", kind="lerobot", directory=str(work / "png"), **data), resume=False)
