"""The policy node over Fast DDS: its states, whose observations it answers, and what it says of that."""

from __future__ import annotations

import array
import math
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run scripts/setup")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from recording_graph import free_domain
from sensor_msgs.msg import Image
from spinning import spin_until

from ki_ros import msg
from ki_ros.nodes import topics
from ki_ros.nodes.policy import PolicyNode
from ki_ros.rig import CONTROL_HZ, RESET_JOINT_POSITIONS

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
        self.chunks: list[msg.ActionChunk] = []
        self._observed_at = -math.inf
        self.diagnosis = ""
        self.other.create_subscription(msg.ActionChunk, topics.ACTION_CHUNK, self.chunks.append, topics.NEWEST_QOS)
        self.other.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._epochs = self.other.create_publisher(msg.Epoch, topics.EPOCH, topics.LATCHED_QOS)
        self._observations = self.other.create_publisher(msg.Observation, topics.OBSERVATION, topics.NEWEST_QOS)
        self._change = self.other.create_client(ChangeState, "/policy/change_state")
        self._state = self.other.create_client(GetState, "/policy/get_state")

    def close(self) -> None:
        self.spinner.shutdown()
        self.node.destroy_node()
        self.other.destroy_node()
        self.context.shutdown()

    def until(self, condition, what: str) -> None:
        spin_until(self.spinner, condition, what, PATIENCE)

    def call(self, client, request):
        self.until(client.service_is_ready, "the service")
        future = client.call_async(request)
        self.until(future.done, "the answer")
        return future.result()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.diagnosis = next(s.message for s in message.status if s.name == "policy: policy")

    def start(self) -> Graph:
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            assert self.change(transition)
        self.until(lambda: self._epochs.get_subscription_count(), "the subscription of epochs")
        self.until(lambda: self._observations.get_subscription_count(), "the subscription of observations")
        return self

    def instruct(self, epoch: int) -> None:
        self._epochs.publish(msg.Epoch(id=epoch, instruction="reach the red block"))
        assert self._epochs.wait_for_all_acked(Duration(seconds=PATIENCE))

    def observe(self, epoch: int) -> None:
        """Publishes an observation, at a robot's rate: a flood would leave the inference in this process no time."""
        now = time.monotonic()
        if now - self._observed_at < 1 / CONTROL_HZ:
            return
        self._observed_at = now
        message = msg.Observation(epoch=epoch, instruction="reach the red block", state=[*RESET_JOINT_POSITIONS, 0.0])
        message.header.stamp = self.other.get_clock().now().to_msg()
        for role in ("exterior_1", "wrist"):
            view = Image(height=224, width=224, encoding="rgb8", step=672, data=array.array("B", bytes(224 * 672)))
            view.header.frame_id = role
            message.views.append(view)
        self._observations.publish(message)

    def answers(self, epoch: int) -> bool:
        """Sends an observation; whether any such has been answered."""
        self.observe(epoch)
        return any(chunk.epoch == epoch for chunk in self.chunks)

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


def test_an_epoch_of_an_earlier_time_changes_nothing(graph):
    """A recording that is played back brings one."""
    graph.start().instruct(2_000)
    graph.until(lambda: graph.answers(2_000), "a chunk")
    graph.instruct(1_000)
    # With an answer of the node's, what it was sent before has been dealt with.
    assert graph.state == State.PRIMARY_STATE_ACTIVE
    graph.chunks.clear()
    graph.until(lambda: graph.answers(2_000), "a chunk, still for the instruction in force")
    graph.instruct(3_000)
    graph.until(lambda: graph.answers(3_000), "a chunk for the next instruction")


def test_the_diagnosis_says_why_there_is_no_chunk(graph):
    graph.start()
    graph.until(lambda: "waiting for an instruction" in graph.diagnosis, "that no instruction was given")
    graph.instruct(1_000)
    graph.until(lambda: "no observation comes" in graph.diagnosis, "that there is no observation")

    def says(what: str, epoch: int) -> bool:
        graph.observe(epoch)
        return what in graph.diagnosis

    graph.until(lambda: says("inferring", 1_000), "that all is well")
    graph.until(lambda: says("no observation answers the instruction in force", 900), "that all are of another epoch")
