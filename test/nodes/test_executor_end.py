"""How the executor's process ends: a controller that goes on at its last velocity is told zero, whatever ends it."""

from __future__ import annotations

import array
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from spinning import spin_until  # noqa: E402
from std_msgs.msg import Empty, Float64MultiArray  # noqa: E402

from ki_ros import msg  # noqa: E402
from ki_ros.nodes import stamps, topics  # noqa: E402
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
VELOCITIES = "/forward_velocity_controller/commands"
PATIENCE = 60.0
CRUISE = 0.2 * 0.3 * 15
"""Speed that the chunks ask for [rad/s]."""


NODE = ("-m", "ki_ros.nodes.executor")
FAILING = """
from std_msgs.msg import Empty
from ki_ros.nodes.executor import ExecutorNode
from ki_ros.nodes.run import run

class Failing(ExecutorNode):
    def __init__(self):
        super().__init__()
        self.create_subscription(Empty, "fail", self.fail, 1)

    def fail(self, _):
        raise LookupError("on purpose")

run(Failing, ended=Failing.come_to_rest)
"""


class Arm:
    """An arm driven by velocities, and a policy that waves one joint, around an executor in a process of its own.

    Args:
        program: arguments of the interpreter that make it the executor's process.
    """

    def __init__(self, program: tuple[str, ...] = NODE) -> None:
        domain = random.SystemRandom().randint(1, 100)
        environment = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
        os.environ.update(environment)
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = Node("arm", context=self.context)
        self.spinner = SingleThreadedExecutor(context=self.context)
        self.spinner.add_node(self.node)
        self.position, self.velocity = np.array(RESET_JOINT_POSITIONS), np.zeros(7)
        self.then = time.monotonic()
        self.heard: list[np.ndarray] = []
        self.stamps: list[float] = []
        self.epoch = self.sequence = 0
        self.states = self.node.create_publisher(JointState, "/joint_states", topics.SENSOR_QOS)
        self.failures = self.node.create_publisher(Empty, "fail", 1)
        self.chunks = self.node.create_publisher(msg.ActionChunk, topics.ACTION_CHUNK, topics.NEWEST_QOS)
        self.node.create_subscription(Float64MultiArray, VELOCITIES, self._on_velocities, QoSProfile(depth=1000))
        self.node.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, QoSProfile(depth=1000))
        self.node.create_subscription(msg.Epoch, topics.EPOCH, self._on_epoch, topics.LATCHED_QOS)
        self.node.create_timer(0.01, self._move)
        self.node.create_timer(1 / 15, self._chunk)
        self.process = subprocess.Popen(
            [
                *(sys.executable, *program, "--ros-args", "-p", "controller:=forward_velocity"),
                *("-p", "enabled_at_start:=true", "-p", "instruction:=wave"),
                # As long as a busy machine needs: the arm must be in motion when the signal comes.
                *("-p", "max_joint_state_age:=1.0", "-p", "max_chunk_gap:=2.0", "-p", "chunk_gap_intervals:=0.0"),
            ],
            env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.spinner.shutdown()
        self.node.destroy_node()
        self.context.shutdown()

    def until(self, condition, what: str) -> None:
        spin_until(self.spinner, condition, what, PATIENCE)

    def _on_velocities(self, message: Float64MultiArray) -> None:
        self.velocity = np.array(message.data)
        self.heard.append(self.velocity)

    def _on_command(self, message: JointState) -> None:
        self.stamps.append(stamps.from_message(message.header.stamp) / 1e9)

    def _on_epoch(self, message: msg.Epoch) -> None:
        self.epoch = message.id

    def _move(self) -> None:
        then, self.then = self.then, time.monotonic()
        self.position = self.position + (self.then - then) * self.velocity
        message = JointState(name=list(PANDA.joint_names), position=self.position.tolist())
        message.header.stamp = self.node.get_clock().now().to_msg()
        self.states.publish(message)

    def _chunk(self) -> None:
        if not self.epoch:
            return
        self.sequence += 1
        # Away from where it is and back, so that the motion never ends.
        action = [-0.3 if self.position[6] > 0.4 else 0.3 if self.position[6] < -0.4 else self._way(), 0.0]
        row = [0.0] * 6 + action
        message = msg.ActionChunk(observation_sequence=self.sequence, epoch=self.epoch, dt=1 / 15)
        message.action_space, message.horizon, message.action_dim = "joint_velocity", 15, 8
        message.actions = array.array("f", row * 15)
        message.header.stamp = self.node.get_clock().now().to_msg()
        self.chunks.publish(message)

    def _way(self) -> float:
        return -0.3 if self.velocity[6] < 0 else 0.3

    @property
    def fast(self) -> bool:
        return bool(self.heard) and abs(self.heard[-1][6]) > 0.7 * CRUISE


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT,) * 2],
    ids=["SIGINT", "SIGTERM", "SIGINT twice"],
)
def test_the_arm_is_braked_and_told_zero_at_the_end(numbers):
    def end(arm: Arm) -> None:
        for number in numbers:
            arm.process.send_signal(number)

    output = ends_braked(NODE, end, status=0)
    assert "Traceback" not in output


def test_the_arm_is_braked_and_told_zero_where_a_callback_fails():
    output = ends_braked(("-c", FAILING), lambda arm: arm.failures.publish(Empty()), status=1)
    assert "LookupError: on purpose" in output


def ends_braked(program: tuple[str, ...], end: Callable[[Arm], object], *, status: int) -> str:
    """Ends the executor in motion and sees that the arm is braked; what the process has written."""
    for _ in range(5):
        steps, pause, output = end_in_motion(program, end, status)
        # An executor that did not get to run for five periods starts from rest again, on a machine that is busy.
        if pause < 0.04:
            # Braked rather than stopped dead: a joint's limit allows 0.15 to 0.2 rad/s in a period.
            assert steps.max() < 0.3
            return output
    pytest.skip("this machine is too busy to tell how the arm is braked")


def end_in_motion(program: tuple[str, ...], end: Callable[[Arm], object], status: int) -> tuple[np.ndarray, float, str]:
    """Steps of the joint's velocity from the end on [rad/s], the longest time between commands, and the output."""
    arm = Arm(program)
    try:
        arm.until(lambda: arm.fast, "motion")
        before, commands = len(arm.heard), len(arm.stamps)
        end(arm)
        arm.until(lambda: arm.process.poll() is not None, "the end of the process")
        output = arm.process.stdout.read()
        assert arm.process.returncode == status, output
        arm.until(lambda: not arm.heard[-1].any(), "zeros at the end")
    finally:
        arm.close()
    steps = np.abs(np.diff([velocity[6] for velocity in arm.heard[before - 1 :]]))
    return steps, max(np.diff(arm.stamps[max(commands - 5, 0) :]), default=0.0), output
