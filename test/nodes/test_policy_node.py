"""The policy node over Fast DDS: its states, whose observations it answers, and what it says of that."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run scripts/setup")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from recording_graph import free_domain

from ki_ros.nodes.policy import PolicyNode

pytestmark = pytest.mark.graph

PATIENCE = 120.0


class Graph:
    """The node under test, with the small policy, and a node that plays everything around it."""

    def __init__(self, **parameters) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=free_domain())
        self.other = Node("other", context=self.context)
        values = {"preset": "ki_tiny", "allow_untrained": True, "threads": 1, "num_steps": 1, **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        self.node = PolicyNode(context=self.context, parameter_overrides=overrides)
        self.spinner = SingleThreadedExecutor(context=self.context)
        self.spinner.add_node(self.other)
        self.spinner.add_node(self.node)
        self._change = self.other.create_client(ChangeState, "/policy/change_state")
        self._state = self.other.create_client(GetState, "/policy/get_state")

    def close(self) -> None:
        self.spinner.shutdown()
        self.node.destroy_node()
        self.other.destroy_node()
        self.context.shutdown()

    def until(self, condition, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            self.spinner.spin_once(timeout_sec=0.05)

    def call(self, client, request):
        self.until(client.service_is_ready, "the service")
        future = client.call_async(request)
        self.until(future.done, "the answer")
        return future.result()

    def change(self, transition: int) -> bool:
        return self.call(self._change, ChangeState.Request(transition=Transition(id=transition))).success

    @property
    def state(self) -> int:
        return self.call(self._state, GetState.Request()).current_state.id


@pytest.fixture
def graph(monkeypatch) -> Iterator[Graph]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    made = Graph()
    yield made
    made.close()


def test_a_transition_that_the_state_does_not_have_is_refused(graph):
    steps = [
        (Transition.TRANSITION_CONFIGURE, State.PRIMARY_STATE_INACTIVE),
        (Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_ACTIVE),
        (Transition.TRANSITION_DEACTIVATE, State.PRIMARY_STATE_INACTIVE),
        (Transition.TRANSITION_CLEANUP, State.PRIMARY_STATE_UNCONFIGURED),
    ]
    state = State.PRIMARY_STATE_UNCONFIGURED
    has = {
        State.PRIMARY_STATE_UNCONFIGURED: {Transition.TRANSITION_CONFIGURE},
        State.PRIMARY_STATE_INACTIVE: {Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_CLEANUP},
        State.PRIMARY_STATE_ACTIVE: {Transition.TRANSITION_DEACTIVATE},
    }
    for transition, then in steps:
        for other in {transition for transition, _ in steps} - has[state]:
            assert not graph.change(other)
            assert graph.state == state
        assert graph.change(transition)
        assert graph.state == then
        state = then
    assert not graph.change(200)
