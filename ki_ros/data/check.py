"""What a recorded episode is worth: figures, findings, and a verdict by stated limits."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.data.actions import MEASURED, CommandTopics
from ki_ros.data.bag import BagError
from ki_ros.data.episodes import Episode, Outcome, RecordingError, read_episodes
from ki_ros.observation.buffer import NANOSECONDS
from ki_ros.observation.rig_streams import JOINT_STATES, RigStreams
from ki_ros.rig import NUM_JOINTS, Robot, robot

LEAST_SECONDS = 1.0
"""A shorter episode is bad [s]."""
MOST_REFUSED = (0.01, 0.1)
"""Share of times without an observation: above the first doubtful, above the second bad. So below."""
MOST_LOST = (0.02, 0.2)
"""Share of a stream's messages that are missing between others."""
MOST_SILENT = 5.0
"""A longer time in which no stream has a message is none of missing ones: the recording was paused, or its clock set
forward [s]."""
MOST_SUBSTITUTED = (0.0, 0.1)
"""Share of steps whose sample the recorder lost."""
MOST_IDLE = (0.5, 0.95)
"""Share of idle steps."""
MOST_TRACKING = (0.15, 0.3)
"""Distance of a joint from where it was commanded to be at the end of a step [rad]."""
POSITION_TOLERANCE = 0.01
"""How far beyond a position limit of the arm is bad [rad]."""
VELOCITY_TOLERANCE = 1.05
"""Share of a velocity limit of the arm above which a step is bad."""
RATE_TOLERANCE = 0.1
"""Deviation of the usual time between steps from 1 / rate that is bad, as a share."""


class Verdict(str, enum.Enum):
    """Whether to train on an episode."""

    GOOD = "good"
    DOUBTFUL = "doubtful"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with an episode, and how bad that is."""

    verdict: Verdict
    text: str


@dataclass(frozen=True)
class StreamFigures:
    """Timing of a stream's messages by their stamps.

    Attributes:
        rate: messages a second, silences left out; None for less than two.
        longest_gap: longest time between two messages [s]; None for less than two.
        lost: messages that are missing: what fits into longer times between two than the usual, but for silences.
        lost_share: of all that there should be.
        delay: median of the time from stamp to arrival [s]; None without messages.
        age: of its samples, the highest [s].
    """

    rate: float | None
    longest_gap: float | None
    lost: int
    lost_share: float
    delay: float | None
    age: float


@dataclass(frozen=True)
class EpisodeFigures:
    """Figures of an episode.

    Attributes:
        bag, id, instruction, outcome, robot, action_source, complete, exact: of the episode.
        seconds: from the first step to the last [s].
        steps: their number.
        segments: stretches without a gap.
        silent: silences, together [s]: times above `MOST_SILENT` in which no stream has a message.
        rate: of the steps within segments, by the median [Hz]; None where no two follow each other.
        streams: by stream.
        refused: times without an observation by "stream reason", and by "topic reason" commands of no use.
        refused_share: of the times at which there should have been an observation.
        skew: median and highest of the time between the oldest and the newest sample of a step [s].
        substituted_share: of steps with a sample that stands in for one that the recorder lost.
        position_excess: farthest beyond a position limit of the arm, measured or commanded [rad]; 0 within.
        velocity_share: highest share of a velocity limit of the arm, by the samples of following steps.
        tracking: farthest of a joint from its command at the end of a step [rad]; None without commands.
        idle_share: of steps.
        damage: of the recording, as sentences.
        findings: what is wrong, the worst first.
    """

    bag: str
    id: str
    instruction: str
    outcome: str
    robot: str
    action_source: str
    complete: bool
    exact: bool
    seconds: float
    steps: int
    segments: int
    silent: float
    rate: float | None
    streams: dict[str, StreamFigures]
    refused: dict[str, int]
    refused_share: float
    skew: tuple[float, float]
    substituted_share: float
    position_excess: float
    velocity_share: float
    tracking: float | None
    idle_share: float
    damage: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings."""
        return self.findings[0].verdict if self.findings else Verdict.GOOD


