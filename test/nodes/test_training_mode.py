"""The policy node's training mode: runs that are followed, stopped, resumed, found dead; loading in place."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run scripts/setup")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

import torch
from training_graph import INSTRUCTION, ROLES, STATE, Graph, picture, record, write_config

from ki_ros import msg
from ki_ros.model.checkpoint import save_checkpoint
from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel
from ki_ros.policy import Policy, model_directory
from ki_ros.rig import ActionSpace

IDLE, RUNNING, DONE, FAILED, STOPPED = (
    getattr(msg.TrainingStatus, name) for name in ("IDLE", "RUNNING", "DONE", "FAILED", "STOPPED")
)
DISABLED, HOLDING = msg.ExecutorStatus.DISABLED, msg.ExecutorStatus.HOLDING


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "bags"
    for number in range(3):
        record(directory / f"reach_{number}", number)
    return directory


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config") / "run.yaml")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that act, and such as must not be loaded."""
    directory = tmp_path_factory.mktemp("checkpoints")
    base = KIConfig.from_preset("ki_tiny")
    short = replace(base, action_horizon=10)
    configs = {"good": base, "short": short, "positions": replace(base, action_space=ActionSpace.JOINT_POSITION)}
    for name, settings in configs.items():
        torch.manual_seed(7)
        save_checkpoint(KIModel(settings), directory / name)
        for file in ("untrained/norm_stats.json", "tokenizer.model"):
            shutil.copy(model_directory("ki_tiny") / file, directory / name)
    for name in ("truncated", "without statistics"):
        shutil.copytree(directory / "good", directory / name)
    weights = directory / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (directory / "without statistics" / "norm_stats.json").unlink()
    return {path.name: path for path in directory.iterdir()}


@pytest.fixture(scope="module")
def graph() -> Iterator[Graph]:
    graph = Graph()
    yield graph
    graph.close()


def expected(checkpoint: Path) -> np.ndarray:
    """The first chunk of a checkpoint, by a policy of this process."""
    policy = Policy.load(checkpoint=checkpoint, num_steps=2, seed=0)
    return policy.infer(dict.fromkeys(ROLES, picture(1)), STATE, INSTRUCTION).astype(np.float32)


