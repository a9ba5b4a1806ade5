"""What the gripper is sent: a stream, or a goal for each change."""

from __future__ import annotations

import os
import random
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

from rclpy.action import ActionServer, GoalResponse  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402

from ki_ros.nodes import grippers, topics  # noqa: E402
from ki_ros.nodes.executor import ExecutorNode, Parameters  # noqa: E402
from ki_ros.rig import GRIPPER_JOINT  # noqa: E402

pytestmark = pytest.mark.graph

ACTIONS = {"gripper_command": "GripperCommand", "parallel_gripper_command": "ParallelGripperCommand"}
PATIENCE = 15.0


@pytest.fixture(scope="module")
def context():
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=random.SystemRandom().randint(1, 100))
    yield context
    rclpy.shutdown(context=context)


@pytest.fixture
def graph(context):
    """A node that has the executor's parameters, another that plays the driver, and what spins both."""
    made = SimpleNamespace(node=Node("sender", context=context), driver=Node("driver", context=context))
    made.spinner = SingleThreadedExecutor(context=context)
    made.spinner.add_node(made.node)
    made.spinner.add_node(made.driver)

    def until(condition, what: str = "") -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            made.spinner.spin_once(timeout_sec=0.02)

    made.until = until
    yield made
    made.spinner.shutdown()
    made.node.destroy_node()
    made.driver.destroy_node()


def gripper(graph, **parameters):
    """The gripper's adapter for these parameters of the executor."""
    graph.node.parameters = Parameters(**parameters)
    return grippers.GRIPPERS[graph.node.parameters.gripper_controller](graph.node)


def test_a_stream_of_angles(graph):
    heard: list[float] = []
    graph.driver.create_subscription(
        Float64MultiArray, "/fingers/commands", lambda m: heard.extend(m.data), topics.COMMAND_QOS
    )
    send = gripper(graph, gripper_controller="forward_command", gripper_command_topic="/fingers/commands")

    def sent_and_heard() -> bool:
        for angle in (None, 0.8, None, 0.25):
            send(angle)
        return len(heard) >= 4

    graph.until(sent_and_heard, "angles")
    assert set(heard) == {0.8, 0.25}


def test_a_gripper_of_somebody_else_is_sent_nothing(graph):
    before = len(list(graph.node.publishers))
    gripper(graph, gripper_controller="none")(0.8)
    assert len(list(graph.node.publishers)) == before


# The package of the actions


@pytest.mark.parametrize("controller", ACTIONS)
def test_a_missing_package_is_named_with_its_remedy(context, monkeypatch, controller):
    monkeypatch.setitem(sys.modules, "control_msgs", None)
    with pytest.raises(
        ImportError, match=rf"gripper_controller '{controller}' .* install ros-<distribution>-control-msgs"
    ):
        ExecutorNode(context=context, parameter_overrides=[Parameter("gripper_controller", value=controller)])


def test_an_action_that_a_distribution_lacks_is_named_with_the_other(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "control_msgs", package(action=SimpleNamespace(GripperCommand=object)))
    with pytest.raises(ImportError, match=r"action ParallelGripperCommand, .* set it to gripper_command"):
        gripper(graph, gripper_controller="parallel_gripper_command")


def package(**content) -> ModuleType:
    module = ModuleType("control_msgs")
    vars(module).update(content)
    return module


# Goals, with stand-ins for the package and the client


class Answer:
    """A future that is done at once."""

    def __init__(self, accepted: bool) -> None:
        self._accepted = accepted

    def cancelled(self) -> bool:
        return False

    def exception(self) -> None:
        return None

    def result(self) -> SimpleNamespace:
        return SimpleNamespace(accepted=self._accepted)

    def add_done_callback(self, callback) -> None:
        callback(self)


class Client:
    """Takes the place of rclpy's ActionClient."""

    def __init__(self, _node, action, name) -> None:
        self.action, self.name = action, name
        self.ready, self.accepts = True, True
        self.goals: list = []

    def server_is_ready(self) -> bool:
        return self.ready

    def send_goal_async(self, goal) -> Answer:
        self.goals.append(goal)
        return Answer(self.accepts)


