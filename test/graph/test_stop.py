"""The operator's stop on the running graph, pressed at random moments of a motion that goes on being asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from fake_rig import SteppedRig
from faults import answered, instruct, seconds
from stream_checker import TABLE, Stream
from waiting import FAULTS, FIGURES, wait

from ki_ros import bringup
from ki_ros.commands.processes import Graph
from ki_ros.msg import ExecutorStatus
from ki_ros.nodes import topics
from ki_ros.nodes.stamps import from_message

pytestmark = [pytest.mark.graph, pytest.mark.timeout(3600)]

SHARE = 0.9
PERIOD = 1 / 50
SEED = 20

PARAMETERS = """
executor:
  ros__parameters: {command_rate: 50.0, use_sim_time: true}
"""

ACCELERATION = SHARE * np.array(TABLE["panda"])[:, 3]

QUANTA = 7
"""Periods that a stop may take beside the time in which the limit of acceleration takes the velocity away: its turn and
its end (1 each), rounding (1), a command's lag behind what is decided (2), and what was gained within that lag (2)."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory, spinner) -> Iterator[SteppedRig]:
    """A rig that swings, and the executor: a tick a period, one in ten of them late."""
    directory = tmp_path_factory.mktemp("graph")
    file = directory / "params.yaml"
    file.write_text(PARAMETERS)
    late = random.Random(SEED)

    def steps() -> int:
        return late.choice([2, 3]) if late.random() < 0.1 else 1

    rig = SteppedRig(period=PERIOD, pace=3.0, steps=steps, context=spinner.context)
    spinner.start(rig)
    with Graph(bringup.Settings(nodes="executor", params_file=str(file)), directory / "logs") as graph:
        wait(rig.service_is_ready, "the executor's services", check=graph.check)
        instruct(rig, "wave")
        yield rig


class Commands:
    """What the executor sends between an enabling and a reset."""

    def __init__(self, rig: SteppedRig) -> None:
        self._rig, self.first = rig, len(rig.commands)

    def times(self) -> np.ndarray:
        return np.array([stamp for stamp, _ in list(self._rig.commands)[self.first :]])

    def velocities(self) -> np.ndarray:
        return np.array(list(self._rig.velocities)[self.first : len(self._rig.commands)])

    def violations(self) -> list:
        stream, before = Stream("panda", PERIOD), None
        for (stamp, positions), velocities in zip(
            list(self._rig.commands)[self.first :], list(self._rig.velocities)[self.first :], strict=False
        ):
            stream.add(PERIOD if before is None else stamp - before, positions[:7], velocities)
            before = stamp
        return stream.violations(SHARE, SHARE)


def restart(rig: SteppedRig) -> Commands:
    """Resets, sees that this moves nothing, and enables."""
    reset = answered(rig.call_operator(topics.RESET), topics.RESET)
    if reset.success:
        wait(lambda: rig.status.state == ExecutorStatus.DISABLED, "the reset")
        count, told = len(rig.commands), len(rig.statuses)
        wait(lambda: len(rig.statuses) >= told + 5, "ticks after a reset")
        assert len(rig.commands) == count
    commands = Commands(rig)
    wait(lambda: answered(rig.call_enable(), topics.ENABLE).success, "enabling")
    return commands


def ticks(rig: SteppedRig, number: int) -> None:
    told = len(rig.statuses)
    wait(lambda: len(rig.statuses) >= told + number, "ticks")


def press(rig: SteppedRig, chance: random.Random) -> tuple[float, float]:
    """Stops the arm at a random moment of its motion; seconds to the tick that brakes, and to rest."""
    commands = restart(rig)
    wait(lambda: rig.executing() and np.abs(rig.velocities[-1]).max() > 0.1, "motion")
    ticks(rig, chance.randrange(30))
    pressed, told = rig.sim_ns / 1e9, len(rig.statuses)
    future = rig.call_operator(topics.STOP)
    assert answered(future, topics.STOP).success
    answer_ns = rig.sim_ns

    def stands() -> bool:
        return rig.status.reason == "stopped" and not np.any(rig.velocities[-10:])

    wait(stands, "rest")
    # The policy goes on asking for motion, and so does whoever enables without a reset.
    assert not answered(rig.call_enable(), topics.ENABLE).success, "it would be taken to move again"
    ticks(rig, 10)

    statuses = [(seconds(status.header.stamp), status) for _, status in rig.statuses[told:]]
    # What the clock showed when the answer came, the executor may have heard of before.
    after = [status for _, status in rig.statuses[told:] if from_message(status.header.stamp) > answer_ns]
    assert {(status.state, status.reason) for status in after} == {(ExecutorStatus.HOLDING, "stopped")}
    braked = next(stamp for stamp, status in statuses if status.reason == "stopped")
    assert all(status.reason == "stopped" for stamp, status in statuses if stamp >= braked)
    times, velocities = commands.times(), commands.velocities()
    times = times[: len(velocities)]
    speeds = np.abs(velocities[times >= braked - 1e-6])
    assert np.all(np.diff(speeds[1:], axis=0) <= 1e-9), "a joint became faster after the tick after the stop"
    moving = np.abs(velocities[times >= braked - 2 * PERIOD - 1e-6])
    # Of late ticks, only a period passes for the motion.
    number = int(np.count_nonzero(speeds.any(axis=1)))
    allowed = (moving[:4].max(axis=0) / ACCELERATION).max() / PERIOD + QUANTA
    assert number <= allowed, f"{number} ticks in motion, {allowed:.1f} allowed"
    assert commands.violations() == []
    rest = times[times >= braked - 1e-6][number]
    return braked - pressed, rest - pressed


def test_stop_at_any_time(rig, full):
    """The next tick brakes, no joint becomes faster, the arm rests in time, and only reset and enable end it."""
    pressed, chance = 1000 if full else 30, random.Random(SEED)
    taken = [press(rig, chance) for _ in range(pressed)]
    braked, rest = np.array(taken).T
    usual, most = (1e3 * np.array([f(braked), f(rest)]) for f in (np.median, np.max))
    FIGURES.append(
        f"stop pressed {pressed} times: brakes after {usual[0]:.0f} ms ({most[0]:.0f} at most), rests after "
        f"{usual[1]:.0f} ms ({most[1]:.0f} at most), in the robot's time"
    )
    FAULTS.append(
        {
            "fault": f"/stop pressed {pressed} times (the longest)",
            "hold_s": float(braked.max()),
            "rest_s": float(rest.max()),
            "reason": "stopped",
            "recovery": "/reset, then /enable, then a new chunk",
        }
    )
