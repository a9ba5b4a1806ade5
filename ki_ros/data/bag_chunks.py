"""Training samples from cached episodes: at each step, an observation and the actions that were commanded from it on.

Shapes: T steps of an episode, H action horizon, M steps that are trained on.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from ki_ros.data.cache import Cache, CachedEpisode, CacheError
from ki_ros.data.cache.episode import OUTCOMES
from ki_ros.rig import CONTROL_HZ, NUM_JOINTS, POLICY_VIEWS, VELOCITY_TO_DELTA, ActionSpace, CameraRole
from ki_ros.sample import Sample, sample_index

KEPT_IDLE_STEPS = 8
"""Of each run of idle steps, so many are trained on: enough to learn to stop, too few to learn to wait."""

_RATE_TOLERANCE = 0.1
"""Share by which the rate of steps may differ from `CONTROL_HZ`: clocks and drivers are a little off."""


class BagChunks:
    """Samples of a cache's episodes, a `SampleSource`: one for each step that is trained on, in the cache's order.

    Row k of the actions at step t holds the closedness that was commanded for the end of step t + k, and, for the
    joints, the positions [rad] that were in joint_position space; in joint_velocity space their distance from the
    positions measured at step t + k, divided by `VELOCITY_TO_DELTA`. Rows past the end of the step's segment hold the
    arm: velocity 0 or the last position, and the last closedness; their mask is false.

    With `drop_idle`, of each run of idle steps the first `KEPT_IDLE_STEPS` have samples. The others are still rows of
    the chunks before them: no chunk has a gap.

    With `hold_after_end`, rows past an episode's end are trained on too: holding is what the policy is to do when it
    is done. Rows past the end of a segment inside an episode never are, nor those past the last step of an episode of
    which more is unknown (`CachedEpisode.ended`): the arm went on, but nobody saw how.

    A picture is decoded when a sample with it is asked for. Can be pickled: another process opens the cache by itself.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        horizon: int = 15,
        action_space: ActionSpace,
        views: tuple[CameraRole, ...] = POLICY_VIEWS,
        outcomes: Sequence[str] = ("success",),
        drop_idle: bool = True,
        hold_after_end: bool = False,
        episodes: Sequence[int] | None = None,
        missing_views: Literal["refuse", "mask"] = "refuse",
        instruction: str = "",
    ) -> None:
        """Chooses episodes and steps.

        Args:
            cache: with the episodes.
            horizon: H, rows of actions of a sample.
            action_space: what the first seven values of a row mean.
            views: cameras of a sample; none to train on states alone.
            outcomes: of "success", "failure" and "unknown", those of episodes to take.
            drop_idle: whether idle steps are left out, but for the first few.
            hold_after_end: whether actions past the end of an episode that `ended` count. Right for demonstrations
                that end at rest.
            episodes: numbers of episodes in the cache to choose from; all when None.
            missing_views: what to do with episodes that have no pictures of one of `views`: refuse them, or leave that
                view out of their samples.
            instruction: of episodes that have none of their own; empty to refuse them.

        Raises:
            ValueError: a horizon below 1; an unknown action space, view, outcome or `missing_views`, or one twice; an
                episode that the cache does not have.
            CacheError: no episode is left; an episode without an instruction, of another rate than policies act at
                (`CONTROL_HZ`; what its steps' stamps say counts too), or, where missing views are refused, without
                pictures of one of `views`.
        """
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; give at least 1 step")
        if missing_views not in ("refuse", "mask"):
            raise ValueError(f"missing_views is {missing_views!r}; use 'refuse' or 'mask'")
        self.cache = cache
        self.horizon = horizon
        self._action_space = ActionSpace.parse(action_space)
        self.views = _parse_views(views)
        self.episodes = select_episodes(cache, outcomes, episodes)
        self._instruction = instruction
        self._refuse_unusable(missing_views)
        chosen = [cache.episodes[number] for number in self.episodes]
        rows = np.concatenate([np.arange(episode.first, episode.first + episode.length) for episode in chosen])
        # Of each row: the segment's end, and whether its step is trained on. Both per episode, so that no run of idle
        # steps and no segment goes on in the next one.
        ends = np.concatenate([episode.first + _run_ends(_segments(cache, episode)) for episode in chosen])
        if drop_idle:
            kept = np.concatenate([_kept(_segments(cache, episode), _idle(cache, episode)) for episode in chosen])
            rows, ends = rows[kept], ends[kept]
        self._steps, self._ends = rows, ends
        # Up to where rows of actions count: without a limit where the segment ends with the episode.
        self._limits = ends.copy()
        if hold_after_end:
            done = [episode.first + episode.length for episode in chosen if episode.ended]
            self._limits[np.isin(ends, done)] = np.iinfo(ends.dtype).max
        self._hold_after_end = hold_after_end

    @property
    def action_space(self) -> ActionSpace:
        """What the first seven values of an action mean."""
        return self._action_space

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the samples, pictures too, wherever the cache lies."""
        facts = {
            "horizon": self.horizon,
            "hold_after_end": self._hold_after_end,
            "action_space": self._action_space.value,
            "views": [view.value for view in self.views],
            "episodes": [self.cache.episodes[number].digest for number in self.episodes],
            "instructions": [self._instruction_of(self.cache.episodes[number]) for number in self.episodes],
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        first = {number: self.cache.episodes[number].first for number in self.episodes}
        for number in self.episodes:
            low, high = np.searchsorted(
                self._steps, (first[number], first[number] + self.cache.episodes[number].length)
            )
            digest.update((self._steps[low:high] - first[number]).astype("<i8").tobytes())
        return digest.hexdigest()

    def states_and_actions(self) -> tuple[np.ndarray, np.ndarray]:
        """What statistics are computed over: state and first action of every sample, each step once.

        Returns:
            (M, 8) and (M, 8) float64. No picture is decoded.
        """
        return self.cache.states[self._steps], self._actions(self._steps, self._ends)

    def chunks(self, indices: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Actions (N, H, 8) float64 and masks (N, H) of samples by their indices (N,), or of all M.

        No picture is decoded.
        """
        chosen = slice(None) if indices is None else indices
        steps = self._steps[chosen, None] + np.arange(self.horizon)
        return self._actions(steps, self._ends[chosen, None]), steps < self._limits[chosen, None]

    def whole(self) -> np.ndarray:
        """(M,) bool, whether all rows of a sample's chunk count."""
        return self._steps + (self.horizon - 1) < self._limits

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Sample:
        """The sample of that index, with arrays of its own.

        Raises:
            IndexError: an index that is not in 0 .. len - 1.
            CacheError: a picture that is damaged.
        """
        episode, step = self._place(index)
        end = int(self._ends[index])
        steps = np.arange(step, step + self.horizon)
        return Sample(
            views={view: self.cache.view(step, view) for view in self.views if view in episode.views},
            state=self.cache.states[step].copy(),
            instruction=self._instruction_of(episode),
            actions=self._actions(steps, end),
            action_mask=steps < self._limits[index],
        )

    def describe(self, index: int) -> str:
        """Step, episode and recording of the sample of that index. Raises IndexError."""
        episode, step = self._place(index)
        return f"step {step - episode.first} of {episode.id!r} of {episode.bag}"

    def _place(self, index: int) -> tuple[CachedEpisode, int]:
        """A sample's episode, and its step in the cache."""
        index = sample_index(index, len(self))
        step = int(self._steps[index])
        return self.cache.episodes[self.cache.episode_of(step)], step

    def _actions(self, steps: np.ndarray, ends: np.ndarray | int) -> np.ndarray:
        """Actions (..., 8) at steps (...,) of segments that end before `ends`."""
        last = np.asarray(ends) - 1
        inside = np.minimum(steps, last)
        actions = step_actions(self.cache.states[inside], self.cache.targets[inside], self._action_space)
        if self._action_space is ActionSpace.JOINT_VELOCITY:
            actions[steps > last, :NUM_JOINTS] = 0.0
        return actions

    def _instruction_of(self, episode: CachedEpisode) -> str:
        return episode.instruction if episode.instruction.strip() else self._instruction

    def _refuse_unusable(self, missing_views: str) -> None:
        chosen = [self.cache.episodes[number] for number in self.episodes]
        if silent := [episode for episode in chosen if not self._instruction_of(episode).strip()]:
            raise CacheError(
                f"{len(silent)} of {len(chosen)} episodes have no instruction, the first is {silent[0].id!r} of "
                f"{silent[0].bag}; record them with one, or take these bags out of the directory"
            )
        # Rows of a chunk are executed so far apart: learnt at another rate they would be faster or slower than shown.
        rates = [(episode, _rate(self.cache, episode)) for episode in chosen]
        if other := [each for each in rates if abs(each[1] / CONTROL_HZ - 1) > _RATE_TOLERANCE]:
            episode, rate = other[0]
            raise CacheError(
                f"{len(other)} of {len(chosen)} episodes do not have the {CONTROL_HZ:g} steps a second that policies "
                f"act in, the first is {episode.id!r} of {episode.bag} with {rate:.1f}; observe at "
                f"{CONTROL_HZ:g} Hz, or take these out of the directory"
            )
        if missing_views == "mask":
            return
        lacking = [(episode, view) for episode in chosen for view in self.views if view not in episode.views]
        if lacking:
            episode, view = lacking[0]
            count = len({id(episode) for episode, _ in lacking})
            raise CacheError(
                f"{count} of {len(chosen)} episodes lack a view, the first is {episode.id!r} of {episode.bag} without "
                f"{view.value} (it has {', '.join(has.value for has in episode.views) or 'none'}); leave it out of "
                "views, take these bags out of the directory, or give missing_views='mask' to train without the views "
                "that they lack"
            )


