"""Closed-loop episodes of a policy, and what they say: success and language following, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ki_ros.execution.schedule import REAL_TIME, SCHEDULES
from ki_ros.lockstep.loop import Lockstep, Observed
from ki_ros.lockstep.smoothness import Smoothness
from ki_ros.rig import CONTROL_HZ, ActionSpace, CameraRole
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.simulated_rig import SimulatedRig
from ki_ros.sim.tasks import BLOCKS, Layout, Referee, Task, draw_layout

SEED_OFFSET = 1_000_000
"""Between the seeds of one evaluation and the next: those of demonstrations are below the first."""

_Z = 1.959964
"""Standard normal quantile of 97.5 %."""


class Acts(Protocol):
    """A policy, as `ki_ros.policy.Policy` is one."""

    @property
    def action_space(self) -> ActionSpace:
        """Of its actions."""
        ...

    def reseed(self, seed: int) -> None:
        """An episode begins; whatever is random in it follows from the seed."""
        ...

    def infer(self, views: dict[CameraRole, np.ndarray], state: np.ndarray, instruction: str) -> np.ndarray | None:
        """Actions (horizon, 8); None for none. For real-time chunking it takes more, as `Policy.infer` does."""
        ...


@dataclass(frozen=True)
class Result:
    """How an episode went.

    Attributes:
        task, seed, instruction, target: what was asked for.
        success: whether it was done.
        seconds: when [s]; None without success.
        went_to: colour of the block that the arm went to first; None for none.
        followed: whether that is the one that was named.
        closest: least distance of the fingertips from the point above the named block [m].
        interventions: ticks in which the guard changed the command.
        holds: how often the arm was held, by reason.
        refused: observations that the policy had no actions for.
        seam_step, seam_step_mean: largest and mean of its `Smoothness.seam_steps` [rad/s]; 0 without a seam.
        rms_jerk: of its commands [rad/s^3].
    """

    task: str
    seed: int
    instruction: str
    target: str
    success: bool
    seconds: float | None
    went_to: str | None
    followed: bool
    closest: float
    interventions: int
    holds: dict[str, int]
    refused: int
    seam_step: float = 0.0
    seam_step_mean: float = 0.0
    rms_jerk: float = 0.0


def episode_seed(seed: int, episode: int) -> int:
    """Seed of an episode's layout; no demonstration has it, whatever the evaluation's seed is."""
    return SEED_OFFSET * (seed + 1) + episode


class Evaluator:
    """Runs episodes of a policy on a rig of its own. Not for several threads.

    Args:
        policy: what acts.
        replan: rows of a chunk to execute before the next one.
        latency: of the policy in simulated time [s].
        schedule: one of `ki_ros.execution.schedule.SCHEDULES`.

    Raises:
        ValueError: a schedule that is not known.
    """

    def __init__(
        self, policy: Acts, *, replan: int = 5, latency: float = 0.0, schedule: str = "latency_compensated"
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule is {schedule!r}; use one of {', '.join(SCHEDULES)}")
        self._policy, self._replan, self._latency, self._schedule = policy, replan, latency, schedule
        self._rig = SimulatedRig()
        self._kinematics = Kinematics.of(self._rig)

    def run(self, task: Task, seed: int) -> Result:
        """The episode of that task and seed, whatever episodes were before it."""
        return self.play(draw_layout(task, seed, self._kinematics))

    def play(self, layout: Layout) -> Result:
        """The episode that begins so: one that was drawn, or one with another block or other words for it."""
        rig, policy = self._rig, self._policy
        layout.place(rig)
        referee = Referee(layout, rig)
        policy.reseed(layout.seed)

        def watch() -> bool:
            referee.look()
            return referee.success

        refused = 0

        def act(observed: Observed) -> np.ndarray | None:
            nonlocal refused
            inputs = (dict(observed.views), observed.state, layout.instruction)
            if self._schedule in REAL_TIME:
                actions = policy.infer(*inputs, observed.commitment, trained=self._schedule == "rtc_trained")
            else:
                actions = policy.infer(*inputs)
            refused += actions is None
            return actions

        phase = float(np.random.default_rng((layout.seed, 78)).uniform(0.0, 0.95 / CONTROL_HZ))
        smoothness = Smoothness()
        executor = Lockstep(rig, replan=self._replan, latency=self._latency, phase=phase, schedule=self._schedule).run(
            act, policy.action_space, layout.task.seconds, watch=watch, listener=smoothness
        )
        seams = smoothness.seam_steps
        return Result(
            task=layout.task.value,
            seed=layout.seed,
            instruction=layout.instruction,
            target=layout.target,
            success=referee.success,
            seconds=referee.success_seconds,
            went_to=referee.went_to,
            followed=referee.followed,
            closest=referee.closest,
            interventions=sum(executor.interventions.values()),
            holds=dict(executor.holds),
            refused=refused,
            seam_step=float(seams.max(initial=0.0)),
            seam_step_mean=float(seams.mean()) if len(seams) else 0.0,
            rms_jerk=smoothness.rms_jerk,
        )

    def close(self) -> None:
        """Frees the graphics context."""
        self._rig.close()


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of 95 % for a share (Wilson, 1927); the whole range where there were no trials."""
    if not trials:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Figures overall, per task and per instruction; `language_following` by chance is one in `BLOCKS`."""
    figures = _figures(results)
    figures["chance_of_following"] = 1.0 / BLOCKS
    figures["tasks"] = {task: _figures(some) for task, some in _grouped(results, lambda r: r.task)}
    figures["instructions"] = {text: _figures(some) for text, some in _grouped(results, lambda r: r.instruction)}
    figures["results"] = [asdict(result) for result in results]
    return figures


def _grouped(results: Iterable[Result], key: Callable[[Result], str]) -> Iterable[tuple[str, list[Result]]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return sorted(groups.items())


def _figures(results: Sequence[Result]) -> dict[str, Any]:
    count = len(results)
    successes, followed = sum(r.success for r in results), sum(r.followed for r in results)
    seconds = [r.seconds for r in results if r.seconds is not None]
    return {
        "episodes": count,
        "successes": successes,
        "success_rate": successes / count if count else 0.0,
        "success_interval": wilson(successes, count),
        "followed": followed,
        "language_following": followed / count if count else 0.0,
        "language_following_interval": wilson(followed, count),
        "seconds_median": float(np.median(seconds)) if seconds else None,
        "closest_median": float(np.median([r.closest for r in results])) if count else None,
        "seam_step_largest": max(r.seam_step for r in results) if count else None,
        "seam_step_mean_median": float(np.median([r.seam_step_mean for r in results])) if count else None,
        "rms_jerk_median": float(np.median([r.rms_jerk for r in results])) if count else None,
    }
