"""The commands as a person types them: real processes, real Fast DDS, real MuJoCo, a real episode."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors.torch import save_file
from waiting import PATIENCE, wait

pytestmark = [pytest.mark.graph, pytest.mark.usefixtures("domain")]

ROOT = Path(__file__).resolve().parents[2]


def ki_ros(*arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ki_ros.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        **options,
    )


def finish(process: subprocess.Popen) -> str:
    try:
        return process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"not over after {PATIENCE:g} s:\n{process.communicate()[0][-3000:]}")


def test_demo(tmp_path):
    pytest.importorskip("mujoco", reason="needs mujoco: run scripts/setup")
    process = ki_ros("demo", "--seconds", 4, "--output", tmp_path)
    output = finish(process)
    assert process.returncode == 0, output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["limit_violations"] == 0
    assert report["joint_travel_rad"] > 0.1, "the arm must move"
    assert report["executing_share"] > 0.5
    assert report["observation_hz"] > 0.8 * report["camera_hz"]
    assert report["chunk_hz"] > 1
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*")), "no temporary file may stay"


def test_a_demo_that_fails_shows_what_its_own_nodes_said(tmp_path):
    pytest.importorskip("mujoco", reason="needs mujoco: run scripts/setup")
    for name in ("nowhere", "elsewhere"):
        process = ki_ros("demo", "--output", tmp_path / "out", "--checkpoint", tmp_path / name)
        output = finish(process)
        assert process.returncode == 1
        assert f"{tmp_path / name} does not exist" in output
        assert "[policy]" in output
    assert "nowhere" not in output


def test_replay_of_a_real_episode(test_data, tmp_path):
    graph = ki_ros("up", "--params-file", ROOT / "config" / "droid_replay.yaml")
    try:
        process = ki_ros("replay", test_data / "droid_100", "--episode", 0, "--json", tmp_path / "replay.json")
        output = finish(process)
    finally:
        graph.send_signal(signal.SIGINT)
        said = finish(graph)
    assert process.returncode == 0, output + said
    figures = json.loads((tmp_path / "replay.json").read_text())
    assert figures["observed_share"] >= 0.95
    assert figures["chunks"] > 0
    assert figures["finite_chunks"] == figures["chunks"]
    assert graph.returncode == 0, said


def test_replay_without_images_is_refused(test_data):
    process = ki_ros("replay", test_data / "droid_100", "--episode", 9)
    output = finish(process)
    assert process.returncode == 1
    assert "episode_009 has no images" in output


def wrong_shape(directory: Path) -> Path:
    """A checkpoint of the tiny preset with one tensor of a wrong shape."""
    from ki_ros.model import KIConfig, KIModel

    tensors = {
        name: tensor.contiguous() for name, tensor in KIModel(KIConfig.from_preset("ki_tiny")).state_dict().items()
    }
    tensors["action_in_proj.weight"] = tensors["action_in_proj.weight"][:, :5].contiguous()
    path = directory / "model.safetensors"
    save_file(tensors, path)
    shutil.copy(ROOT / "models" / "ki_tiny" / "untrained" / "norm_stats.json", directory)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda _: ["--sim", "--preset", "pi07"], "preset 'pi07'"),
        (lambda d: ["--preset", "ki_tiny", "--device", "cpu", "--checkpoint", wrong_shape(d)], "action_in_proj.weight"),
        (lambda d: ["--preset", "ki_tiny", "--device", "cpu", "--checkpoint", d / "nowhere"], "nowhere"),
        (lambda _: ["--robot", "ur5"], "ur5"),
        (lambda d: ["--params-file", misspelt(d)], "did you mean 'max_spread'"),
        (lambda _: ["--controller", "teleport"], "teleport"),
    ],
    ids=["preset", "checkpoint shape", "checkpoint path", "robot", "parameter key", "controller"],
)
def test_a_wrong_setting_stops_the_graph_and_is_named(tmp_path, arguments, message):
    process = ki_ros("up", *arguments(tmp_path))
    output = finish(process)
    assert process.returncode == 1, output
    assert message in output
    assert "Traceback" not in output, output


def misspelt(directory: Path) -> Path:
    file = directory / "params.yaml"
    file.write_text("observation:\n  ros__parameters:\n    max_spred: 0.1\n")
    return file


def test_untrained_weights_are_refused_on_a_rig():
    process = ki_ros("up", "--preset", "ki_tiny", "--params-file", ROOT / "config" / "droid_zed.yaml")
    output = finish(process)
    assert process.returncode == 1
    assert "untrained weights move the arm at random" in output


def test_every_setting_is_known_to_the_nodes_and_ctrl_c_ends_them():
    """With every topic and name set, no node may find a parameter that it does not know."""
    pytest.importorskip("mujoco", reason="needs mujoco: run scripts/setup")
    process = ki_ros(
        *("up", "--sim", "--robot", "fr3", "--instruction", "wave", "--device", "cpu"),
        *("--exterior-1-topic", "/a", "--exterior-2-topic", "/b", "--wrist-topic", "/c"),
        *("--joint-states-topic", "/d", "--gripper-topic", "/e"),
        *("--controller", "joint_trajectory", "--controller-topic", "/f", "--gripper-controller-topic", "/g"),
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()

    def executing() -> bool:
        assert process.poll() is None, "".join(lines)
        return any(line.endswith("[executor]: executing\n") for line in list(lines))

    try:
        wait(executing, "execution")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        reader.join()
        print("".join(lines))
