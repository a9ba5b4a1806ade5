"""Faults of the running graph: the arm holds within 0.3 s, and comes back only by what should bring it back."""

from __future__ import annotations

import signal
import time
from copy import deepcopy

import pytest
from fake_rig import CAMERAS, GRAPH_PARAMETERS, STREAMS, FakeRig
from faults import Hold, answered, holds, in_time, instruct, longest_pause, note, seconds
from processes import Participant, revive, send
from rclpy.parameter import Parameter
from waiting import wait

from ki_ros import bringup
from ki_ros.commands.processes import Graph
from ki_ros.msg import ExecutorStatus
from ki_ros.nodes.observation import ObservationNode

pytestmark = pytest.mark.graph

BLIND = {"observation_refused"}
CHUNKS_END = {"stale_chunk", "chunk_exhausted"}


@pytest.fixture(scope="module")
def graph(tmp_path_factory, spinner):
    """A rig, and the graph on it."""
    directory = tmp_path_factory.mktemp("graph")
    file = directory / "params.yaml"
    file.write_text(GRAPH_PARAMETERS)
    rig = FakeRig(context=spinner.context)
    spinner.start(rig)
    with Graph(bringup.Settings(params_file=str(file)), directory / "logs") as graph:
        wait(rig.service_is_ready, "the executor's services", check=graph.check)
        yield rig, graph


@pytest.fixture
def running(graph):
    """A rig and a graph that executes an instruction: every test begins so, whatever the one before it left behind."""
    rig, processes = graph
    rig.streams |= STREAMS
    rig.frozen.clear()
    rig.clock_offset = 0.0
    answer = instruct(rig, "put the marker in the pot")
    # A status from before the answer may still say that the last instruction is executed.
    wait(lambda: rig.executing() and answer.message == f"epoch {rig.status.epoch}", "execution", check=processes.check)
    return rig, processes


@pytest.mark.parametrize(("node", "reasons"), [("policy", CHUNKS_END), ("observation", CHUNKS_END | BLIND)])
def test_a_node_is_killed(running, node, reasons):
    rig, graph = running
    holds(
        rig,
        f"{node} process killed",
        cause=lambda: send(node, signal.SIGKILL),
        repair=lambda: revive(graph, node),
        reasons=reasons,
        recovery=f"{node} started again",
    )
    graph.check()


@pytest.mark.parametrize(("node", "reasons"), [("policy", CHUNKS_END), ("observation", CHUNKS_END | BLIND)])
def test_a_node_is_suspended(running, node, reasons):
    rig, _ = running
    holds(
        rig,
        f"{node} process suspended",
        cause=lambda: send(node, signal.SIGSTOP),
        repair=lambda: send(node, signal.SIGCONT),
        reasons=reasons,
        recovery=f"{node} goes on, then a new chunk",
    )


def test_the_observation_node_s_dds_participant_is_made_anew(running, domain):
    rig, graph = running
    topics = [Parameter(f"{role}.topic", value=CAMERAS[role]) for role in CAMERAS]

    def participant() -> Participant:
        return Participant(domain, lambda **options: ObservationNode(parameter_overrides=topics, **options))

    graph.kill("observation")
    there = [participant()]
    try:
        holds(
            rig,
            "observation's DDS participant destroyed",
            cause=lambda: there.pop().destroy(),
            repair=lambda: there.append(participant()),
            reasons=CHUNKS_END | BLIND,
            recovery="the participant made anew, then a new chunk",
        )
    finally:
        if there:
            there.pop().destroy()
        graph.start("observation")


def test_a_camera_stops(running):
    rig, _ = running
    holds(
        rig,
        "wrist camera stopped",
        cause=lambda: rig.streams.remove("wrist"),
        repair=lambda: rig.streams.add("wrist"),
        reasons=BLIND,
        recovery="camera publishes again, then a new chunk",
    )


def test_a_camera_repeats_its_last_stamp(running):
    rig, _ = running
    holds(
        rig,
        "wrist camera repeats its last stamp",
        cause=lambda: rig.frozen.add("wrist"),
        repair=lambda: rig.frozen.remove("wrist"),
        reasons=BLIND,
        recovery="new stamps, then a new chunk",
    )


def test_joint_states_stop(running):
    rig, _ = running
    holds(
        rig,
        "joint states stopped",
        cause=lambda: rig.streams.remove("joint_states"),
        repair=lambda: rig.streams.add("joint_states"),
        reasons={"stale_joint_state"},
        recovery="joint states, then a new chunk",
    )


