"""Episodes as a LeRobot dataset, complete or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.data.bag_chunks import step_actions
from ki_ros.data.cache import SourceEpisode
from ki_ros.data.cache.build import Origin
from ki_ros.data.cache.episode import OUTCOMES
from ki_ros.data.lerobot.errors import LeRobotError
from ki_ros.data.lerobot.features import Images
from ki_ros.data.lerobot.video import CODECS, Codec
from ki_ros.data.lerobot.writer import DatasetWriter, Rows
from ki_ros.files import assembled
from ki_ros.rig import ActionSpace, CameraRole

ROBOT_TYPE = "franka_droid"

QUALITY: dict[Codec, int] = {"av1": 23, "h264": 18}
"""Constant rate factors at which views keep what a policy sees; an encoder's scale is its own."""


@dataclass(frozen=True)
class ExportOptions:
    """What is written, and how.

    Attributes:
        action_space: of `action`.
        images: "video", or "png" to keep pictures exactly.
        codec: of videos.
        quality: their constant rate factor, lower is better; None for `QUALITY` of the codec.
        views: cameras; None for those of the first episode. Each episode must have them all.
        outcomes: of the episodes to write.
        instruction: of episodes that were recorded without one; empty to refuse them.
    """

    action_space: ActionSpace = ActionSpace.JOINT_POSITION
    images: Images = "video"
    codec: Codec = "av1"
    quality: int | None = None
    views: tuple[CameraRole, ...] | None = None
    outcomes: Sequence[str] = OUTCOMES
    instruction: str = ""

    def __post_init__(self) -> None:
        if self.images not in ("video", "png"):
            raise LeRobotError(f"images is {self.images!r}; use video or png")
        if self.codec not in CODECS:
            raise LeRobotError(f"codec is {self.codec!r}; use one of {', '.join(CODECS)}")
        if self.quality is not None and not 0 <= self.quality <= (63 if self.codec == "av1" else 51):
            raise LeRobotError(f"quality is {self.quality}; give 0 to {63 if self.codec == 'av1' else 51}")
        if not self.outcomes or set(self.outcomes) - set(OUTCOMES):
            raise LeRobotError(f"outcomes is {list(self.outcomes)}; give some of {', '.join(OUTCOMES)}")
        if self.views is not None and (not self.views or len(set(self.views)) < len(self.views)):
            raise LeRobotError(f"views is {[view.value for view in self.views]}; give each camera once, at least one")


@dataclass(frozen=True)
class ExportProgress:
    """Where an export is: origins that are through, of how many, and frames that are written."""

    done: int
    total: int
    frames: int


@dataclass
class ExportReport:
    """What an export wrote.

    Attributes:
        recorded: episodes of the recordings.
        episodes: episodes of the dataset: one for each segment.
        frames, tasks: of the dataset.
        other_outcomes: episodes that were not asked for, by outcome.
        refused: why, by name of the origin that could not be read.
        damaged: what was wrong with a recording that was written all the same, by its name.
    """

    recorded: int = 0
    episodes: int = 0
    frames: int = 0
    tasks: int = 0
    other_outcomes: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, list[str]] = field(default_factory=dict)


def export_dataset(
    origins: Sequence[Origin],
    output: Path,
    options: ExportOptions | None = None,
    *,
    progress: Callable[[ExportProgress], None] = lambda _: None,
) -> ExportReport:
    """Writes a dataset of all episodes of `origins`, in their order.

    A segment becomes an episode of the dataset: LeRobot has no gaps within one, and its chunks would cross them. An
    origin whose episodes cannot be read is left out and reported; once a picture of an episode turns out to be damaged
    the export fails, for what is before it is written already.

    Args:
        origins: of a cache or of bags, see `source.open_source`.
        output: absent, or an empty directory; it appears when it is complete.
        options: what is written, and how.
        progress: called at the beginning and after each origin.

    Raises:
        LeRobotError: an output that is in use; no episode; an episode without an instruction, of another rate or
            without a camera that is written.
        ValueError: pictures that are damaged.
        OSError: the output cannot be written.
    """
    options = options or ExportOptions()
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise LeRobotError(f"output is {output}, which is no directory; give another path")
    if output.is_dir() and any(output.iterdir()):
        raise LeRobotError(f"output is {output}, which is not empty; give another path, or remove it")
    report = ExportReport()
    with assembled(output) as directory:
        writer: DatasetWriter | None = None
        first: SourceEpisode | None = None
        progress(ExportProgress(0, len(origins), 0))
        try:
            for done, origin in enumerate(origins, start=1):
                for episode in _episodes(origin, report):
                    if str(episode.outcome) not in options.outcomes:
                        report.other_outcomes[str(episode.outcome)] += 1
                        continue
                    pictures = _pictures(episode)
                    head = next(pictures)
                    first = first or episode
                    roles = writer.roles if writer else options.views or tuple(r for r in CameraRole if r in head)
                    _require_like(episode, first, head, roles)
                    task = episode.instruction.strip() or options.instruction.strip()
                    if not task:
                        raise LeRobotError(f"{_name(episode)} has no instruction; give one for those, or leave it out")
                    if writer is None:
                        sizes = {role: (head[role].shape[0], head[role].shape[1]) for role in roles}
                        writer = _writer(directory, sizes, round(episode.rate), options)
                    _add(writer, episode, task, chain([head], pictures), options.action_space)
                    report.recorded += 1
                    if episode.damage:
                        report.damaged[_name(episode)] = [str(damage) for damage in episode.damage]
                progress(ExportProgress(done, len(origins), writer.frames if writer else 0))
            if writer is None:
                raise LeRobotError(_nothing(report, options))
            writer.finish()
        finally:
            if writer is not None:
                writer.close()
        report.episodes, report.frames, report.tasks = writer.episodes, writer.frames, len(writer.tasks)
    return report


