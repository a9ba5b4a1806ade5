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

import numpy as np
import pytest
from processes import Participant
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future
from safetensors.torch import save_file
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory
from waiting import PATIENCE, wait

from ki_ros import msg, rig, srv
from ki_ros.nodes import topics
from ki_ros.nodes.executor import ExecutorNode

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


class Bystander(Node):
    """An arm that stands still, and what comes to a graph: instructions, and joint states under the drivers' name."""

    def __init__(self, **options) -> None:
        super().__init__("bystander", **options)
        self.epochs: list[str] = []
        self.joint_states = 0
        self.holding = False
        self._publisher = self.create_publisher(JointState, "/arm/joint_states", topics.SENSOR_QOS)
        self.create_subscription(Float64MultiArray, "/forward_position_controller/commands", lambda _: None, 1)
        self.create_subscription(msg.Epoch, topics.EPOCH, lambda m: self.epochs.append(m.instruction), 10)
        self.create_subscription(JointState, "/joint_states", self._on_joint_state, 10)
        self.create_subscription(msg.ExecutorStatus, topics.EXECUTOR_STATUS, self._on_status, topics.COMMAND_QOS)
        self.create_timer(0.01, self._publish)

    def _publish(self) -> None:
        state = JointState(name=list(rig.PANDA.joint_names), position=list(rig.RESET_JOINT_POSITIONS))
        state.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(state)

    def _on_joint_state(self, _message: JointState) -> None:
        self.joint_states += 1

    def _on_status(self, message: msg.ExecutorStatus) -> None:
        self.holding = message.state == msg.ExecutorStatus.HOLDING


def test_replay_into_a_graph_that_may_move_an_arm_is_refused(test_data, domain):
    """Before anything of it is published, the instruction included."""
    values = {"enabled_at_start": True, "joint_states_topic": "/arm/joint_states"}
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    executor = Participant(domain, lambda context: ExecutorNode(context=context, parameter_overrides=overrides))
    bystander = Participant(domain, Bystander)
    try:
        wait(lambda: bystander.node.holding, "an executor that is enabled")
        process = ki_ros("replay", test_data / "droid_100", "--episode", 0)
        output = finish(process)
    finally:
        executor.destroy()
        bystander.destroy()
    assert process.returncode == 1
    assert "the executor is enabled; disable it first" in output
    assert bystander.node.epochs == []
    assert bystander.node.joint_states == 0


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


@pytest.mark.parametrize("name", ["droid_zed.yaml", "droid_realsense.yaml"])
def test_the_file_of_a_rig_drives_the_simulated_one(domain, name):
    """As the README has it before a first try on the rig: the same topics, the same controller, enabled by hand."""
    pytest.importorskip("mujoco", reason="needs mujoco: run scripts/setup")
    process = ki_ros(
        *("up", "--sim", "--params-file", ROOT / "config" / name),
        *("--checkpoint", ROOT / "models" / "ki_tiny", "--device", "cpu", "--robot", "fr3"),
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    operator = Participant(domain, Operator)

    def check() -> None:
        assert process.poll() is None, "".join(lines)

    try:
        wait(lambda: operator.node.asked("wave") and operator.node.enabled(), "answer of the executor", check=check)
        wait(lambda: operator.node.travel() > 0.1, "motion of the arm", check=check)
        assert operator.node.trajectories > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        operator.destroy()
        process.kill()
        reader.join()
        print("".join(lines))


class Operator(Node):
    """Asks for an instruction and enables the executor, until it agrees, and watches an FR3's own joint states."""

    def __init__(self, **options) -> None:
        super().__init__("operator", **options)
        self.trajectories = 0
        self._positions: list[list[float]] = []
        self._set_instruction = self.create_client(srv.SetInstruction, topics.SET_INSTRUCTION)
        self._enable = self.create_client(SetBool, topics.ENABLE)
        self._futures: dict[str, Future] = {}
        self.create_subscription(JointState, "/franka/joint_states", self._on_state, topics.SENSOR_QOS)
        trajectory_topic = "/joint_trajectory_controller/joint_trajectory"
        self.create_subscription(JointTrajectory, trajectory_topic, self._on_trajectory, topics.COMMAND_QOS)

    def asked(self, instruction: str) -> bool:
        return self._agrees(self._set_instruction, srv.SetInstruction.Request(instruction=instruction))

    def enabled(self) -> bool:
        return self._agrees(self._enable, SetBool.Request(data=True))

    def travel(self) -> float:
        """The longest way between two states of a joint [rad]."""
        positions = np.array(self._positions[:])
        return float(np.ptp(positions, axis=0).max()) if len(positions) else 0.0

    def _agrees(self, client, request) -> bool:
        future = self._futures.get(client.srv_name)
        if future is not None and future.done() and future.result().success:
            return True
        if client.service_is_ready() and (future is None or future.done()):
            self._futures[client.srv_name] = client.call_async(request)
        return False

    def _on_state(self, message: JointState) -> None:
        assert tuple(message.name) == rig.FR3.joint_names
        self._positions.append(list(message.position))

    def _on_trajectory(self, _: JointTrajectory) -> None:
        self.trajectories += 1


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
