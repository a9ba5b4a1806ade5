"""Episodes of recordings: what the live graph observed, what was commanded, and what was asked for. Knows no ROS.

recording   the bag sampled as the observation node samples
windows     which times of it are episodes
actions     the targets of the steps
idle        steps at which nothing happens
bag_views   the pictures, as they are asked for
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ki_ros.data.actions import CommandTopics, Targets
from ki_ros.data.bag import Bag, Damage, open_bag
from ki_ros.data.bag_streams import find_streams
from ki_ros.data.bag_views import BagViews
from ki_ros.data.idle import idle_steps
from ki_ros.data.recording import Recording, RecordingError, Refused, Timing, UndecodableError, sample_recording
from ki_ros.data.windows import Outcome, Stretch, Window, episode_windows
from ki_ros.observation.buffer import NANOSECONDS
from ki_ros.observation.rig_streams import RigStreams
from ki_ros.rig import CameraRole

# An episode that is observed no longer up to so many steps before its end was still going on then.
_END_STEPS = 1.5

__all__ = ["Episode", "Outcome", "RecordingError", "UndecodableError", "read_episodes"]


@dataclass(frozen=True)
class Episode:
    """An episode of T steps, T at least 1.

    Attributes:
        bag: the recording that it is in.
        id: as the recorder named it, else the recording's name; further episodes of one name have #2, #3, ... behind.
        instruction: what was to be done, stripped; empty where the recording does not say.
        outcome: as the operator said.
        robot: the arm, as `ki_ros.rig.robot` knows it.
        rate: steps a second.
        stamps_ns: (T,) int64 reference times, increasing.
        states: (T, 8) float64, joint positions [rad] and gripper closedness [0 open .. 1 closed].
        targets: (T, 8) float64, joint positions [rad] and closedness commanded for the end of each step.
        commanded: (T,) bool, whether the joints' target is a command; else it is what was measured a step later.
        segment: (T,) int32, not decreasing; between two segments there are times without an observation.
        action_source: "joint_command", the topic of the controller that the targets come from, or "measured".
        idle: (T,) bool (`ki_ros.data.idle`).
        refusals: times of the episode without an observation by (stream, reason).
        refused: these times.
        substituted: steps by stream whose sample the live node had, but the recording lacks: an older one stands in.
        exact: whether the reference times and samples are those of the live node.
        complete: whether its end was recorded.
        ended: whether somebody ended it as a success or a failure, and it was observed until then: then it is known
            that it went on no further than its last step.
        note: of the operator.
        streams: what was sampled.
        samples_ns: by stream, (T,) int64, the stamps of the samples.
        timing: by stream, all messages from the first step to the last, sampled or not.
        damage: what is wrong with the recording.
    """

    bag: Path
    id: str
    instruction: str
    outcome: Outcome
    robot: str
    rate: float
    stamps_ns: np.ndarray
    states: np.ndarray
    targets: np.ndarray
    commanded: np.ndarray
    segment: np.ndarray
    action_source: str
    idle: np.ndarray
    refusals: Counter[tuple[str, str]]
    refused: tuple[Refused, ...]
    substituted: Counter[str]
    exact: bool
    complete: bool
    ended: bool
    note: str
    streams: RigStreams
    samples_ns: dict[str, np.ndarray]
    timing: dict[str, Timing]
    damage: list[Damage]
    _views: BagViews = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def views(self, step: int) -> dict[CameraRole, np.ndarray]:
        """The views of a step, (size, size, 3) uint8 RGB by camera: what the live node publishes for these samples.

        In order of the steps the bag is read once, and a few pictures are held at a time; going back reads it from the
        beginning.

        Raises:
            IndexError: no such step.
            UndecodableError: an image that cannot be decoded.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"step is {step}; steps are 0 to {len(self) - 1}")
        return self._views(step)


def read_episodes(
    bag: str | Path,
    streams: RigStreams | None = None,
    *,
    commands: CommandTopics | None = None,
    decode_images: bool = False,
) -> list[Episode]:
    """The episodes of a recording. Their pictures are read when they are asked for.

    Args:
        bag: a bag's directory, or its only file.
        streams: what to sample; None to find the topics in the bag (`find_streams`).
        commands: topics of commands; None for the executor's defaults.
        decode_images: whether images that cannot be decoded are refused at once, which takes as long as decoding all.
            Without it only what is cut off or of a wrong size is; `Episode.views` raises for others.

    Raises:
        BagError: no bag, or one of which nothing can be read.
        RecordingError: a bag without the topics, with ambiguous ones, or without a single observation.
    """
    commands = commands or CommandTopics()
    opened = open_bag(Path(bag))
    if streams is None:
        streams = find_streams(opened, commands)
    recordings = sample_recording(opened, streams, commands, decode_images=decode_images)
    stretches = [Stretch(r.events, int(r.stamps_ns[0]) if len(r.stamps_ns) else 0, r.begin_ns) for r in recordings]
    episodes: list[Episode] = []
    empty: list[Damage] = []
    names: Counter[str] = Counter()
    windows = [
        (recording, window)
        for recording, its in zip(recordings, episode_windows(stretches), strict=True)
        for window in its
    ]
    for recording, window in windows:
        name = window.id or opened.path.name
        parts = list(_parts(recording, window))
        for steps in parts:
            names[name] += 1
            id_ = name if names[name] == 1 else f"{name}#{names[name]}"
            episodes.append(_episode(opened, recording, replace(window, id=id_), steps))
        if not parts and window.id:
            why = _why_empty([(recording, window)])
            empty.append(Damage(opened.path, "episode", why, f"episode {window.id!r}"))
    if not episodes:
        raise RecordingError(f"{opened.path} has {_why_empty(windows)}")
    damage = [*opened.damage, *empty]
    return [replace(episode, damage=damage) for episode in episodes]