def _episodes(origin: Origin, report: ExportReport) -> Iterator[SourceEpisode]:
    try:
        episodes = list(origin.episodes())
    except (ValueError, OSError) as error:
        report.refused[origin.name] = str(error)
        return
    yield from episodes


def _pictures(episode: SourceEpisode) -> Iterator[Mapping[CameraRole, np.ndarray]]:
    return (episode.views(step) for step in range(len(episode.stamps_ns)))


def _writer(
    directory: Path, sizes: Mapping[CameraRole, tuple[int, int]], rate: int, options: ExportOptions
) -> DatasetWriter:
    return DatasetWriter(
        directory,
        sizes,
        action_space=options.action_space,
        images=options.images,
        codec=options.codec,
        quality=QUALITY[options.codec] if options.quality is None else options.quality,
        rate=rate,
        robot_type=ROBOT_TYPE,
    )


def _require_like(
    episode: SourceEpisode,
    first: SourceEpisode,
    views: Mapping[CameraRole, np.ndarray],
    roles: Sequence[CameraRole],
) -> None:
    if round(episode.rate) != episode.rate or episode.rate < 1:
        raise LeRobotError(f"{_name(episode)} has a rate of {episode.rate} Hz; LeRobot has whole frames per second")
    if episode.rate != first.rate:
        raise LeRobotError(
            f"{_name(episode)} has a rate of {episode.rate} Hz, {_name(first)} one of {first.rate} Hz; "
            "export them apart"
        )
    missing = [role.value for role in roles if role not in views]
    if missing:
        has = ", ".join(role.value for role in views) or "none"
        raise LeRobotError(
            f"{_name(episode)} has no view {missing[0]}; it has {has}. Name in views those that all episodes have"
        )


def _add(
    writer: DatasetWriter,
    episode: SourceEpisode,
    task: str,
    pictures: Iterator[Mapping[CameraRole, np.ndarray]],
    action_space: ActionSpace,
) -> None:
    values = step_actions(episode.states, episode.targets, action_space)
    segment = np.asarray(episode.segment)
    starts = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(segment)]
    outcome = str(episode.outcome)
    for number in range(len(starts) - 1):
        steps = slice(starts[number], starts[number + 1])
        provenance: dict[str, Any] = {
            "episode_id": str(episode.id),
            "segment": number,
            "outcome": outcome,
            "robot": str(episode.robot),
            "action_source": str(episode.action_source),
            "ended": bool(episode.ended) and steps.stop == len(segment),
        }
        rows = Rows(
            task=task,
            states=episode.states[steps],
            actions=values[steps],
            idle=episode.idle[steps],
            stamps=episode.stamps_ns[steps],
            success=outcome == "success" and steps.stop == len(segment),
            provenance=provenance,
        )
        writer.add(rows, pictures)


def _nothing(report: ExportReport, options: ExportOptions) -> str:
    if report.other_outcomes:
        there = ", ".join(f"{count} of {outcome}" for outcome, count in sorted(report.other_outcomes.items()))
        return f"outcomes is {', '.join(options.outcomes)}, but the episodes are {there}; name one that there is"
    reason = next((f": {name}: {why}" for name, why in report.refused.items()), "")
    return f"no episode can be exported{reason or '; the source has none'}"


def _name(episode: SourceEpisode) -> str:
    return f"episode {episode.id!r} of {episode.bag}"