def test_a_run_is_stopped_resumed_and_done_and_its_checkpoint_acts(
    graph: Graph, bags: Path, config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    request = {"bags": str(bags), "config": str(config), "output": str(output)}
    endless = request | {"overrides": ["save_every=3", "steps=1000000"]}
    assert graph.status.state == IDLE
    assert math.isnan(graph.status.loss)
    before = graph.answer()

    answer = graph.train(**endless)
    assert answer.success, answer.message
    assert answer.output == str(output)
    again = graph.train(**endless | {"output": str(tmp_path / "other")})
    assert not again.success
    assert str(output) in again.message
    assert not (tmp_path / "other").exists()
    graph.until(lambda: graph.status.state == RUNNING and graph.status.checkpoint, "a checkpoint")
    assert graph.status.steps == 1000000
    assert graph.status.seconds_left > 0
    assert graph.stop().success
    stopped = graph.reach(STOPPED)
    assert stopped.checkpoint.endswith(f"step_{stopped.step:08d}"), "what was done is saved"
    assert not graph.stop().success
    refused = graph.train(**endless)
    assert not refused.success
    assert "resume" in refused.message
    assert graph.status.state == STOPPED, "what was refused is no run"

    first = len(graph.statuses)
    assert graph.train(**request | {"overrides": [f"steps={stopped.step + 2}"]}, resume=True).success
    status = graph.reach(DONE)
    during = graph.statuses[first:-1]
    assert {status.state for status in during} == {RUNNING}
    assert {status.phase for status in during} <= {"reading", "preparing", "training"}
    assert [status.step for status in during] == sorted(status.step for status in during)
    assert status.step == status.steps == stopped.step + 2
    figures = (status.loss, status.flow_loss, status.fast_loss, status.samples_per_second)
    assert all(math.isfinite(value) and value > 0 for value in figures)
    assert math.isfinite(status.held_out_action_error)
    assert status.checkpoint == str(output / "checkpoints" / f"step_{status.step:08d}")
    graph.until(lambda: graph.figure("training", "phase") == "done", "the end in the diagnostics")
    assert graph.figure("training", "checkpoint") == status.checkpoint

    assert graph.figure("policy", "loaded_in_place") == "0", "nothing is loaded before somebody asks for it"
    loaded = graph.load()
    assert loaded.success, loaded.message
    assert status.checkpoint in loaded.message
    after = graph.answer()
    np.testing.assert_array_equal(after, expected(Path(status.checkpoint)))
    assert np.abs(after - before).max() > 1e-3


def test_a_run_that_cannot_be_is_refused_or_fails_with_the_reason(
    graph: Graph, bags: Path, config: Path, tmp_path: Path
) -> None:
    request = {"bags": str(bags), "config": str(config), "output": str(tmp_path / "run")}
    for change, reason in (
        ({"bags": ""}, "bags is empty"),
        ({"bags": str(tmp_path / "nowhere")}, "nowhere"),
        ({"config": str(tmp_path / "none.yaml")}, "none.yaml"),
        ({"overrides": ["stepps=3"]}, "stepps"),
        ({"overrides": ["steps"]}, "field=value"),
        ({"checkpoint": str(tmp_path / "gone")}, "gone"),
    ):
        answer = graph.train(**request | change)
        assert not answer.success
        assert reason in answer.message
    assert not (tmp_path / "run").exists()

    # What only the trainer finds out.
    (tmp_path / "empty").mkdir()
    assert graph.train(**request | {"bags": str(tmp_path / "empty")}).success
    status = graph.reach(FAILED)
    assert str(tmp_path / "empty") in status.message
    assert "Traceback" not in status.message
    graph.until(lambda: graph.figure("training", "phase") == "failed", "the end in the diagnostics")

    # What nobody finds out in time.
    assert graph.train(**request).success
    graph.until(lambda: graph.figure("training", "phase") == "preparing", "the process in the diagnostics")
    os.kill(int(graph.figure("training", "process")), signal.SIGKILL)
    status = graph.reach(FAILED)
    assert "SIGKILL" in status.message
    assert "train.log" in status.message


def test_a_checkpoint_that_must_not_be_loaded_leaves_the_one_in_use(graph: Graph, checkpoints: dict[str, Path]) -> None:
    assert graph.load(checkpoints["good"]).success
    for name, reason in (
        ("truncated", "model.safetensors"),
        ("without statistics", "norm_stats.json"),
        ("positions", "joint_position"),
        ("nowhere", "nowhere"),
    ):
        answer = graph.load(checkpoints.get(name, Path("nowhere")))
        assert not answer.success
        assert reason in answer.message
        assert "good" in answer.message, "what goes on is named"
    np.testing.assert_array_equal(graph.answer(), expected(checkpoints["good"]))


def test_nothing_is_loaded_while_the_executor_may_move_the_arm(graph: Graph, checkpoints: dict[str, Path]) -> None:
    with graph.executor(None):
        silent = graph.load(checkpoints["good"])
    assert not silent.success
    assert "nothing" in silent.message
    with graph.executor(HOLDING):
        answer = graph.load(checkpoints["good"])
    assert not answer.success
    assert "/enable" in answer.message
    with graph.executor(DISABLED):
        answer = graph.load(checkpoints["good"])
    assert answer.success, answer.message


def test_what_is_being_computed_by_the_checkpoint_before_is_not_published(checkpoints: dict[str, Path]) -> None:
    """Replaced while observations come without pause, until a replacement has fallen into an inference."""
    # Of the reference, which is not compared with anything: then a replacement is made while an inference goes on.
    graph = Graph(num_steps=100, engine="reference")
    try:
        timer = graph.other.create_timer(0.02, graph.observe)
        replacements = 0
        for name, horizon in (("short", 10), ("good", 15)) * 20:
            assert graph.load(checkpoints[name]).success
            replacements += 1
            after = graph.sequence
            graph.until(lambda n=after: graph.chunks and graph.chunks[-1].observation_sequence > n, "a chunk")
            assert graph.chunks[-1].horizon == horizon
            if replacements >= 4 and int(graph.figure("policy", "other_policy")) > 0:
                break
        graph.other.destroy_timer(timer)
        graph.until(lambda: graph.figure("policy", "loaded_in_place") == str(replacements), "the diagnostics")
        assert int(graph.figure("policy", "other_policy")) > 0
    finally:
        graph.close()


def test_without_a_policy_there_is_none_to_replace(checkpoints: dict[str, Path]) -> None:
    graph = Graph(autostart=False)
    try:
        answer = graph.load(checkpoints["good"])
    finally:
        graph.close()
    assert not answer.success
    assert "configure" in answer.message
