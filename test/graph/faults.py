"""Causing a fault of a running graph, and measuring how soon the arm is held, and how soon it is at rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from fake_rig import FakeRig
from waiting import FAULTS, wait

from ki_ros.msg import ExecutorStatus
from ki_ros.nodes import stamps

HOLD_SECONDS = 0.3
"""The longest time from a fault to the tick that brakes for it."""

STOP_SECONDS = 0.4
"""The longest time from there to rest: what the limits of the arm ask for, and a few periods."""

BUSY_SECONDS = 0.06
"""A process that has something to do every 0.02 s and did nothing for so long had no processor."""

MEASURING_SECONDS = 45.0
"""How long the measurement of one fault is repeated for a better one before it counts, however busy the machine is."""


class Hold(NamedTuple):
    """What a fault did: why the arm is held, and seconds from the fault until it is, and until it is at rest."""

    reason: str
    hold: float
    rest: float | None


def instruct(rig: FakeRig, text: str):
    """Sets an instruction; the answer."""
    future = rig.call_set_instruction(text)
    wait(future.done, "answer of set_instruction")
    assert future.result().success, future.result().message
    return future.result()


def answered(future, what: str):
    """The answer of a service."""
    wait(future.done, f"answer of {what}")
    return future.result()


def holds(
    rig: FakeRig,
    fault: str,
    cause: Callable[[], None],
    repair: Callable[[], None],
    reasons: set[str],
    recovery: str,
) -> None:
    """Causes a fault of the running graph; asserts that the arm holds in time and why, and that the repair ends it.

    To hold begins with the first tick that does not execute, and is over when the arm is at rest.

    On a busy machine the arm may be held for another reason first, as nothing reaches the executor while the drivers
    wait for a processor; and a time then says more of the machine than of the graph. Such a measurement is repeated. If
    there is no better one in the end, what the processes had to wait for their turn is allowed for.
    """
    seen = []
    last = time.monotonic() + MEASURING_SECONDS
    while True:
        wait(rig.executing, "execution")
        since = time.time()
        try:
            cause()
            causing = time.time() - since
            reason = held_because(rig, since, reasons)
            wait(lambda: at_rest(rig), "rest")
            hold = Hold(reason, seconds_to_hold(rig.statuses, since), seconds_to_rest(rig, since))
            pause = max(causing, longest_pause(rig, since))
        finally:
            repair()
        wait(rig.executing, f"execution after: {recovery}")
        seen.append(f"{hold}, a process waited for {pause:.3f} s")
        if (reason in reasons and pause <= BUSY_SECONDS) or time.monotonic() > last:
            break
    assert reason in reasons, "; ".join(seen)
    note(fault, hold, recovery)
    in_time(hold, pause, "; ".join(seen))


def note(fault: str, hold: Hold, recovery: str) -> None:
    """A row of the fault table."""
    times = {"hold_s": hold.hold, "rest_s": hold.rest}
    FAULTS.append({"fault": fault, **times, "reason": hold.reason, "recovery": recovery})


def in_time(hold: Hold, pause: float = 0.0, seen: str = "", noticed: float = 0.0) -> None:
    """Asserts that the arm was held, and came to rest, as soon as it must; allows for a pause of a process [s].

    `noticed`: how long it may be before there is anything to be noticed in this process [s].
    """
    assert hold.hold <= noticed + HOLD_SECONDS + busy(pause), seen or hold
    assert hold.rest - hold.hold <= STOP_SECONDS + busy(pause), seen or hold


def held_because(rig: FakeRig, since: float, reasons: set[str]) -> str:
    """One of the reasons as soon as the arm is held for it; another one if it is held and none of these come."""
    deadline = time.monotonic() + 5.0
    while rig.status.reason not in reasons and time.monotonic() < deadline:
        time.sleep(0.01)
    wait(lambda: seconds(rig.status.header.stamp) > since and not rig.executing(), "hold")
    return rig.status.reason


def at_rest(rig: FakeRig) -> bool:
    """Whether the last ten commands stand still: a hold goes on being streamed."""
    return not np.any(rig.velocities[-10:])


def seconds_to_hold(statuses: list[tuple[float, ExecutorStatus]], since: float) -> float:
    """How long after `since` the executor began not to execute, as it does now."""
    begun = None
    for _, status in reversed(list(statuses)):
        stamp = seconds(status.header.stamp)
        if stamp <= since or status.state == ExecutorStatus.EXECUTING:
            break
        begun = stamp
    assert begun is not None, "the executor executes"
    return begun - since


def seconds_to_rest(rig: FakeRig, since: float) -> float:
    """How long after `since` the last command with a velocity came."""
    # Velocities are kept before their commands are.
    moving = [stamp for (stamp, _), v in zip(list(rig.commands), list(rig.velocities), strict=False) if v.any()]
    assert moving, "the arm never moved"
    return max(0.0, moving[-1] - since)


def longest_pause(rig: FakeRig, since: float) -> float:
    """The longest time since then in which the executor or the rig did not get to run, in the fault's first seconds."""
    end = since + 2 * HOLD_SECONDS
    ticks = [seconds(status.header.stamp) for _, status in list(rig.statuses)]
    return max(
        float(np.diff([since, *(t for t in times if since < t < end)]).max(initial=0.0))
        for times in (ticks, list(rig.turns))
    )


def busy(pause: float) -> float:
    """What a busy machine may have added to the time to hold [s]: nothing where every process got its turn."""
    return pause if pause > BUSY_SECONDS else 0.0


def seconds(stamp) -> float:
    """Of a message's stamp."""
    return stamps.from_message(stamp) * 1e-9
