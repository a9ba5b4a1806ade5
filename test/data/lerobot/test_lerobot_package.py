"""LeRobot's own package opens what was exported, in an interpreter of its own: `KI_ROS_LEROBOT_PYTHON`."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest
from exported_episodes import VIEWS, Droid, Made, cached, episodes, picture

from ki_ros.data.lerobot import ExportOptions, export_dataset
from ki_ros.data.lerobot.source import open_source
from ki_ros.rig import ActionSpace

HORIZON = 6

# What runs there: all that LeRobot's loader gives, as arrays.
LOAD = """
import json, sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

root, output, horizon = sys.argv[1], sys.argv[2], int(sys.argv[3])
ahead = [row / 15 for row in range(horizon)]
dataset = LeRobotDataset("local/export", root=root, delta_timestamps={"action": ahead}, video_backend="pyav")
items = [dataset[index] for index in range(len(dataset))]
arrays = {
    name: np.stack([np.asarray(item[name]) for item in items])
    for name in items[0] if name != "task"
}
np.savez(output, **arrays)
part = LeRobotDataset("local/export", root=root, episodes=[1], video_backend="pyav")
print(json.dumps({
    "frames": len(dataset),
    "episodes": dataset.num_episodes,
    "tasks": [item["task"] for item in items],
    "robot_type": dataset.meta.robot_type,
    "fps": dataset.fps,
    "stats": {name: {key: np.asarray(value).tolist() for key, value in values.items()}
              for name, values in dataset.meta.stats.items()},
    "second": [len(part), int(part[0]["episode_index"]), part[0]["observation.state"].tolist()],
}))
"""


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter that has LeRobot."""
    path = os.environ.get("KI_ROS_LEROBOT_PYTHON", "")
    if not path:
        pytest.skip("KI_ROS_LEROBOT_PYTHON is not set; give the interpreter of an environment with lerobot 0.4")
    tried = subprocess.run(
        [path, "-c", "from lerobot.datasets.lerobot_dataset import LeRobotDataset"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    if tried.returncode:
        pytest.skip(f"KI_ROS_LEROBOT_PYTHON is {path}, which cannot load LeRobot: {tried.stderr.strip()[-200:]}")
    return path


def load(python: str, directory: Path, work: Path) -> tuple[dict, dict[str, np.ndarray]]:
    done = subprocess.run(
        [python, "-c", textwrap.dedent(LOAD), str(directory), str(work / "items.npz"), str(HORIZON)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "home"), "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(work / "items.npz") as arrays:
        return json.loads(done.stdout.splitlines()[-1]), dict(arrays)


@pytest.mark.parametrize("action_space", list(ActionSpace))
def test_lerobot_reads_every_value_and_every_pixel(python, action_space, tmp_path):
    cached(tmp_path / "cache", *episodes())
    options = ExportOptions(images="png", action_space=action_space)
    export_dataset(open_source(tmp_path / "cache"), tmp_path / "out", options)
    said, items = load(python, tmp_path / "out", tmp_path)
    given = episodes()
    assert (said["frames"], said["episodes"], said["fps"], said["robot_type"]) == (54, 5, 15, "franka_droid")
    assert said["tasks"] == [episode.instruction for episode in given for _ in range(episode.steps)]
    states = np.concatenate([episode.states for episode in given])
    np.testing.assert_array_equal(items["observation.state"], states.astype(np.float32))
    actions = np.concatenate([episode.targets for episode in given])
    if action_space is ActionSpace.JOINT_VELOCITY:
        actions[:, :7] = (actions[:, :7] - states[:, :7]) / 0.2
    lengths = [20, 13, 7, 9, 5]
    ends = np.repeat(np.cumsum(lengths), lengths)
    ahead = np.arange(54)[:, None] + np.arange(HORIZON)
    # Its chunk ends where the segment does, and holds the last action from there on.
    np.testing.assert_array_equal(items["action_is_pad"], ahead >= ends[:, None])
    held = actions[np.minimum(ahead, ends[:, None] - 1)]
    np.testing.assert_array_equal(items["action"], held.astype(np.float32))
    np.testing.assert_array_equal(items["stamp"], np.concatenate([episode.stamps_ns for episode in given]))
    np.testing.assert_array_equal(items["idle"], np.concatenate([episode.idle for episode in given]))
    assert np.flatnonzero(items["next.success"]).tolist() == [39]
    for role in VIEWS:
        pixels = np.stack([picture(e.seed, step, role) for e in given for step in range(e.steps)])
        found = np.round(items[f"observation.images.{role.value}"] * 255).astype(np.uint8)
        np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), pixels)
        mean = np.array(said["stats"][f"observation.images.{role.value}"]["mean"])
        np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)).reshape(3, 1, 1) / 255, rtol=1e-9)
    np.testing.assert_allclose(said["stats"]["action"]["std"], actions.astype(np.float32).std(0), rtol=1e-5)
    length, episode, state = said["second"]
    assert (length, episode) == (13, 1)
    np.testing.assert_array_equal(np.array(state, np.float32), states[20].astype(np.float32))


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_lerobot_decodes_each_frame_at_its_time(python, codec, test_data, tmp_path):
    """Real pictures; the loader itself refuses a frame that is more than 0.1 ms away."""
    given = [Droid(test_data / "droid_100", 0, 25), Droid(test_data / "droid_100", 1, 20)]
    cached(tmp_path / "cache", *given)
    export_dataset(open_source(tmp_path / "cache"), tmp_path / "out", ExportOptions(codec=codec))
    said, items = load(python, tmp_path / "out", tmp_path)
    assert (said["frames"], set(said["tasks"])) == (45, {episode.instruction for episode in given})
    for role in VIEWS:
        found = items[f"observation.images.{role.value}"].transpose(0, 2, 3, 1) * 255
        wanted = np.stack([episode.views(step)[role] for episode in given for step in range(episode.steps)])
        assert 10 * np.log10(255**2 / np.mean((found - wanted) ** 2)) > 38


def test_lerobot_finds_frames_at_the_end_of_the_longest_video(python, tmp_path):
    """16 minutes and 40 seconds, beyond which a file takes no further episode: the loader's times are float32."""
    long = [
        Made("long", 14_990, 1, roles=VIEWS[:1], size=(16, 16)),
        Made("last", 10, 2, roles=VIEWS[:1], size=(16, 16)),
    ]
    next_one = Made("next", 5, 3, roles=VIEWS[:1], size=(16, 16))
    cached(tmp_path / "cache", *long, next_one)
    export_dataset(open_source(tmp_path / "cache"), tmp_path / "out", ExportOptions(codec="h264"))
    script = """
    import sys
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    dataset = LeRobotDataset("local/export", root=sys.argv[1], video_backend="pyav")
    for index in [*range(0, 15_000, 1500), *range(14_950, 15_005)]:
        dataset[index]
    print(dataset.meta.get_video_file_path(1, "observation.images.exterior_1"))
    print(dataset.meta.get_video_file_path(2, "observation.images.exterior_1"))
    """
    done = subprocess.run(
        [python, "-c", textwrap.dedent(script), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [Path(line).name for line in done.stdout.split()[-2:]] == ["file-000.mp4", "file-001.mp4"]
