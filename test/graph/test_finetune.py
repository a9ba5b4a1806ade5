"""Fine-tuning as finetune.launch.py starts it: a process of its own, on recorded demonstrations, away from any arm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from waiting import wait

from ki_ros import bringup, msg
from ki_ros.nodes import topics

pytestmark = pytest.mark.graph

STATUS = f"/finetune/{topics.TRAINING_STATUS}"


class Listener(Node):
    """Hears the status of the training, and which process it is."""

    def __init__(self, **options) -> None:
        super().__init__("listener", **options)
        self.status = msg.TrainingStatus()
        self.process = 0
        self.create_subscription(msg.TrainingStatus, STATUS, self._on_status, topics.LATCHED_QOS)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_status(self, message: msg.TrainingStatus) -> None:
        self.status = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            if status.name == "trainer: training" and "process" in values:
                self.process = int(values["process"])


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of reaching, by the scripted operator."""
    from ki_ros.lockstep.collect import Collector
    from ki_ros.sim import SimulationUnavailableError
    from ki_ros.sim.tasks import Task

    directory = tmp_path_factory.mktemp("demonstrations") / "bags"
    try:
        collector = Collector(directory)
    except SimulationUnavailableError as error:
        pytest.skip(str(error))
    for seed in range(2):
        collector.collect(Task.REACH, seed)
    collector.close()
    return directory


def write_config(file: Path) -> Path:
    """A small model on those demonstrations."""
    values = {
        "output": "named by the request",
        "model": {
            "preset": "ki_tiny",
            "changes": {
                "action_space": "joint_position",
                "vision": {"width": 16, "depth": 1, "heads": 2, "mlp": 24, "image_size": 28, "patch_size": 14},
            },
        },
        "data": {"kind": "bags", "directory": ".", "held_out": 0, "action_space": "joint_position", "build_workers": 1},
        "norm_minimum_range": 0.1,
        "optimizer": {"warmup_steps": 1},
        "fast_vocab_size": 300,
        "batch_size": 2,
        "precision": "float32",
        "device": "cpu",
        "ema_decay": None,
        "log_every": 1,
        "workers": 0,
        "tensorboard": False,
    }
    file.write_text(json.dumps(values))
    return file


@pytest.mark.usefixtures("domain")
def test_the_training_of_a_node_that_is_killed_saves_and_ends(spinner, bags: Path, tmp_path: Path) -> None:
    listener = Listener(context=spinner.context)
    spinner.start(listener)
    output = tmp_path / "a run"
    settings = bringup.parse(
        {
            "bags": str(bags),
            "config": str(write_config(tmp_path / "run.yaml")),
            "output": str(output),
            "overrides": "steps=1000000 optimizer.learning_rate=1e-4",
            "niceness": "1",
        },
        bringup.FinetuneSettings,
    )
    description = bringup.describe_finetune(settings)
    (parameters,) = description.parameters
    file = tmp_path / "parameters.yaml"
    file.write_text(yaml.safe_dump({f"{description.namespace}/{description.name}": {"ros__parameters": parameters}}))
    names = ["-r", f"__node:={description.name}", "-r", f"__ns:={description.namespace}"]
    node = subprocess.Popen(
        [sys.executable, "-m", description.module, "--ros-args", *names, "--params-file", str(file)],
        env=os.environ | bringup.environment(sim=False) | {"OMP_NUM_THREADS": "1"},
    )

    def check() -> None:
        assert node.poll() is None, "the node ended"
        assert listener.status.state in (msg.TrainingStatus.IDLE, msg.TrainingStatus.RUNNING), listener.status.message

    try:
        wait(lambda: listener.status.step > 1, "training step", 120.0, check)
        wait(lambda: listener.process, "process of the training", 20.0, check)
        assert not listener.count_publishers(f"/{topics.ACTION_CHUNK}"), "nothing is served to an arm"
        assert (os.getpriority(os.PRIO_PROCESS, listener.process)) >= 1
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait()
    wait(lambda: not running(listener.process), "end of the training", 60.0)
    state = json.loads((output / "status.json").read_text())
    assert state["phase"] == "stopped"
    assert state["step"] >= listener.status.step
    assert (output / "checkpoints" / f"step_{state['step']:08d}" / "model.safetensors").is_file()


def running(process: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody waits for is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
