"""Training samples from DROID episodes: at each step that has a next one, an observation and the actions that followed.

The episodes hold no commanded actions. An action is what the arm did: where its joints and its gripper were one step
later. Shapes: T steps of an episode, H action horizon.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ki_ros.data.droid import Episode, EpisodeError
from ki_ros.rig import NUM_JOINTS, POLICY_VIEWS, VELOCITY_TO_DELTA, ActionSpace, CameraRole
from ki_ros.sample import Sample, sample_index


class DroidChunks:
    """Samples of DROID episodes, a `SampleSource`: T - 1 of an episode of T steps, in the order of `episodes`.

    A row of actions at step t holds, for the joints, `(q[t+1] - q[t]) / VELOCITY_TO_DELTA` in joint_velocity space and
    q[t+1] [rad] in joint_position space, and the gripper's closedness at t+1. Rows past the end of the episode hold
    the arm: velocity 0 or the last position, and the last closedness; their mask is false.

    States and actions are computed once; images are opened when a sample is asked for. Can be pickled.
    """

    def __init__(
        self,
        directory: str | Path,
        episodes: Sequence[int],
        *,
        horizon: int = 15,
        action_space: ActionSpace,
        views: tuple[CameraRole, ...] = POLICY_VIEWS,
        missing_views: Literal["refuse", "mask"] = "refuse",
    ) -> None:
        """Reads the states of all episodes.

        Args:
            directory: where the episodes are, as `Episode.load` reads them.
            episodes: their numbers.
            horizon: H, rows of actions of a sample.
            action_space: what the first seven values of a row mean.
            views: cameras of a sample; none to train on states alone.
            missing_views: what to do with episodes that have no images of one of `views`: refuse them, or leave that
                view out of their samples.

        Raises:
            ValueError: a horizon below 1; no episodes, or one twice; an unknown action space, view or `missing_views`.
            EpisodeError: an episode that `Episode.load` refuses, of fewer than two steps, without an instruction, or,
                where missing views are refused, without images of one of `views`.
        """
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; give at least 1 step")
        if missing_views not in ("refuse", "mask"):
            raise ValueError(f"missing_views is {missing_views!r}; use 'refuse' or 'mask'")
        self._action_space = ActionSpace.parse(action_space)
        self.horizon = horizon
        self.views = _parse_views(views)
        self.episodes = tuple(operator.index(number) for number in episodes)
        if not self.episodes:
            raise ValueError("episodes is empty; give the number of at least one episode")
        _refuse_repeated("episodes", self.episodes)

        self._loaded = [_load(Path(directory), number) for number in self.episodes]
        if missing_views == "refuse":
            self._refuse_missing_views()
        self._steps = [_actions(episode.states, self._action_space) for episode in self._loaded]
        self._held = [np.concatenate((steps, self._hold(steps[-1]))) for steps in self._steps]
        self._ends = np.cumsum([len(steps) for steps in self._steps])

    @property
    def action_space(self) -> ActionSpace:
        """What the first seven values of an action mean."""
        return self._action_space

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the samples, wherever they lie. Of images, the sizes of the files count."""
        digest = hashlib.sha256(
            _canonical(
                horizon=self.horizon,
                action_space=self._action_space.value,
                views=[view.value for view in self.views],
            )
        )
        for number, episode in zip(self.episodes, self._loaded, strict=True):
            sizes = {
                view.value: [file.stat().st_size for file in episode.image_files.get(view, ())] for view in self.views
            }
            digest.update(
                _canonical(number=number, steps=len(episode), instruction=episode.instruction, image_sizes=sizes)
            )
            digest.update(episode.states.astype("<f8").tobytes())
        return digest.hexdigest()

    def states_and_actions(self) -> tuple[np.ndarray, np.ndarray]:
        """What statistics are computed over, each row once: all T states, and all T - 1 actions, of every episode.

        Returns:
            (sum of T, 8) and (sum of T - 1, 8) float64. No image is opened.
        """
        return np.concatenate([episode.states for episode in self._loaded]), np.concatenate(self._steps)

    def chunks(self, indices: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Actions (N, H, 8) float64 and masks (N, H) of samples by their indices (N,), or of all.

        No image is opened.
        """
        indices = np.arange(len(self)) if indices is None else np.asarray(indices)
        which = np.searchsorted(self._ends, indices, side="right")
        # An episode's rows to hold come between its own and those of the next.
        rows = (indices + which * (self.horizon - 1))[:, None] + np.arange(self.horizon)
        return np.concatenate(self._held)[rows], indices[:, None] + np.arange(self.horizon) < self._ends[which, None]

    def whole(self) -> np.ndarray:
        """(N,) bool for all samples, whether their chunk lies within its episode."""
        counts = np.diff(self._ends, prepend=0)
        return np.arange(len(self)) + self.horizon <= np.repeat(self._ends, counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        """The sample of that index, with arrays of its own.

        Raises:
            IndexError: an index that is not in 0 .. len - 1.
        """
        which, step = self._place(index)
        episode, count = self._loaded[which], len(self._steps[which])
        return Sample(
            views={view: episode.image(view, step) for view in self.views if view in episode.image_files},
            state=episode.states[step].copy(),
            instruction=episode.instruction,
            actions=self._held[which][step : step + self.horizon].copy(),
            action_mask=np.arange(step, step + self.horizon) < count,
        )

    def describe(self, index: int) -> str:
        """Step and episode of the sample of that index. Raises IndexError."""
        which, step = self._place(index)
        return f"step {step} of {self._loaded[which].name}"

    def _place(self, index: int) -> tuple[int, int]:
        """Place of a sample's episode in `episodes`, and its step."""
        index = sample_index(index, len(self))
        which = int(np.searchsorted(self._ends, index, side="right"))
        return which, index - (int(self._ends[which]) - len(self._steps[which]))

    def _hold(self, last: np.ndarray) -> np.ndarray:
        """(H - 1, 8) rows that keep the arm and the gripper where the last action took them."""
        held = np.tile(last, (self.horizon - 1, 1))
        if self._action_space is ActionSpace.JOINT_VELOCITY:
            held[:, :NUM_JOINTS] = 0.0
        return held

    def _refuse_missing_views(self) -> None:
        missing = {
            view: [
                number
                for number, episode in zip(self.episodes, self._loaded, strict=True)
                if view not in episode.image_files
            ]
            for view in self.views
        }
        lacking = "; ".join(f"{view.value}: {_ranges(numbers)}" for view, numbers in missing.items() if numbers)
        if lacking:
            raise EpisodeError(
                f"episodes without images of {lacking}. Leave these episodes out, give views=() to train on states "
                "alone, or missing_views='mask' to train without the views that they lack"
            )


def _parse_views(views: Sequence[CameraRole]) -> tuple[CameraRole, ...]:
    known = {role.value for role in CameraRole}
    for view in views:
        if view not in known:
            raise ValueError(f"views has {view!r}, which is no camera; use some of {', '.join(sorted(known))}")
    parsed = tuple(CameraRole(view) for view in views)
    _refuse_repeated("views", [view.value for view in parsed])
    return parsed


def _refuse_repeated(field: str, values: Sequence[Any]) -> None:
    repeated = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if repeated is not None:
        raise ValueError(f"{field} has {repeated} twice; give each once")


def _load(directory: Path, number: int) -> Episode:
    episode = Episode.load(directory, number)
    if len(episode) < 2:
        raise EpisodeError(
            f"{episode.name} has {len(episode)} steps, and an action needs the step after it; leave it out of episodes"
        )
    if not episode.instruction.strip():
        raise EpisodeError(f"{episode.name} has no instruction; write its task into episodes.json, or leave it out")
    return episode


def _actions(states: np.ndarray, action_space: ActionSpace) -> np.ndarray:
    """(T, 8) states -> (T - 1, 8) actions that lead from each to the next."""
    actions = states[1:].copy()
    if action_space is ActionSpace.JOINT_VELOCITY:
        actions[:, :NUM_JOINTS] = np.diff(states[:, :NUM_JOINTS], axis=0) / VELOCITY_TO_DELTA
    return actions


def _ranges(numbers: Sequence[int]) -> str:
    """`0, 2 to 5, 9` of the numbers 0, 2, 3, 4, 5, 9 in any order."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _canonical(**values: Any) -> bytes:
    return json.dumps(values, sort_keys=True).encode()
