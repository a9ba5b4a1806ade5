"""What the arm's controllers are sent, over Fast DDS: by the adapters, and by the executor node."""

from __future__ import annotations

import array
import os
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402

from ki_ros import msg  # noqa: E402
from ki_ros.execution.executor import Tick  # noqa: E402
from ki_ros.execution.guard import Guard  # noqa: E402
from ki_ros.execution.state import Reason, State  # noqa: E402
from ki_ros.nodes import topics  # noqa: E402
from ki_ros.nodes.controllers import ARMS  # noqa: E402
from ki_ros.nodes.executor import ExecutorNode, Parameters  # noqa: E402
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS  # noqa: E402

pytestmark = pytest.mark.graph

VELOCITIES, TARGETS = "/forward_velocity_controller/commands", "/target_joint"
RESET = np.array(RESET_JOINT_POSITIONS)
SPEED = np.linspace(-0.3, 0.3, 7)
PATIENCE = 15.0


@pytest.fixture(scope="module")
def context():
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=random.SystemRandom().randint(1, 100))
    yield context
    rclpy.shutdown(context=context)


class Listener:
    """Hears what the controllers hear, and plays the arm: a perfect one, that goes where and as fast as it is told."""

    def __init__(self, context) -> None:
        self.node = Node("listener", context=context)
        self.spinner = SingleThreadedExecutor(context=context)
        self.spinner.add_node(self.node)
        self.velocities: list[np.ndarray] = []
        self.targets: list[JointState] = []
        self.commands: list[JointState] = []
        self.states: list[int] = []
        self.epoch = 0
        self.q, self.speed, self._moved_at = RESET.copy(), np.zeros(7), time.monotonic()
        listen = [
            (Float64MultiArray, VELOCITIES, self._on_velocities),
            (JointState, TARGETS, self._on_target),
            (JointState, topics.JOINT_COMMAND, self.commands.append),
            (msg.ExecutorStatus, topics.EXECUTOR_STATUS, lambda m: self.states.append(m.state)),
        ]
        for kind, name, callback in listen:
            self.node.create_subscription(kind, name, callback, topics.COMMAND_QOS)
        self.node.create_subscription(msg.Epoch, topics.EPOCH, self._on_epoch, topics.LATCHED_QOS)

    def _on_epoch(self, message: msg.Epoch) -> None:
        self.epoch = message.id

    def _on_velocities(self, message: Float64MultiArray) -> None:
        self.move()
        self.speed = np.array(message.data)
        self.velocities.append(self.speed)

    def _on_target(self, message: JointState) -> None:
        self.targets.append(message)
        self.q = np.array(message.position)

    def move(self) -> None:
        now = time.monotonic()
        self.q = self.q + self.speed * (now - self._moved_at)
        self._moved_at = now

    def until(self, condition, what: str = "") -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            self.spinner.spin_once(timeout_sec=0.02)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.spinner.spin_once(timeout_sec=0.01)

    def close(self) -> None:
        self.spinner.shutdown()
        self.node.destroy_node()


@pytest.fixture
def listener(context):
    made = Listener(context)
    yield made
    made.close()


# The adapters


def executor(measured: np.ndarray | None) -> SimpleNamespace:
    """What an adapter knows of it."""
    return SimpleNamespace(robot=PANDA, guard=Guard(PANDA), measured=SimpleNamespace(positions=measured))


@pytest.fixture
def adapter(context, listener):
    """Makes the adapter of a controller, whose messages are heard."""
    nodes = []

    def make(controller: str, measured: np.ndarray | None = None):
        node = Node("sender", context=context)
        nodes.append(node)
        node.parameters = Parameters(controller=controller)
        arm = ARMS[controller](node, executor(measured))
        listener.until(lambda: node.count_subscribers(arm.topic), "the listener")
        return arm

    yield make
    for node in nodes:
        node.destroy_node()


def tick(positions=RESET, velocities=None) -> Tick:
    state = (State.HOLDING, Reason.NO_INSTRUCTION) if velocities is None else (State.EXECUTING, Reason.NONE)
    return Tick(*state, 1, np.array(positions), np.zeros(7) if velocities is None else velocities)


def test_velocities_of_motion_and_rest(adapter, listener):
    arm = adapter("forward_velocity", measured=RESET)
    for command in (tick(), tick(RESET + 0.01 * SPEED, SPEED), tick(RESET + 0.01 * SPEED)):
        arm(command)
    listener.until(lambda: len(listener.velocities) == 3, "three messages")
    np.testing.assert_allclose(listener.velocities, [np.zeros(7), SPEED, np.zeros(7)], atol=1e-12)


def test_velocities_bring_the_arm_back_to_its_command(adapter, listener):
    arm = adapter("forward_velocity", measured=RESET - 0.01)
    for command in (tick(), tick(RESET + 0.01 * SPEED, SPEED)):
        arm(command)
    listener.until(lambda: len(listener.velocities) == 2, "two messages")
    assert not listener.velocities[0].any()
    assert np.all((listener.velocities[1] > SPEED) == (SPEED != 0))


def test_velocities_end_with_one_message_of_zeros(adapter, listener):
    arm = adapter("forward_velocity")
    # Nothing has been sent: the controller may be somebody else's.
    arm.stop()
    arm(tick(RESET, SPEED))
    arm.stop()
    arm.stop()
    listener.until(lambda: len(listener.velocities) == 2, "two messages")
    listener.spin(0.2)
    np.testing.assert_array_equal(listener.velocities, [SPEED, np.zeros(7)])