def step_actions(states: np.ndarray, targets: np.ndarray, action_space: ActionSpace) -> np.ndarray:
    """Actions (..., 8) of steps with these states and targets, (..., 8) each: row 0 of their chunks."""
    actions = targets.copy()
    if action_space is ActionSpace.JOINT_VELOCITY:
        actions[..., :NUM_JOINTS] = (targets[..., :NUM_JOINTS] - states[..., :NUM_JOINTS]) / VELOCITY_TO_DELTA
    return actions


def select_episodes(cache: Cache, outcomes: Sequence[str], episodes: Sequence[int] | None = None) -> tuple[int, ...]:
    """Numbers of the episodes of these outcomes, in ascending order, among `episodes` where they are given.

    Raises:
        ValueError: an unknown outcome, no outcome, or an episode that the cache does not have, or one twice.
        CacheError: no episode has one of these outcomes.
    """
    if not outcomes or (wrong := [outcome for outcome in outcomes if outcome not in OUTCOMES]):
        raise ValueError(f"outcomes has {wrong[0] if outcomes else 'nothing'!r}; use some of {', '.join(OUTCOMES)}")
    there = range(len(cache.episodes))
    numbers = list(there) if episodes is None else sorted(operator.index(number) for number in episodes)
    if bad := [number for number in numbers if number not in there]:
        raise ValueError(f"episodes has {bad[0]}; {cache.directory} has 0 to {len(there) - 1}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"episodes has {next(n for n in numbers if numbers.count(n) > 1)} twice; give each once")
    chosen = tuple(number for number in numbers if cache.episodes[number].outcome in outcomes)
    if not chosen:
        counts = {outcome: sum(cache.episodes[n].outcome == outcome for n in numbers) for outcome in OUTCOMES}
        has = ", ".join(f"{count} of outcome {outcome}" for outcome, count in counts.items() if count) or "none"
        raise CacheError(
            f"{cache.directory}: no episode of outcome {' or '.join(outcomes)} among {len(numbers)} (there are: "
            f"{has}); change outcomes, or add episodes"
        )
    return chosen


def split_episodes(cache: Cache, episodes: Sequence[int], held_out: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Splits episodes into those to train on and those to hold out, by a hash of their ids.

    Where nothing changes but that episodes are added, hardly any moves from one side to the other. Episodes of equal
    ids are on the same side.

    Args:
        cache: with the episodes.
        episodes: their numbers.
        held_out: below 1 the share of the ids to hold out, rounded, at least one where it is above 0; from 1 on, how
            many.

    Returns:
        Numbers of episodes of both sides, in ascending order.

    Raises:
        ValueError: fewer than 0, a number that is not whole, or so many that none is left to train on.
    """
    ids = sorted(
        {cache.episodes[number].id for number in episodes}, key=lambda id: hashlib.sha256(id.encode()).digest()
    )
    if not (0 <= held_out < float("inf") and (held_out < 1 or held_out == int(held_out))):
        raise ValueError(f"held_out is {held_out}; give a share below 1, or a whole number of episodes")
    count = int(held_out) if held_out >= 1 else max(round(held_out * len(ids)), int(held_out > 0))
    if count >= len(ids):
        raise ValueError(
            f"held_out is {held_out:g}, but there are {len(ids)} episodes; hold out fewer, or add episodes"
        )
    apart = set(ids[:count])
    train = tuple(sorted(number for number in episodes if cache.episodes[number].id not in apart))
    return train, tuple(sorted(number for number in episodes if cache.episodes[number].id in apart))


def _parse_views(views: Sequence[CameraRole]) -> tuple[CameraRole, ...]:
    known = [role.value for role in CameraRole]
    if wrong := [view for view in views if view not in known]:
        raise ValueError(f"views has {wrong[0]!r}, which is no camera; use some of {', '.join(known)}")
    parsed = tuple(CameraRole(view) for view in views)
    if len(set(parsed)) < len(parsed):
        raise ValueError(f"views has {', '.join(view.value for view in parsed)}; give each once")
    return parsed


def _rate(cache: Cache, episode: CachedEpisode) -> float:
    """Steps a second: as the episode says, unless the usual time between two steps says something else."""
    stamps = cache.stamps[episode.first : episode.first + episode.length]
    between = np.diff(stamps)[np.diff(_segments(cache, episode)) == 0]
    measured = 1e9 / max(float(np.median(between)), 1.0) if len(between) else episode.rate
    return max(episode.rate, measured, key=lambda rate: abs(rate / CONTROL_HZ - 1))


def _segments(cache: Cache, episode: CachedEpisode) -> np.ndarray:
    return cache.segment[episode.first : episode.first + episode.length]


def _idle(cache: Cache, episode: CachedEpisode) -> np.ndarray:
    return cache.idle[episode.first : episode.first + episode.length]


def _run_ends(values: np.ndarray) -> np.ndarray:
    """(T,) for each place the one after the last of its run of equal values."""
    changes = np.append(np.flatnonzero(values[1:] != values[:-1]) + 1, len(values))
    return changes[np.searchsorted(changes, np.arange(len(values)), side="right")]


def _kept(segments: np.ndarray, idle: np.ndarray) -> np.ndarray:
    """(T,) whether a step is trained on: it is not idle, or one of the first of a run of idle steps of a segment."""
    runs = 2 * segments.astype(np.int64) + idle
    starts = np.concatenate(([0], np.flatnonzero(runs[1:] != runs[:-1]) + 1))
    places = np.arange(len(runs))
    return ~idle | (places - starts[np.searchsorted(starts, places, side="right") - 1] < KEPT_IDLE_STEPS)