@dataclass(frozen=True)
class BagCheck:
    """What a bag holds.

    Attributes:
        bag: its path.
        episodes: its episodes with their figures.
        error: why none could be read; empty where one could.
    """

    bag: Path
    episodes: tuple[tuple[Episode, EpisodeFigures], ...]
    error: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst of its episodes; bad if it has none."""
        verdicts = [figures.verdict for _, figures in self.episodes]
        return max(verdicts, key=list(Verdict).index) if verdicts else Verdict.BAD


def check_bag(bag: Path, streams: RigStreams | None = None, commands: CommandTopics | None = None) -> BagCheck:
    """Reads and judges the episodes of a bag. Arguments as `read_episodes`; what it raises is the check's error."""
    try:
        episodes = read_episodes(bag, streams, commands=commands)
    except (BagError, RecordingError, OSError) as error:
        return BagCheck(bag, (), str(error))
    return BagCheck(bag, tuple((episode, check_episode(episode)) for episode in episodes))


def check_episode(episode: Episode) -> EpisodeFigures:
    """The figures of an episode, and what they say against it."""
    stamps, segment = episode.stamps_ns, episode.segment
    follows = segment[1:] == segment[:-1]
    intervals = np.diff(stamps)[follows] / NANOSECONDS
    samples = np.stack(list(episode.samples_ns.values()))
    skew = (samples.max(axis=0) - samples.min(axis=0)) / NANOSECONDS
    arm = robot(episode.robot)
    positions = np.concatenate((episode.states, episode.targets[episode.commanded]))[:, :NUM_JOINTS]
    beyond = np.maximum(positions - arm.position_upper, arm.position_lower - positions).max()
    tracked = follows & episode.commanded[:-1]
    apart = np.abs(episode.targets[:-1] - episode.states[1:])[tracked, :NUM_JOINTS]
    refused = len(episode.refused)
    silences = _silences(episode)
    figures = EpisodeFigures(
        bag=str(episode.bag),
        id=episode.id,
        instruction=episode.instruction,
        outcome=episode.outcome.value,
        robot=episode.robot,
        action_source=episode.action_source,
        complete=episode.complete,
        exact=episode.exact,
        seconds=float(stamps[-1] - stamps[0]) / NANOSECONDS,
        steps=len(episode),
        segments=int(segment[-1]) + 1,
        silent=float(np.diff(silences).sum()) / NANOSECONDS,
        rate=1 / float(np.median(intervals)) if len(intervals) else None,
        streams={name: _stream(episode, name, silences) for name in episode.samples_ns},
        refused={" ".join(key): count for key, count in sorted(episode.refusals.items())},
        refused_share=refused / (refused + len(episode)),
        skew=(float(np.median(skew)), float(skew.max())),
        substituted_share=max(episode.substituted.values(), default=0) / len(episode),
        position_excess=max(float(beyond), 0.0),
        velocity_share=_velocity_share(episode, arm, follows),
        tracking=float(apart.max()) if len(apart) else None,
        idle_share=float(episode.idle.mean()),
        damage=tuple(str(damage) for damage in episode.damage),
    )
    findings = sorted(_findings(figures, episode), key=lambda finding: -list(Verdict).index(finding.verdict))
    return EpisodeFigures(**{**vars(figures), "findings": tuple(findings)})


def _silences(episode: Episode) -> np.ndarray:
    """Beginnings and ends of the times in which no stream has a message, (N, 2) int64 [ns]."""
    stamps = np.unique(np.concatenate([timing.stamps_ns for timing in episode.timing.values()]))
    at = np.flatnonzero(np.diff(stamps) > MOST_SILENT * NANOSECONDS)
    return np.stack((stamps[at], stamps[at + 1]), axis=1)


def _stream(episode: Episode, name: str, silences: np.ndarray) -> StreamFigures:
    stamps, arrivals = episode.timing[name]
    ages = (episode.stamps_ns - episode.samples_ns[name]) / NANOSECONDS
    delay = float(np.median(arrivals - stamps)) / NANOSECONDS if len(stamps) else None
    times = np.unique(stamps)
    if len(times) < 2:
        return StreamFigures(None, None, 0, 0.0, delay, float(ages.max()))
    intervals = np.diff(times) / NANOSECONDS
    heard = intervals.copy()
    for begin, end in silences[(silences[:, 0] >= times[0]) & (silences[:, 1] <= times[-1])]:
        heard[np.searchsorted(times, begin, side="right") - 1] -= (end - begin) / NANOSECONDS
    lost = int(np.maximum(np.round(heard / np.median(heard)) - 1, 0).sum())
    rate = len(heard) / float(heard.sum())
    return StreamFigures(rate, float(intervals.max()), lost, lost / (lost + len(times)), delay, float(ages.max()))