def action(name: str) -> type:
    return type(name, (), {"Goal": lambda: SimpleNamespace(command=SimpleNamespace())})


@pytest.fixture
def client(graph, monkeypatch):
    """Makes an adapter with a stand-in client; returns both."""
    monkeypatch.setattr(grippers, "ActionClient", Client)
    stand_ins = SimpleNamespace(**{name: action(name) for name in ACTIONS.values()})
    monkeypatch.setitem(sys.modules, "control_msgs", package(action=stand_ins))

    def make(**parameters):
        send = gripper(graph, **parameters)
        return send, send._client

    return make


def test_a_goal_of_each_kind(client):
    send, made = client(gripper_controller="gripper_command", gripper_action="/hand", gripper_max_effort=20.0)
    send(0.8)
    assert (made.action.__name__, made.name) == ("GripperCommand", "/hand")
    assert vars(made.goals[0].command) == {"position": 0.8, "max_effort": 20.0}
    send, made = client(gripper_controller="parallel_gripper_command", gripper_max_effort=20.0)
    send(0.8)
    assert (made.action.__name__, made.name) == ("ParallelGripperCommand", "/robotiq_gripper_controller/gripper_cmd")
    assert vars(made.goals[0].command) == {"name": [GRIPPER_JOINT], "position": [0.8], "effort": [20.0]}


def test_a_goal_is_sent_once_for_each_change(client):
    send, made = client(gripper_controller="gripper_command")
    for angle in (None, 0.0, 0.0, 0.8, 0.8, 0.8, 0.0, None, 0.0):
        send(angle)
    # After nothing was said the gripper may have been moved by somebody else.
    assert [goal.command.position for goal in made.goals] == [0.0, 0.8, 0.0, 0.0]


def test_a_goal_waits_for_its_server(client, capfd):
    send, made = client(gripper_controller="gripper_command")
    made.ready = False
    send(0.8)
    assert made.goals == []
    assert "nobody serves the action" in capfd.readouterr().err
    made.ready = True
    send(0.8)
    assert len(made.goals) == 1


def test_a_server_that_comes_back_is_asked_again(client):
    send, made = client(gripper_controller="gripper_command")
    for ready in (True, False, True):
        made.ready = ready
        for _ in range(3):
            send(0.8)
    assert [goal.command.position for goal in made.goals] == [0.8, 0.8]


def test_a_refused_goal_is_sent_again_after_a_pause(client, monkeypatch, capfd):
    send, made = client(gripper_controller="gripper_command")
    made.accepts = False
    for _ in range(3):
        send(0.8)
    assert len(made.goals) == 1
    assert "refused a goal" in capfd.readouterr().err
    monkeypatch.setattr(send, "_pause_until", -1.0)
    made.accepts = True
    for _ in range(3):
        send(0.8)
    assert len(made.goals) == 2


# Goals over Fast DDS


@pytest.mark.parametrize(("controller", "name"), ACTIONS.items())
def test_goals_reach_a_real_server(graph, controller, name):
    actions = pytest.importorskip("control_msgs.action", reason="control_msgs is not among the wheels")
    kind, goals, refuse = getattr(actions, name), [], [True]

    def answer(goal) -> GoalResponse:
        goals.append(goal)
        return GoalResponse.REJECT if refuse and refuse.pop() else GoalResponse.ACCEPT

    def execute(handle):
        handle.succeed()
        return kind.Result()

    server = ActionServer(graph.driver, kind, f"/{name}/gripper_cmd", execute, goal_callback=answer)
    send = gripper(graph, gripper_controller=controller, gripper_action=f"/{name}/gripper_cmd", gripper_max_effort=20.0)

    def asked(angle: float, count: int) -> bool:
        send(angle)
        return len(goals) >= count

    # The first one is refused, and asked for again.
    graph.until(lambda: asked(0.8, 2), "two goals")
    graph.until(lambda: asked(0.0, 3), "a third goal")
    for _ in range(10):
        send(0.0)
        graph.spinner.spin_once(timeout_sec=0.02)
    assert np.ravel([goal.command.position for goal in goals]).tolist() == [0.8, 0.8, 0.0]
    server.destroy()
