"""A simulated clock that jumps under the executor and the observation node, while the arm swings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fake_rig import SteppedRig
from faults import answered, instruct, seconds
from stream_checker import Stream
from waiting import FAULTS, wait

from ki_ros import bringup, msg
from ki_ros.commands.processes import Graph
from ki_ros.nodes import topics

pytestmark = pytest.mark.graph

PERIOD = 1 / 50
SHARE = 0.9

PARAMETERS = """
observation:
  ros__parameters:
    use_sim_time: true
    exterior_1: {topic: /camera/exterior_1/image_raw}
    wrist: {topic: /camera/wrist/image_raw}
executor:
  ros__parameters: {command_rate: 50.0, use_sim_time: true}
"""


class Watching(SteppedRig):
    """Keeps what the observation node says."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.observed: list[msg.ObservationStatus] = []
        self.create_subscription(
            msg.ObservationStatus, topics.OBSERVATION_STATUS, self.observed.append, topics.NEWEST_QOS
        )


@pytest.fixture(scope="module")
def graph(tmp_path_factory, spinner) -> Iterator[tuple[Watching, Graph]]:
    """A rig with a policy and a clock, the observation node, and the executor."""
    directory = tmp_path_factory.mktemp("graph")
    file = directory / "params.yaml"
    file.write_text(PARAMETERS)
    rig = Watching(period=PERIOD, pace=1.0, context=spinner.context)
    spinner.start(rig)
    settings = bringup.Settings(nodes="observation,executor", params_file=str(file))
    with Graph(settings, directory / "logs") as graph:
        wait(rig.service_is_ready, "the executor's services", check=graph.check)
        instruct(rig, "wave")
        wait(lambda: answered(rig.call_enable(), topics.ENABLE).success, "enabling")
        yield rig, graph


def swings(rig: Watching) -> bool:
    return rig.executing() and len(rig.velocities) > 20 and np.abs(rig.velocities[-1]).max() > 0.3


def observes(rig: Watching) -> bool:
    """Whether there was an observation just now, in the time that is."""
    if not rig.observed or not rig.observed[-1].complete:
        return False
    return abs(seconds(rig.observed[-1].header.stamp) - rig.sim_ns / 1e9) < 0.2


@pytest.mark.parametrize("jump", [-10.0, -0.05, 0.3, 10.0])
def test_the_simulated_clock_jumps(graph, jump):
    """The first tick after a jump holds the arm. What comes after is a motion within the limits, in the new time.

    Back: the arm brakes. Forward: in the robot's time it has come to rest meanwhile, as nothing was sent for so long.
    """
    rig, processes = graph
    wait(lambda: swings(rig) and observes(rig), "motion", check=processes.check)
    sent, told = len(rig.commands), len(rig.statuses)
    rig.jump(jump)
    wait(lambda: after_jump(times_of(rig.statuses, told - 5)) is not None, "a tick after the jump")
    status = rig.statuses[told - 5 + after_jump(times_of(rig.statuses, told - 5))][1]
    assert status.state == msg.ExecutorStatus.HOLDING
    wait(lambda: after_jump([t for t, _ in rig.commands[sent - 5 :]]) is not None, "a command after the jump")
    first = sent - 5 + after_jump([t for t, _ in rig.commands[sent - 5 :]])
    wait(lambda: len(rig.commands) > first + 1.0 / PERIOD and swings(rig) and observes(rig), "motion")

    commands = rig.commands[first - 5 :]
    times, positions = [t for t, _ in commands], [q[:7] for _, q in commands]
    velocities = rig.velocities[first - 5 : first - 5 + len(commands)]
    stream = Stream("panda", PERIOD)
    if jump > 0:
        # From rest at the last command.
        np.testing.assert_allclose(positions[5], positions[4], atol=1e-9)
        times[:5] = times[5] - PERIOD * np.arange(5, 0, -1)
        positions[:5], velocities[:5] = [positions[4]] * 5, [np.zeros(7)] * 5
    for i, (position, velocity) in enumerate(zip(positions, velocities, strict=True)):
        stream.add(times[i] - times[i - 1] if i else PERIOD, position, velocity)
    assert stream.violations(SHARE, SHARE) == []
    resting = [t for t, v in zip(times[5:], velocities[5:], strict=True) if not v.any()]
    FAULTS.append(
        {
            "fault": f"simulated clock jumps by {jump:+g} s",
            "hold_s": 0.0,
            "rest_s": resting[0] - times[5] if resting else None,
            "reason": status.reason,
            "recovery": "joint states of the new time, then a new chunk",
        }
    )


def times_of(statuses: list[tuple[float, msg.ExecutorStatus]], first: int) -> list[float]:
    return [seconds(status.header.stamp) for _, status in statuses[first:]]


def after_jump(times: list[float]) -> int | None:
    """The first of these after a jump of the clock; None before there was one."""
    steps = np.diff(times)
    apart = np.flatnonzero((steps < 0) | (steps > 0.2))
    return int(apart[0]) + 1 if len(apart) else None
