"""The executor node over Fast DDS: its services, what it sends, and what makes it hold."""

from __future__ import annotations

import array
import json
import math
import os
import random
import re
import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rcl_interfaces.msg import Parameter as ParameterMessage  # noqa: E402
from rcl_interfaces.msg import ParameterType, ParameterValue  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.duration import Duration  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Bool, Float64MultiArray, String  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from ki_ros import msg  # noqa: E402
from ki_ros.nodes import stamps, topics  # noqa: E402
from ki_ros.nodes.executor import ExecutorNode  # noqa: E402
from ki_ros.nodes.parameters import ParameterError  # noqa: E402
from ki_ros.nodes.stamps import from_message  # noqa: E402
from ki_ros.rig import GRIPPER_JOINT, PANDA, RESET_JOINT_POSITIONS  # noqa: E402
from ki_ros.srv import SetInstruction  # noqa: E402

pytestmark = pytest.mark.graph

HOLDING, EXECUTING, DISABLED = (getattr(msg.ExecutorStatus, n) for n in ("HOLDING", "EXECUTING", "DISABLED"))
PATIENCE = 15.0


@pytest.fixture(scope="module")
def context():
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=random.SystemRandom().randint(1, 100))
    yield context
    rclpy.shutdown(context=context)


class Graph:
    """The node under test, and a node that plays everything around it: the arm, the policy, the listeners."""

    def __init__(self, context, **parameters) -> None:
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = ExecutorNode(context=context, parameter_overrides=overrides)
        self.other = Node("other", context=context)
        self.spinner = SingleThreadedExecutor(context=context)
        self.spinner.add_node(self.node)
        self.spinner.add_node(self.other)
        self.statuses: list[tuple[float, msg.ExecutorStatus]] = []
        self.commands: list[JointState] = []
        self.sent: list[tuple[float, list[float]]] = []
        self.gripper: list[float] = []
        self.trajectories: list[JointTrajectory] = []
        self.diagnostics: dict[str, dict[str, str]] = {}
        self.levels: dict[str, bytes] = {}
        self.q = list(RESET_JOINT_POSITIONS)
        self.joints_on = True
        self.policy_on = False
        self.button = None
        self.effort: list[float] = []
        self.epoch = 0
        self.sequence = 0
        self.action = [0.1] * 7 + [1.0]
        other = self.other
        self.joint_publisher = other.create_publisher(JointState, "/joint_states", topics.SENSOR_QOS)
        self.chunk_publisher = other.create_publisher(msg.ActionChunk, topics.ACTION_CHUNK, topics.NEWEST_QOS)
        listen = [
            (msg.ExecutorStatus, topics.EXECUTOR_STATUS, lambda m: self.statuses.append((time.monotonic(), m))),
            (JointState, topics.JOINT_COMMAND, self.commands.append),
            (Float64MultiArray, "/forward_position_controller/commands", self._on_sent),
            (Float64MultiArray, "/gripper_position_controller/commands", lambda m: self.gripper.extend(m.data)),
            (JointTrajectory, "/joint_trajectory_controller/joint_trajectory", self.trajectories.append),
        ]
        for kind, name, callback in listen:
            other.create_subscription(kind, name, callback, topics.COMMAND_QOS)
        other.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        other.create_subscription(msg.Epoch, topics.EPOCH, self._on_epoch, topics.LATCHED_QOS)
        self.set_client = other.create_client(SetInstruction, topics.SET_INSTRUCTION)
        self.enable_client = other.create_client(SetBool, topics.ENABLE)
        other.create_timer(0.01, self._arm)
        other.create_timer(1 / 15, self._policy)
        self.until(lambda: self.statuses and self.joint_publisher.get_subscription_count())

    def close(self) -> None:
        self.spinner.shutdown()
        self.node.destroy_node()
        self.other.destroy_node()

    def _on_epoch(self, message: msg.Epoch) -> None:
        self.epoch = message.id

    def _on_sent(self, message: Float64MultiArray) -> None:
        self.sent.append((time.monotonic(), list(message.data)))
        self.q = list(message.data)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            name = status.name.split(": ")[1]
            self.diagnostics[name] = {v.key: v.value for v in status.values} | {"message": status.message}
            self.levels[name] = status.level

    def stamp(self):
        return self.other.get_clock().now().to_msg()

    def _arm(self) -> None:
        if self.joints_on:
            message = JointState(name=list(reversed(PANDA.joint_names)), position=list(reversed(self.q)))
            message.effort = [float(value) for value in reversed(self.effort)]
            message.header.stamp = self.stamp()
            self.joint_publisher.publish(message)
        if self.button is not None:
            self.button.publish(Bool(data=True))

    def chunk(self, **changes) -> msg.ActionChunk:
        self.sequence += 1
        fields = {"action_space": "joint_velocity", "dt": 1 / 15, "horizon": 15, "action_dim": 8, "epoch": self.epoch}
        fields["actions"] = array.array("f", self.action * 15)
        message = msg.ActionChunk(observation_sequence=self.sequence, **(fields | changes))
        message.header.stamp = self.stamp()
        return message

    def _policy(self) -> None:
        if self.policy_on and self.epoch:
            self.chunk_publisher.publish(self.chunk())

    def until(self, condition, what: str = "") -> None:
        """Spins until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain{': ' + what if what else ''}; last {self.last}"
            self.spinner.spin_once(timeout_sec=0.05)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.spinner.spin_once(timeout_sec=0.01)

    @property
    def last(self):
        status = self.statuses[-1][1] if self.statuses else None
        return status and (status.state, status.reason)

    def call(self, client, request):
        self.until(client.service_is_ready, "the service")
        future = client.call_async(request)
        self.until(future.done, "the response")
        return future.result()

    def instruct(self, instruction: str):
        return self.call(self.set_client, SetInstruction.Request(instruction=instruction))

    def enable(self, data: bool = True):
        return self.call(self.enable_client, SetBool.Request(data=data))

    def execute(self) -> Graph:
        """Brings the arm into motion, if it is not already."""
        self.policy_on = True
        seen = len(self.commands)
        self.until(lambda: self.last[0] == EXECUTING and any(any(m.velocity) for m in self.commands[seen:]), "motion")
        return self

    def seconds_until_held(self, since: float) -> float:
        """Seconds from `since` until the command that all later ones repeat."""
        self.until(lambda: self.last[0] == HOLDING, "holding")
        self.spin(0.3)
        moving = [t for (t, q), (_, then) in zip(self.sent[1:], self.sent, strict=False) if q != then]
        return max(moving[-1] - since, 0.0)


@pytest.fixture
def graph(context):
    graphs = []

    def make(**parameters) -> Graph:
        graphs.append(Graph(context, **parameters))
        return graphs[-1]

    yield make
    for made in graphs:
        made.close()


@pytest.fixture
def running(graph) -> Graph:
    made = graph(enabled_at_start=True, instruction="put the marker in the pot")
    return made.execute()


def test_an_empty_instruction_is_refused(graph):
    g = graph()
    for text in ("", "  \n\t"):
        response = g.instruct(text)
        assert not response.success
        assert "empty" in response.message
    assert g.epoch == 0


def test_an_instruction_starts_a_latched_epoch(graph, context):
    g = graph()
    before = time.time_ns()
    response = g.instruct("  put the marker in the pot\n")
    assert response.success
    heard: dict[str, object] = {}
    late = Node("late", context=context)
    late.create_subscription(msg.Epoch, topics.EPOCH, lambda m: heard.update(epoch=m), topics.LATCHED_QOS)
    late.create_subscription(String, topics.INSTRUCTION, lambda m: heard.update(text=m), topics.LATCHED_QOS)
    g.spinner.add_node(late)
    g.until(lambda: len(heard) == 2, "the latched epoch")
    g.spinner.remove_node(late)
    late.destroy_node()
    assert heard["text"].data == heard["epoch"].instruction == "put the marker in the pot"
    assert heard["epoch"].id > before
    assert response.message == f"epoch {heard['epoch'].id}"
    first = heard["epoch"].id
    g.instruct("put the marker in the pot")
    g.until(lambda: g.epoch > first, "a greater epoch")


def test_enabling_is_refused_without_joint_states(graph):
    g = graph()
    g.joints_on = False
    g.spin(0.2)
    response = g.enable()
    assert not response.success
    assert "joint state" in response.message
    assert g.last == (DISABLED, "disabled")
    assert g.sent == []
    g.joints_on = True
    g.until(lambda: g.enable().success, "enabled")
    g.until(lambda: g.last == (HOLDING, "no_instruction") and g.sent and g.commands)
    np.testing.assert_allclose(g.sent[-1][1], RESET_JOINT_POSITIONS, atol=1e-12)
    assert g.gripper == []
    assert list(g.commands[-1].name) == list(PANDA.joint_names)
    assert g.enable(False).success
    count = len(g.sent)
    g.spin(0.2)
    assert len(g.sent) == count


def test_another_robots_joint_states_are_named(graph):
    g = graph(enabled_at_start=True)
    g.joints_on = False
    message = JointState(name=["shoulder", "elbow"], position=[0.0, 1.0])
    g.joint_publisher.publish(message)
    g.until(lambda: g.diagnostics.get("executor", {}).get("joint_states_foreign", "0") != "0", "a diagnostic")
    assert g.diagnostics["executor"]["foreign_names"] == "shoulder, elbow"
    assert g.last == (DISABLED, "awaiting_joint_state")
    # Beside the arm's own they do no harm.
    g.joints_on = True
    g.until(lambda: g.last == (HOLDING, "no_instruction"))


def test_commands_are_sent_and_published(running):
    g = running
    g.until(lambda: len(g.statuses) > 60 and g.commands and g.gripper)
    assert list(g.commands[-1].name) == list(PANDA.state_names)
    assert g.gripper[-1] == pytest.approx(0.8)
    assert g.commands[-1].position[7] == pytest.approx(0.8)
    stamps = {(m.header.stamp.sec, m.header.stamp.nanosec) for _, m in g.statuses}
    assert all((m.header.stamp.sec, m.header.stamp.nanosec) in stamps for m in g.commands[:-1])
    status = g.statuses[-1][1]
    assert status.observation_sequence > 0
    assert 0 <= status.step < 15
    assert status.epoch == g.epoch


def test_the_command_rate(running):
    g = running
    rates = []
    # A machine that is busy with something else may spoil a window, not all of them.
    while len(rates) < 10 and pytest.approx(100, rel=0.02) not in rates:
        g.sent.clear()
        g.spin(1.0)
        rates.append((len(g.sent) - 1) / (g.sent[-1][0] - g.sent[0][0]))
    assert pytest.approx(100, rel=0.02) in rates
    g.until(lambda: "commands" in g.diagnostics)
    assert float(g.diagnostics["commands"]["setting"]) == 100
    assert float(g.diagnostics["commands"]["rate"]) > 50


def test_nan_holds_until_a_good_chunk(running):
    g = running
    g.policy_on = False
    since = time.monotonic()
    g.chunk_publisher.publish(g.chunk(actions=array.array("f", [float("nan")] * 120)))
    assert g.seconds_until_held(since) <= 0.3
    assert g.last == (HOLDING, "non_finite")
    g.node._diagnostics.publish()
    g.until(lambda: g.diagnostics.get("executor", {}).get("chunks_non_finite") == "1", "a diagnostic")
    assert g.levels["executor"] == b"\x02"
    g.execute()


@pytest.mark.parametrize("changes", [{"horizon": 14}, {"action_space": "torque"}, {"dt": 0.0}])
def test_a_malformed_chunk_holds_until_a_good_one(running, changes):
    g = running
    g.policy_on = False
    g.chunk_publisher.publish(g.chunk(**changes))
    g.until(lambda: g.last == (HOLDING, "invalid_chunk"))
    g.execute()


def test_a_far_row_is_named_with_its_joint_distance_and_limit(running):
    """And not with what went wrong before it: an observation that was refused when the graph started, say."""
    g, near = running, running.chunk
    far = array.array("f", [9.0, *g.q[1:], 0.0] * 15)
    g.chunk = lambda: near(action_space="joint_position", actions=far)
    g.until(lambda: g.last == (HOLDING, "guard_refusal"))
    g.node._last_refusal = "observation: no message has arrived"
    told = r"holding: guard_refusal: row \d+ wants panda_joint1 \d\.\d\d rad from where it is; max_\w+ is 0\.\d+"
    g.until(lambda: re.fullmatch(told, g.diagnostics.get("executor", {}).get("message", "")), "the figures")


def test_faults_hold_in_time(running):
    g = running
    times = {}
    g.spin(1.0)
    g.policy_on = False
    times["policy killed"] = g.seconds_until_held(time.monotonic())
    assert g.last == (HOLDING, "stale_chunk")
    g.execute()
    g.joints_on = False
    times["joint states stopped"] = g.seconds_until_held(time.monotonic())
    assert g.last == (HOLDING, "stale_joint_state")
    g.joints_on = True
    g.execute()
    print(json.dumps(times))
    assert all(seconds <= 0.3 for seconds in times.values()), times


def test_a_state_that_lasts_is_logged(graph, capfd):
    """However soon it comes after another, though a state that flickers gives no more than a line a second."""
    g = graph(enabled_at_start=True, instruction="push")
    lines: list[str] = []

    def logged(text: str) -> bool:
        lines.extend(capfd.readouterr().err.splitlines())
        return any(line.endswith(text) for line in lines)

    g.until(lambda: logged("]: holding waiting_for_chunk"), "the log of holding")
    g.execute()
    g.until(lambda: logged("]: executing"), "the log of executing")
    g.joints_on = False
    g.until(lambda: logged("]: holding stale_joint_state"), "the log of an interruption")


def test_nothing_of_an_old_epoch_moves_the_arm(running):
    g = running
    old = g.epoch
    response = g.instruct("take it out again")
    after = time.monotonic()
    g.policy_on = False
    new = int(response.message.split()[1])
    g.until(lambda: g.epoch == new)
    for _ in range(5):
        g.chunk_publisher.publish(g.chunk(epoch=old))
        g.spin(0.07)
    later = [status for at, status in g.statuses if at > after and status.epoch == new]
    assert later
    assert all(status.state == HOLDING and status.reason == "waiting_for_chunk" for status in later)
    g.execute()


def test_joint_trajectories(graph):
    g = graph(enabled_at_start=True, instruction="push", controller="joint_trajectory").execute()
    in_motion = lambda t: any(t.points[0].velocities)  # noqa: E731
    g.until(lambda: any(in_motion(t) for t in g.trajectories), "a trajectory in motion")
    moving = next(t for t in g.trajectories if in_motion(t))
    assert list(moving.joint_names) == list(PANDA.joint_names)
    assert abs(g.stamp().sec - moving.header.stamp.sec) < 60
    assert not any(moving.points[-1].velocities)
    times = [point.time_from_start.sec + point.time_from_start.nanosec * 1e-9 for point in moving.points]
    # What is left of the way to the command before, the command a period after it, and so on to rest.
    assert times[1] - times[0] == pytest.approx(0.01, abs=1e-6)
    assert times == sorted(set(times))
    # Each begins at a waypoint behind the arm, and these lie whole periods apart whenever it was sent.
    begun = np.array([stamps.from_message(t.header.stamp) for t in g.trajectories if in_motion(t)])
    beside = (begun - begun[0] + 5_000_000) % 10_000_000 - 5_000_000
    assert np.median(np.abs(beside)) < 50_000
    assert g.sent == []


def test_a_driver_whose_clock_is_ahead_is_told_of(graph):
    g = graph(enabled_at_start=True, instruction="push", controller="joint_trajectory").execute()
    now = g.other.get_clock().now
    g.stamp = lambda: (now() + Duration(seconds=0.03)).to_msg()
    g.until(lambda: "clock is" in g.diagnostics.get("commands", {}).get("message", ""), "the diagnostic")
    assert g.levels["commands"] == b"\x01"


def test_joint_trajectories_that_begin_when_they_come(graph):
    g = graph(enabled_at_start=True, instruction="push", controller="joint_trajectory", trajectory_stamps=False)
    g.execute()
    g.until(lambda: any(any(t.points[0].velocities) for t in g.trajectories), "a trajectory in motion")
    for trajectory in g.trajectories:
        assert (trajectory.header.stamp.sec, trajectory.header.stamp.nanosec) == (0, 0)
        # The command, which is more than a period ahead.
        assert trajectory.points[0].time_from_start.nanosec > 0.01e9


def test_a_gripper_action_without_its_package_says_so(context):
    try:
        import control_msgs.action  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("control_msgs is installed")
    with pytest.raises(ImportError, match="install ros-<distribution>-control-msgs"):
        ExecutorNode(context=context, parameter_overrides=[Parameter("gripper_controller", value="gripper_command")])


def test_a_misspelt_parameter_is_refused(context):
    with pytest.raises(ParameterError, match="did you mean 'max_chunk_gap'"):
        ExecutorNode(context=context, parameter_overrides=[Parameter("max_chunk_gab", value=0.2)])


def set_speed(g: Graph, share: float) -> bool:
    return g.node.set_parameters([Parameter("speed_scale", value=share)])[0].successful


def test_a_speed_that_is_out_of_range_by_rounding_does_not_end_the_node(running):
    g = running
    client = g.other.create_client(SetParameters, "/executor/set_parameters")
    for share, speed in ((0.5, "0.5"), (1.0 + 1e-9, "1")):
        value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=share)
        request = SetParameters.Request(parameters=[ParameterMessage(name="speed_scale", value=value)])
        assert g.call(client, request).results[0].successful
        g.until(lambda speed=speed: g.diagnostics.get("executor", {}).get("speed_scale") == speed, f"speed {speed}")


def test_the_operator_stops_resets_and_sets_the_speed(graph):
    """Stop wins over everything: enabling is refused until it is reset, and resetting alone moves nothing."""
    g = graph(enabled_at_start=True, instruction="push").execute()
    stop, reset = (g.other.create_client(Trigger, name) for name in (topics.STOP, topics.RESET))
    assert g.call(stop, Trigger.Request()).success
    g.until(lambda: g.last == (HOLDING, "stopped") and not any(g.commands[-1].velocity), "rest")
    at = list(g.commands[-1].position[:7])
    response = g.enable(True)
    assert not response.success, "it would be taken to move again"
    assert "reset" in response.message
    g.spin(0.3)
    assert g.last == (HOLDING, "stopped")
    assert list(g.commands[-1].position[:7]) == at
    assert g.call(reset, Trigger.Request()).success
    g.until(lambda: g.last == (DISABLED, "disabled"), "disabled")
    assert not g.call(reset, Trigger.Request()).success
    assert g.call(stop, Trigger.Request()).success
    refused = g.enable(True)
    assert not refused.success
    assert "reset" in refused.message
    assert g.call(reset, Trigger.Request()).success
    assert g.enable(True).success
    g.execute()
    assert set_speed(g, 0.0)
    g.until(lambda: not any(g.commands[-1].velocity) and g.last[0] == EXECUTING, "standing still at no speed")
    assert not set_speed(g, 1.5)
    assert set_speed(g, 0.5)
    g.until(lambda: any(g.commands[-1].velocity), "motion")


def test_a_reset_in_motion_is_refused(running):
    g = running
    stop, reset = (g.other.create_client(Trigger, name) for name in (topics.STOP, topics.RESET))
    assert g.call(stop, Trigger.Request()).success
    answers = []

    def was_reset() -> bool:
        answers.append(g.call(reset, Trigger.Request()))
        return answers[-1].success

    g.until(was_reset, "the reset")
    assert all("brought to rest" in answer.message for answer in answers[:-1])
    g.until(lambda: g.last == (DISABLED, "disabled"), "disabled")
    disabled = from_message(next(m for _, m in g.statuses if m.reason == "disabled").header.stamp)

    def paused() -> bool:
        return disabled - from_message(g.commands[-1].header.stamp) > 0.05e9

    g.until(lambda: not any(g.commands[-1].velocity) or paused(), "a last command at rest")
    if paused():
        pytest.skip("this machine is too busy: the executor paused, and sent nothing more until the arm was at rest")


def test_an_arm_that_moves_is_not_enabled(graph):
    g = graph(enabled_at_start=True)
    g.until(lambda: g.last == (HOLDING, "no_instruction"), "enabled")
    assert g.enable(False).success
    start = g.q[6]

    def drift() -> None:
        g.q[6] += 0.005

    by_hand = g.other.create_timer(0.01, drift)
    g.until(lambda: g.q[6] > start + 0.05, "motion")
    assert "the arm moves" in g.enable().message
    by_hand.cancel()
    g.until(lambda: g.enable().success, "enabled")


def test_the_button_has_to_be_held(graph):
    g = graph(enabled_at_start=True, instruction="push", hold_to_run=0.2)
    button = g.other.create_publisher(Bool, topics.HOLD_TO_RUN, topics.NEWEST_QOS)
    g.policy_on = True
    g.until(lambda: g.last == (HOLDING, "hold_to_run"), "waiting for the button")
    g.button = button
    g.execute()
    g.button = None
    g.until(lambda: g.last == (HOLDING, "hold_to_run") and not any(g.commands[-1].velocity), "rest")


def test_an_effort_beyond_the_limit_stops_the_arm(graph):
    g = graph(enabled_at_start=True, instruction="push", max_effort=0.5)
    g.policy_on = True
    # Joint states without efforts are none: contact would not be noticed.
    g.until(lambda: "no efforts" in g.diagnostics.get("executor", {}).get("last_refusal", ""), "the refusal")
    assert not g.commands
    g.effort = [0.0] * 7
    g.execute()
    # Also if it is not in the newest of those that have come since the last tick.
    g.effort = [0.0, 44.0, 0, 0, 0, 0, 0]
    g._arm()
    g.effort = [0.0] * 7
    g._arm()
    g.until(lambda: g.last == (HOLDING, "contact"), "the stop")
    g.effort = [0.0] * 7
    g.spin(0.2)
    assert g.last == (HOLDING, "contact")


def test_the_hand_stays_in_its_box(graph):
    g = graph(enabled_at_start=True, instruction="push", workspace_lower=[0.3, -0.5, 0.2]).execute()
    g.until(lambda: any("workspace_limited" in status.interventions for _, status in g.statuses), "the barrier")
    with pytest.raises(ParameterError, match="workspace_upper is"):
        ExecutorNode(context=g.node.context, parameter_overrides=[Parameter("workspace_upper", value=[1.0, 2.0])])


def test_a_leader_moves_the_arm(graph):
    g = graph(enabled_at_start=True, source="teleoperation")
    leader = g.other.create_publisher(JointState, "/teleoperation/joint_command", topics.NEWEST_QOS)
    g.until(lambda: g.last == (HOLDING, "waiting_for_command") and leader.get_subscription_count(), "readiness")
    names, start = [*PANDA.joint_names, "robotiq_85_left_knuckle_joint"], list(g.q)
    begin = time.monotonic()

    def lead() -> None:
        further = 0.1 * (time.monotonic() - begin)
        leader.publish(JointState(name=names, position=[*(q + further for q in start), 0.4]))

    timer = g.other.create_timer(0.03, lead)
    g.until(lambda: g.last[0] == EXECUTING and g.q[0] > start[0] + 0.05, "the arm that follows")
    assert g.gripper[-1] == pytest.approx(0.4)
    g.other.destroy_timer(timer)
    g.until(lambda: g.last == (HOLDING, "stale_command"), "the hold")
    leader.publish(JointState(name=names[:3], position=[0.0] * 3))
    g.until(lambda: "is missing" in g.diagnostics.get("executor", {}).get("last_refusal", ""), "the refusal")


def test_a_joint_state_that_cannot_be_read_is_refused_and_ends_nothing(running):
    g = running
    for _ in range(20):
        g.joint_publisher.publish(b"\0\1\0\0" + bytes(8) + b"\xff" * 8)
        g.spin(0.02)
    g.until(lambda: "cannot be read" in g.diagnostics.get("executor", {}).get("last_refusal", ""), "the refusal")
    g.execute()


@pytest.mark.parametrize("angle", [math.nan, math.inf, -math.inf])
def test_a_leaders_gripper_that_is_not_finite_holds_the_arm_and_the_gripper(graph, angle):
    g = graph(enabled_at_start=True, source="teleoperation")
    leader = g.other.create_publisher(JointState, "/teleoperation/joint_command", topics.NEWEST_QOS)
    knuckle = 0.4

    def lead() -> None:
        leader.publish(JointState(name=[*PANDA.joint_names, GRIPPER_JOINT], position=[*g.q, knuckle]))

    g.other.create_timer(0.03, lead)
    g.until(lambda: g.last[0] == EXECUTING and g.gripper, "the gripper that follows")
    g.gripper.clear()
    knuckle = angle
    g.until(lambda: "not finite" in g.diagnostics.get("executor", {}).get("last_refusal", ""), "the refusal")
    g.until(lambda: g.last == (HOLDING, "waiting_for_command"), "the hold")
    assert set(g.gripper) == {0.4}


def test_another_publisher_of_the_arms_commands_ends_them(graph):
    """The arm is brought to rest, then nothing is sent, and nothing is enabled beside the other."""
    g = graph(enabled_at_start=True, instruction="push").execute()
    other = g.other.create_publisher(Float64MultiArray, "/forward_position_controller/commands", topics.COMMAND_QOS)
    g.until(lambda: g.last == (DISABLED, "not_alone"), "the end of commands")
    assert not any(g.commands[-1].velocity)
    g.spin(0.1)
    count = len(g.sent)
    g.spin(0.2)
    assert len(g.sent) == count
    g.until(lambda: "/other would" in g.diagnostics.get("commands", {}).get("message", ""), "the diagnostic")
    assert g.levels["commands"] == b"\x02"
    reset = g.other.create_client(Trigger, topics.RESET)
    assert g.call(reset, Trigger.Request()).success
    g.until(lambda: "/other would move the arm too" in g.enable().message, "the refusal")
    g.other.destroy_publisher(other)
    g.until(lambda: g.enable().success, "enabled")
    g.execute()


def test_two_who_lead_the_arm_are_named(running, context):
    """A second policy, left over from before: each chunk is a good one, and together they are no motion of either."""
    g = running
    g.until(lambda: g.levels.get("executor") == b"\0", "a report")
    other = Node("left_over", context=context)
    publisher = other.create_publisher(msg.ActionChunk, topics.ACTION_CHUNK, topics.NEWEST_QOS)
    named = "/left_over, /other all publish action_chunk"
    g.until(lambda: named in g.diagnostics["executor"]["message"] and g.levels["executor"] == b"\1", "the report")
    other.destroy_publisher(publisher)
    other.destroy_node()
    g.until(lambda: g.levels["executor"] == b"\0", "a report that all is well")


def test_nothing_is_enabled_without_a_controller(graph):
    g = graph(controller="joint_impedance", enabled_at_start=True, instruction="push")
    g.policy_on = True
    g.until(lambda: "nobody takes" in g.diagnostics.get("commands", {}).get("message", ""), "the diagnostic")
    assert g.levels["commands"] == b"\x01"
    assert g.last[0] == DISABLED
    assert not g.commands
    g.until(lambda: "nobody takes the arm's commands on /target_joint" in g.enable().message, "the refusal")
    controller = g.other.create_subscription(JointState, "/target_joint", lambda _: None, topics.COMMAND_QOS)
    g.execute()
    g.other.destroy_subscription(controller)
    g.until(lambda: g.last == (DISABLED, "no_controller"), "the end of commands")


def test_a_recorder_is_no_controller(graph):
    g = graph(controller="joint_impedance", instruction="push")
    recorder = Node("rosbag2_recorder", context=g.node.context)
    recorder.create_subscription(JointState, "/target_joint", lambda _: None, topics.COMMAND_QOS)
    try:
        g.until(lambda: "/target_joint but 1 that only listen" in g.enable().message, "the refusal")
        g.other.create_subscription(JointState, "/target_joint", lambda _: None, topics.COMMAND_QOS)
        g.until(lambda: g.enable().success, "enabled")
    finally:
        recorder.destroy_node()


def test_an_executor_that_has_just_started_is_not_enabled_by_hand(graph):
    """Another one may be there of which it has not been told yet."""
    g = graph(instruction="push")
    g.until(lambda: "looking whether it is alone" in g.enable().message, "a refusal")
    assert not g.commands
    g.until(lambda: g.enable().success, "enabled")