def test_targets_have_names_positions_and_velocities(adapter, listener):
    adapter("joint_impedance")(tick(RESET, SPEED))
    listener.until(lambda: listener.targets, "a target")
    (target,) = listener.targets
    assert tuple(target.name) == PANDA.joint_names
    np.testing.assert_array_equal(target.position, RESET)
    np.testing.assert_array_equal(target.velocity, SPEED)
    assert target.header.stamp.sec > 0


def test_the_last_target_is_left_without_a_velocity(adapter, listener):
    arm = adapter("joint_impedance")
    arm.stop()
    arm(tick(RESET, SPEED))
    arm.stop()
    arm.stop()
    listener.until(lambda: len(listener.targets) == 2, "two targets")
    listener.spin(0.2)
    assert len(listener.targets) == 2
    np.testing.assert_array_equal(listener.targets[-1].position, RESET)
    assert not any(listener.targets[-1].velocity)


# The executor node


class Graph:
    """The executor node, with an arm and a policy that never stops moving it."""

    def __init__(self, context, listener: Listener, controller: str) -> None:
        values = {"controller": controller, "instruction": "wave", "enabled_at_start": True}
        self.node = ExecutorNode(
            context=context, parameter_overrides=[Parameter(name, value=value) for name, value in values.items()]
        )
        self.listener, other = listener, listener.node
        listener.spinner.add_node(self.node)
        self._sequence = 0
        self.policy_on = True
        self._joints = other.create_publisher(JointState, "/joint_states", topics.SENSOR_QOS)
        self._chunks = other.create_publisher(msg.ActionChunk, topics.ACTION_CHUNK, topics.NEWEST_QOS)
        self.enable = other.create_client(SetBool, topics.ENABLE)
        self._timers = [other.create_timer(0.01, self._on_joints), other.create_timer(1 / 15, self._on_policy)]

    def _on_joints(self) -> None:
        self.listener.move()
        message = JointState(name=list(PANDA.joint_names), position=self.listener.q.tolist())
        message.header.stamp = self.listener.node.get_clock().now().to_msg()
        self._joints.publish(message)

    def _on_policy(self) -> None:
        if not self.policy_on or self.listener.epoch == 0:
            return
        self._sequence += 1
        # There and back again.
        action = [0.05 if self._sequence // 15 % 2 else -0.05] * 7 + [0.0]
        chunk = msg.ActionChunk(action_space="joint_velocity", dt=1 / 15, horizon=15, action_dim=8)
        chunk.observation_sequence, chunk.epoch = self._sequence, self.listener.epoch
        chunk.actions = array.array("f", action * 15)
        chunk.header.stamp = self.listener.node.get_clock().now().to_msg()
        self._chunks.publish(chunk)

    def disable(self) -> None:
        self.listener.until(self.enable.service_is_ready, "the service")
        future = self.enable.call_async(SetBool.Request(data=False))
        self.listener.until(future.done, "the answer")
        assert future.result().success

    def close(self) -> None:
        for timer in self._timers:
            self.listener.node.destroy_timer(timer)
        self.node.destroy_node()


@pytest.fixture
def graph(context, listener):
    graphs = []

    def make(controller: str) -> Graph:
        graphs.append(Graph(context, listener, controller))
        return graphs[-1]

    yield make
    for made in graphs:
        made.close()


def test_a_held_executor_goes_on_sending_zero_velocities(graph, listener):
    g = graph("forward_velocity")
    listener.until(lambda: any(v.any() for v in listener.velocities), "motion")
    g.policy_on = False
    listener.until(lambda: not np.any(listener.velocities[-10:]), "the hold")
    assert listener.states[-1] == msg.ExecutorStatus.HOLDING
    stands, heard = listener.q.copy(), len(listener.velocities)
    listener.until(lambda: len(listener.velocities) > heard + 30, "more zeros")
    assert not np.any(listener.velocities[heard:])
    np.testing.assert_array_equal(listener.q, stands)


def test_an_arm_that_is_sent_velocities_keeps_to_its_commands(graph, listener):
    graph("forward_velocity")
    listener.until(lambda: any(v.any() for v in listener.velocities), "motion")
    apart = []
    listener.commands.clear()
    for _ in range(60):
        heard = len(listener.commands)
        listener.until(lambda heard=heard: len(listener.commands) > heard + 5, "commands")
        listener.move()
        apart.append(np.abs(np.array(listener.commands[-1].position[:7]) - listener.q).max())
    # Steps of 0.01 rad relative to the arm: uncorrected it would be several of them away by now.
    assert np.median(apart) < 0.03, apart


@pytest.mark.parametrize("controller", ["forward_velocity", "joint_impedance"])
def test_disabling_leaves_no_velocity_behind(graph, listener, controller):
    g = graph(controller)
    heard = listener.velocities if controller == "forward_velocity" else listener.targets

    def velocities(message) -> list[float]:
        return list(message.velocity if controller == "joint_impedance" else message)

    listener.until(lambda: any(any(velocities(m)) for m in heard), "motion")
    g.disable()
    listener.spin(0.3)
    count = len(heard)
    assert not any(velocities(heard[-1]))
    listener.spin(0.3)
    assert len(heard) == count, "somebody else may use the controller now"
