"""Schedules: which action is in force at a time, given the chunks that have come. One small class each."""

from __future__ import annotations

from ki_ros.execution.schedule.latency_compensated import LatencyCompensated
from ki_ros.execution.schedule.real_time import RealTime
from ki_ros.execution.schedule.step import NANOSECONDS, Schedule, Step
from ki_ros.execution.schedule.synchronous import Synchronous
from ki_ros.execution.schedule.temporal_ensemble import TemporalEnsemble

REAL_TIME = ("rtc", "rtc_trained")
"""Real-time chunking: the policy is told what the arm is committed to, and is guided by it, or goes on from it as it
was trained to. The executor's part is the same."""

SCHEDULES = ("synchronous", "latency_compensated", "temporal_ensemble", *REAL_TIME)

__all__ = [
    "NANOSECONDS",
    "REAL_TIME",
    "SCHEDULES",
    "LatencyCompensated",
    "RealTime",
    "Schedule",
    "Step",
    "Synchronous",
    "TemporalEnsemble",
    "make_schedule",
]


def make_schedule(name: str, *, open_loop_horizon: int, max_age_ns: int, ensemble_decay: float) -> Schedule:
    """The schedule of that name; see the classes for the arguments.

    Raises:
        ValueError: a name that is not one of `SCHEDULES`, or an argument out of its range.
    """
    if name == "synchronous":
        return Synchronous(open_loop_horizon, max_age_ns)
    if name == "latency_compensated":
        return LatencyCompensated(open_loop_horizon, max_age_ns)
    if name == "temporal_ensemble":
        return TemporalEnsemble(ensemble_decay, max_age_ns)
    if name in REAL_TIME:
        return RealTime(max_age_ns)
    raise ValueError(f"schedule is {name!r}; use one of {', '.join(SCHEDULES)}")