class _Steps(NamedTuple):
    """Steps of an episode: T rows of the recording, their segments and their targets, and when the last segment's last
    observation was [ns], which is no step if it has no target."""

    rows: np.ndarray
    segment: np.ndarray
    targets: Targets
    last_ns: int


def _parts(recording: Recording, window: Window) -> Iterator[_Steps]:
    """The steps of a window; a clock that is set back ends a part."""
    rows = np.flatnonzero(_inside(window, recording.stamps_ns))
    back = np.flatnonzero(np.diff(recording.stamps_ns[rows]) <= 0) + 1
    for part in np.split(rows, back):
        segment = np.cumsum(recording.breaks[part])
        values, source, commanded = recording.commands.targets(
            recording.stamps_ns[part], recording.states[part], segment, recording.streams.rate
        )
        # The last step of a segment has no target where none was commanded.
        known = np.isfinite(values).all(axis=1)
        if known.any():
            numbers = np.unique(segment[known], return_inverse=True)[1].astype(np.int32)
            last = int(recording.stamps_ns[part][segment == segment[known][-1]][-1])
            yield _Steps(part[known], numbers, Targets(values[known], source, commanded[known]), last)


def _episode(bag: Bag, recording: Recording, window: Window, steps: _Steps) -> Episode:
    streams, rows = recording.streams, steps.rows
    stamps, states = recording.stamps_ns[rows], recording.states[rows]
    refused = tuple(r for r in recording.refused if _inside(window, r.reference_ns))
    return Episode(
        bag=bag.path,
        id=window.id,
        instruction=window.instruction,
        outcome=window.outcome,
        robot=streams.robot,
        rate=streams.rate,
        stamps_ns=stamps,
        states=states,
        targets=steps.targets.values,
        commanded=steps.targets.commanded,
        segment=steps.segment,
        action_source=steps.targets.source,
        idle=idle_steps(states, steps.targets.values, steps.segment, streams.rate),
        refusals=Counter((r.stream, r.reason) for r in refused) + recording.commands.refused,
        refused=refused,
        substituted=Counter(stream for time, stream in recording.substituted if _inside(window, time)),
        exact=recording.exact,
        complete=window.complete,
        ended=window.ended and window.end_ns - steps.last_ns <= _END_STEPS / streams.rate * NANOSECONDS,
        note=window.note,
        streams=streams,
        samples_ns={name: values[rows] for name, values in recording.sample_stamps_ns.items()},
        timing={name: _between(timing, stamps[0], stamps[-1]) for name, timing in recording.timing.items()},
        damage=[],
        _views=BagViews(bag, streams, {role: numbers[rows] for role, numbers in recording.frames.items()}),
    )


def _inside(window: Window, times_ns: Any) -> Any:
    """Whether times [ns], one or an array of them, are in a window."""
    end = np.iinfo(np.int64).max if window.end_ns is None else window.end_ns
    return (times_ns >= window.begin_ns) & (times_ns <= end)


def _between(timing: Timing, first_ns: int, last_ns: int) -> Timing:
    chosen = (timing.stamps_ns >= first_ns) & (timing.stamps_ns <= last_ns)
    return Timing(timing.stamps_ns[chosen], timing.arrivals_ns[chosen])


def _why_empty(windows: Sequence[tuple[Recording, Window]]) -> str:
    """What windows of these recordings lack so that they have no step, and why."""
    observed = sum(int(_inside(window, recording.stamps_ns).sum()) for recording, window in windows)
    if observed:
        which = (
            "its only observation has no target" if observed == 1 else f"its {observed} observations have no targets"
        )
        return (
            f"no step: {which}, as no command was in force and none of the same episode follows a step later; record "
            "the commands, or for longer"
        )
    refused = [
        each for recording, window in windows for each in recording.refused if _inside(window, each.reference_ns)
    ]
    if refused:
        counts = Counter((each.stream, each.reason) for each in refused)
        reasons = (f"{stream} {reason} ({count})" for (stream, reason), count in counts.most_common(4))
        return f"no observation: {len(refused)} of {len(refused)} times were refused: {', '.join(reasons)}"
    if any(len(recording.stamps_ns) or recording.refused for recording, _ in windows):
        return "no observation: none of the times that were sampled is in it"
    silent = sorted({name for r, _ in windows for name, timing in r.timing.items() if not len(timing.stamps_ns)})
    if silent:
        return f"no observation: no message of {', '.join(silent)} was recorded; start the driver, or correct its topic"
    return "no observation: no time at which every stream had a message of use"
