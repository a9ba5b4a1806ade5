"""Faults of the executor itself while an arm swings: killed, suspended, not alone, or without a controller."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fake_rig import ARM_COMMANDS, CHUNK_PERIOD, JOINT_PERIOD, MovingRig
from faults import (
    Hold,
    answered,
    busy,
    in_time,
    instruct,
    longest_pause,
    note,
    seconds,
    seconds_to_hold,
    seconds_to_rest,
)
from processes import send
from std_msgs.msg import Float64MultiArray
from waiting import PATIENCE, wait

from ki_ros import bringup
from ki_ros.commands.processes import Graph
from ki_ros.msg import ExecutorStatus
from ki_ros.nodes import topics
from ki_ros.rig import PANDA

pytestmark = pytest.mark.graph

DISABLED = ExecutorStatus.DISABLED
PERIOD = 1 / 50

PARAMETERS = """
executor:
  ros__parameters: {command_rate: 50.0}
"""

DISCOVERY_SECONDS = 6.0
"""How long Fast DDS may take to tell one process of another: what is lost of it is sent again every 3 s."""

FASTEST = 0.9 * PANDA.velocity
HARDEST = 0.9 * PANDA.acceleration


@pytest.fixture(scope="module")
def graph(tmp_path_factory, spinner) -> Iterator[tuple[MovingRig, Graph]]:
    """A rig with a policy, and the executor."""
    directory = tmp_path_factory.mktemp("graph")
    file = directory / "params.yaml"
    file.write_text(PARAMETERS)
    rig = MovingRig(context=spinner.context)
    spinner.start(rig)
    with Graph(bringup.Settings(nodes="executor", params_file=str(file)), directory / "logs") as graph:
        yield rig, graph


@pytest.fixture
def swinging(graph) -> tuple[MovingRig, Graph]:
    """A rig and an executor that moves it, whatever the test before has left behind."""
    rig, processes = graph
    wait(rig.service_is_ready, "the executor's services", check=processes.check)
    instruct(rig, "wave")
    enable(rig)
    wait(lambda: swings(rig), "motion", check=processes.check)
    return rig, processes


def enable(rig: MovingRig) -> None:
    """Enables as soon as that is not refused; discovery and joint states may take a moment."""

    def enabled() -> bool:
        answered(rig.call_operator(topics.RESET), topics.RESET)
        return answered(rig.call_enable(), topics.ENABLE).success

    wait(enabled, "enabling")


def swings(rig: MovingRig) -> bool:
    return rig.executing() and len(rig.velocities) > 0 and np.abs(rig.velocities[-1]).max() > 0.5


def refused(rig: MovingRig, why: str) -> None:
    """Sees that enabling is refused, and for what."""
    answered(rig.call_operator(topics.RESET), topics.RESET)

    def refusal() -> bool:
        answer = answered(rig.call_enable(), topics.ENABLE)
        assert not answer.success
        return re.search(why, answer.message) is not None

    # Where joint states are late for want of a processor, that comes first.
    wait(refusal, f"refusal for {why!r}")


def starts_from_rest(before: np.ndarray, positions: list[np.ndarray], velocities: list[np.ndarray]) -> None:
    """Asserts that commands go on where the last one was, or the arm is, and gather speed no faster than an arm may."""
    assert np.abs(positions[0][:7] - before).max() <= 1e-6
    for i, velocity in enumerate(velocities):
        assert np.all(np.abs(velocity) <= np.minimum(FASTEST, HARDEST * PERIOD * i) + 1e-9), i
    steps = np.abs(np.diff([before, *(p[:7] for p in positions)], axis=0))
    assert np.all(steps <= FASTEST * PERIOD + 1e-9)


def test_the_executor_is_killed(swinging):
    rig, graph = swinging
    since = send("executor", signal.SIGKILL)
    graph.kill("executor")
    gone = time.time()
    # Joint states that are published go on telling of the arm: what was under way has arrived by the second.
    count = len(rig.turns)
    wait(lambda: len(rig.turns) > count + 1.0 / JOINT_PERIOD, "a second")
    end = max(0.0, rig.commands[-1][0] - since)
    assert rig.commands[-1][0] <= gone
    np.testing.assert_allclose(rig.joints, rig.commands[-1][1][:7], atol=1e-6)
    note(
        "executor process killed",
        Hold("(no status)", end, None),
        "executor started again, /set_instruction, /enable, a chunk",
    )
    assert end <= busy(gone - since) + PERIOD
    stood, count, told = rig.joints.copy(), len(rig.commands), len(rig.statuses)
    graph.start("executor")
    wait(lambda: len(rig.statuses) > told + 10, "the executor that was started again", check=graph.check)
    assert {status.state for _, status in rig.statuses[told:]} == {DISABLED}
    wait(rig.service_is_ready, "its services")
    enable(rig)
    instruct(rig, "wave")
    wait(lambda: swings(rig), "motion", check=graph.check)
    starts_from_rest(stood, [q for _, q in rig.commands[count:]], rig.velocities[count : len(rig.commands)])


def test_the_executor_is_suspended(swinging):
    rig, _ = swinging
    since = send("executor", signal.SIGSTOP)
    try:
        turns = len(rig.turns)
        # Longer than Fast DDS waits for a reader of its shared memory before it counts it as gone.
        wait(lambda: len(rig.turns) > turns + 2.0 / JOINT_PERIOD, "two seconds")
        count = len(rig.commands)
        last, end = rig.commands[-1][1][:7], max(0.0, rig.commands[-1][0] - since)
        assert end <= PERIOD + busy(longest_pause(rig, since))
        np.testing.assert_allclose(rig.joints, last, atol=1e-6)
    finally:
        resumed, answering = time.time(), rig.sequence
        send("executor", signal.SIGCONT)
    wait(lambda: rig.commands[-1][0] > resumed and swings(rig), "motion")
    again = next(s for _, s in rig.statuses if seconds(s.header.stamp) > resumed)
    note("executor process suspended", Hold("(no status)", end, None), "it goes on from rest, then a new chunk")
    # What it begins with is no older than a chunk may be: nothing from before.
    assert again.state == ExecutorStatus.HOLDING or again.observation_sequence > answering - 0.5 / CHUNK_PERIOD
    starts_from_rest(last, [q for _, q in rig.commands[count:]], rig.velocities[count : len(rig.commands)])


def leaves(
    rig: MovingRig, since: float, reason: str, noticed: float = 0.0, check: Callable[[], object] = lambda: None
) -> Hold:
    """How the executor ends its commands by itself: it brakes, and when it stands it sends nothing any more."""

    def left() -> float | None:
        # Another executor that was never enabled says "disabled".
        stamps = [
            seconds(status.header.stamp)
            for _, status in rig.statuses[-20:]
            if status.reason == reason and status.state == DISABLED
        ]
        return next((stamp for stamp in stamps if stamp > since), None)

    ended, told = wait(left, "the end of commands", check=check), len(rig.statuses)
    wait(lambda: len(rig.statuses) > told + 10, "ticks without a command")
    assert rig.commands[-1][0] < ended
    # After a pause of its own it sends nothing until the arm is known to rest, and then has nothing to bring to rest.
    paused = ended - rig.commands[-1][0] > 5 * PERIOD
    assert paused or not rig.velocities[-1].any(), "it came to rest first"
    own = [(at, status) for at, status in list(rig.statuses) if status.reason != "disabled"]
    hold = Hold(reason, seconds_to_hold(own, since), seconds_to_rest(rig, since))
    in_time(hold, longest_pause(rig, since), noticed=noticed)
    return hold


def test_somebody_else_may_command_the_arm(swinging):
    rig, _ = swinging
    since = time.time()
    other = rig.create_publisher(Float64MultiArray, ARM_COMMANDS, topics.COMMAND_QOS)
    try:
        note(
            "another publisher of the arm's commands",
            leaves(rig, since, "not_alone"),
            "its end, then /reset and /enable",
        )
        refused(rig, "/fake_rig would move the arm too")
    finally:
        rig.destroy_publisher(other)
    enable(rig)
    wait(lambda: swings(rig), "motion")


def test_a_second_executor(swinging):
    """Both see each other. The one that moves the arm leaves it at rest, and neither is enabled.

    When the first is told is up to discovery; the second may be enabled at no time.
    """
    rig, _ = swinging
    command = [sys.executable, "-m", "ki_ros.nodes.executor", "--ros-args", "-r", "__node:=another"]
    second = subprocess.Popen(command, env=os.environ | bringup.environment(sim=False))
    try:
        wait(lambda: rig.count_publishers(topics.EXECUTOR_STATUS) > 1, "the second executor")
        told = len(rig.statuses)
        # All the while somebody presses enable, which both hear.
        hold = leaves(rig, time.time(), "not_alone", DISCOVERY_SECONDS, check=rig.call_enable)
        note("a second executor (is not enabled)", hold, "the end of one, then /reset and /enable")
        # What an executor says that is enabled and has been told nothing.
        assert not any(status.reason == "no_instruction" for _, status in rig.statuses[told:])
        # Both answer.
        refused(rig, "/(another|executor) would move the arm too")
    finally:
        second.terminate()
        assert second.wait(PATIENCE) == 0
    enable(rig)
    wait(lambda: swings(rig), "motion")


def test_nobody_takes_the_commands(swinging):
    rig, _ = swinging
    since = time.time()
    rig.remove_controller()
    try:
        note(
            "the arm's controller is gone", leaves(rig, since, "no_controller"), "a controller, then /reset and /enable"
        )
        refused(rig, f"nobody takes the arm's commands on {ARM_COMMANDS}")
    finally:
        rig.restore_controller()
    enable(rig)
    wait(lambda: swings(rig), "motion")