def test_joint_states_repeat_their_last_stamp(running):
    rig, _ = running
    holds(
        rig,
        "joint states repeat their last stamp",
        cause=lambda: rig.frozen.add("joint_states"),
        repair=lambda: rig.frozen.remove("joint_states"),
        reasons={"stale_joint_state"},
        recovery="new stamps, then a new chunk",
    )


@pytest.mark.parametrize("seconds_off", [-10.0, 10.0])
def test_the_drivers_clock_jumps(running, seconds_off):
    """Stamps of cameras, joint states and gripper are off, as if their machine's clock, or that of the nodes, were set.

    The system's own clock cannot be set here. To nodes it is the same for as long as it lasts.
    """
    rig, _ = running
    holds(
        rig,
        f"drivers' clock set {'back' if seconds_off < 0 else 'forward'} by {abs(seconds_off):g} s",
        cause=lambda: setattr(rig, "clock_offset", seconds_off),
        repair=lambda: setattr(rig, "clock_offset", 0.0),
        reasons={"stale_joint_state"},
        recovery="clocks that agree, then a new chunk",
    )


def test_nan_chunk(running):
    rig, _ = running
    since, tick = inject_nan(rig)
    assert tick.state == ExecutorStatus.HOLDING
    # Good chunks go on coming, so it may never stand still; but nothing of the bad one is executed.
    hold = seconds(tick.header.stamp) - since
    note("NaN chunk", Hold(tick.reason, hold, None), "the next good chunk")
    in_time(Hold(tick.reason, hold, hold), longest_pause(rig, since))
    wait(rig.executing, "execution after good chunks")


def inject_nan(rig: FakeRig) -> tuple[float, ExecutorStatus]:
    """Publishes NaN chunks until a tick holds because of one; the time of that publication, and the tick.

    The policy goes on meanwhile: a good chunk of its own may end the hold before the next tick shows it.
    """
    for _ in range(20):
        bad = deepcopy(rig.chunk)
        bad.actions[3] = float("nan")
        first = len(rig.statuses)
        since = time.time()
        rig.chunk_publisher.publish(bad)
        wait(lambda first=first: len(rig.statuses) > first + 10, "ticks of the executor")
        for _, status in rig.statuses[first:]:
            if status.reason == "non_finite":
                return since, status
    pytest.fail("no NaN chunk held the arm")


def test_instruction_changed_mid_chunk(running):
    rig, graph = running
    wait(lambda: rig.status.step >= 0, "row of a chunk")
    old = rig.status.epoch
    since = time.time()
    answer = instruct(rig, "open the drawer")
    answered_at = time.time()
    assert rig.epoch is not None
    wait(lambda: rig.status.epoch != old, "new epoch")
    wait(lambda: rig.executing() and rig.status.epoch == rig.epoch.id, "execution of the new epoch", check=graph.check)
    late = [status for _, status in rig.statuses if seconds(status.header.stamp) > answered_at and status.epoch == old]
    assert not late, f"{len(late)} ticks of the old epoch after the answer"
    between = [
        (stamp, status)
        for stamp, status in rig.statuses
        if since < seconds(status.header.stamp) and status.epoch == rig.epoch.id
    ]
    assert between[0][1].state == ExecutorStatus.HOLDING, "the first tick of an epoch has no chunk to execute"
    assert answer.message == f"epoch {rig.epoch.id}"
    hold = max(0.0, seconds(between[0][1].header.stamp) - since)
    reason = between[0][1].reason
    note("instruction changed mid-chunk", Hold(reason, hold, None), "a chunk that answers the new instruction")
    in_time(Hold(reason, hold, hold), longest_pause(rig, since))


def test_stop(running):
    rig, _ = running
    holds(
        rig,
        "/stop",
        cause=lambda: rig.call_operator("stop"),
        repair=lambda: restart(rig),
        reasons={"stopped"},
        recovery="/reset, then /enable, then a new chunk",
    )


def restart(rig: FakeRig) -> None:
    assert answered(rig.call_operator("reset"), "reset").success
    assert answered(rig.call_enable(), "enable").success


def test_an_empty_instruction_changes_nothing(running):
    rig, _ = running
    before = rig.epoch.id
    answer = answered(rig.call_set_instruction(" \n"), "set_instruction")
    assert not answer.success
    assert "empty" in answer.message
    assert rig.epoch.id == before
    wait(rig.executing, "execution that goes on")