def _velocity_share(episode: Episode, arm: Robot, follows: np.ndarray) -> float:
    """The mean velocity between the samples of two steps is never above the highest that there was."""
    q = episode.states[:, :NUM_JOINTS]
    seconds = np.diff(episode.samples_ns[JOINT_STATES]) / NANOSECONDS
    usable = np.flatnonzero(follows & (seconds > 0))
    highest = 0.0
    for step in usable.tolist():
        velocity = (q[step + 1] - q[step]) / seconds[step]
        # Limits that depend on the position: whichever of the two ends allows more.
        lower, upper = zip(arm.velocity_limits(q[step]), arm.velocity_limits(q[step + 1]), strict=True)
        allowed = np.where(velocity < 0, -np.minimum(*lower), np.maximum(*upper))
        highest = max(highest, float((np.abs(velocity) / np.maximum(allowed, 1e-6)).max()))
    return highest


def _findings(figures: EpisodeFigures, episode: Episode) -> list[Finding]:
    found: list[Finding] = []

    def add(verdict: Verdict, text: str) -> None:
        found.append(Finding(verdict, text))

    def by_share(share: float, limits: tuple[float, float], text: str) -> None:
        if share > limits[1]:
            add(Verdict.BAD, text)
        elif share > limits[0]:
            add(Verdict.DOUBTFUL, text)

    if not figures.instruction:
        add(Verdict.BAD, "no instruction")
    if figures.seconds < LEAST_SECONDS:
        add(Verdict.BAD, f"only {figures.seconds:.2f} s long")
    if figures.rate is None or abs(episode.rate / figures.rate - 1) > RATE_TOLERANCE:
        rate = "none follow each other" if figures.rate is None else f"{figures.rate:.1f} a second"
        add(Verdict.BAD, f"steps: {rate}, expected {episode.rate:g} a second")
    if episode.refused:
        ((stream, reason), _), *_ = Counter((each.stream, each.reason) for each in episode.refused).most_common()
        text = f"no observation at {figures.refused_share:.1%} of times, mostly: {stream} {reason}"
        by_share(figures.refused_share, MOST_REFUSED, text)
    for name, stream in figures.streams.items():
        by_share(stream.lost_share, MOST_LOST, f"{name}: {stream.lost} messages missing ({stream.lost_share:.1%})")
    if figures.silent:
        add(Verdict.DOUBTFUL, f"in the middle nothing was recorded for {figures.silent:.0f} s")
    by_share(
        figures.substituted_share,
        MOST_SUBSTITUTED,
        f"the recorder lost samples of {figures.substituted_share:.1%} of steps",
    )
    by_share(figures.idle_share, MOST_IDLE, f"{figures.idle_share:.0%} idle")
    if figures.tracking is not None:
        by_share(figures.tracking, MOST_TRACKING, f"a joint is {figures.tracking:.2f} rad from its command")
    if figures.position_excess > POSITION_TOLERANCE:
        add(Verdict.BAD, f"{figures.position_excess:.3f} rad beyond a position limit of the {figures.robot}")
    if figures.velocity_share > VELOCITY_TOLERANCE:
        add(Verdict.BAD, f"{figures.velocity_share:.0%} of a velocity limit of the {figures.robot}")
    if figures.outcome == Outcome.UNKNOWN.value:
        add(Verdict.DOUBTFUL, "outcome unknown")
    if not figures.complete:
        add(Verdict.DOUBTFUL, "its end was not recorded")
    if figures.action_source == MEASURED:
        add(Verdict.DOUBTFUL, "no command: actions are what was measured")
    useless = {key: count for key, count in episode.refusals.items() if key[0].startswith("/")}
    for (topic, reason), count in useless.items():
        add(Verdict.DOUBTFUL, f"{count} messages of {topic} are of no use: {reason}")
    lossy = [damage for damage in episode.damage if damage.lost not in ("", "nothing")]
    if lossy:
        more = f", and {len(lossy) - 1} more" if len(lossy) > 1 else ""
        add(Verdict.DOUBTFUL, f"damaged: {lossy[0]}{more}")
    return found


def as_json(check: BagCheck) -> dict[str, Any]:
    """A check as plain values."""
    return {
        "bag": str(check.bag),
        "verdict": check.verdict.value,
        "error": check.error,
        "episodes": [_plain(figures) for _, figures in check.episodes],
    }


def _plain(figures: EpisodeFigures) -> dict[str, Any]:
    return {
        **vars(figures),
        "verdict": figures.verdict.value,
        "streams": {name: vars(stream) for name, stream in figures.streams.items()},
        "findings": [{"verdict": finding.verdict.value, "text": finding.text} for finding in figures.findings],
    }
