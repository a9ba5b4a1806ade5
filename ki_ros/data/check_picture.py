"""A recorded episode as a picture: what the cameras saw, what was measured and commanded, how fresh each stream was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.data.check import EpisodeFigures, Verdict
from ki_ros.data.episodes import Episode, RecordingError
from ki_ros.files import write_atomically
from ki_ros.observation.buffer import NANOSECONDS
from ki_ros.rig import NUM_JOINTS, robot

PICTURES = 10
"""Pictures of each camera."""

_WIDTH = 15.0  # [inch]
_LEFT, _RIGHT = 0.075, 0.985
_JOINT_COLOURS = ("#1f77b4", "#d95f02", "#2a9d5c", "#c0392b", "#7b5ea7", "#8c6d31", "#d6569b")
_VERDICT_COLOURS = {Verdict.GOOD: "#2a7a3b", Verdict.DOUBTFUL: "#b5740b", Verdict.BAD: "#b3261e"}
_REFUSED = "#b3261e"


def draw_episode(episode: Episode, figures: EpisodeFigures, path: Path) -> None:
    """Draws an episode as PNG, atomically. Its pictures are read once, in order.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cameras = len(episode.streams.cameras)
    shown = min(PICTURES, len(episode))
    side = _WIDTH * (_RIGHT - _LEFT) / PICTURES
    heights = [side * cameras, 3.4, 0.9, 0.34 * len(episode.samples_ns) + 0.1]
    top, bottom, gap = 0.95, 0.55, 0.34
    height = top + bottom + sum(heights) + gap * (len(heights) - 1)
    figure = Figure(figsize=(_WIDTH, height))
    FigureCanvasAgg(figure)

    edge = height - top
    axes = []
    for panel in heights:
        edge -= panel
        axes.append((_LEFT, edge / height, _RIGHT - _LEFT, panel / height))
        edge -= gap
    times = (episode.stamps_ns - episode.stamps_ns[0]) / NANOSECONDS
    _pictures(figure, axes[0], episode, times, shown)
    joints = figure.add_axes(axes[1])
    gripper = figure.add_axes(axes[2], sharex=joints)
    strip = figure.add_axes(axes[3], sharex=joints)
    _joints(joints, episode, times)
    _gripper(gripper, episode, times)
    _strip(strip, episode, times)
    step = 1 / episode.rate
    for axis in (joints, gripper):
        _mark(axis, episode, times, step)
        axis.tick_params(labelbottom=False)
    joints.set_xlim(times[0] - step / 2, times[-1] + step / 2)
    strip.set_xlabel("time from the first step [s]")
    _title(figure, figures, height)
    write_atomically(path, lambda file: figure.savefig(file, dpi=100, format="png"))


def _pictures(figure: Any, place: tuple[float, ...], episode: Episode, times: np.ndarray, count: int) -> None:
    left, bottom, width, height = place
    steps = np.unique(np.linspace(0, len(episode) - 1, count).round().astype(int))
    roles = list(episode.streams.cameras)
    for column, step in enumerate(steps.tolist()):
        try:
            views: dict[Any, np.ndarray | None] = dict(episode.views(step))
        except RecordingError:
            views = dict.fromkeys(roles)
        for row, role in enumerate(roles):
            axis = figure.add_axes(
                (
                    left + column * width / count,
                    bottom + (len(roles) - 1 - row) * height / len(roles),
                    width / count * 0.985,
                    height / len(roles) * 0.985,
                )
            )
            axis.set(xticks=[], yticks=[])
            pixels = views[role]
            if pixels is None:
                axis.text(0.5, 0.5, "damaged", ha="center", va="center", color=_REFUSED)
            else:
                axis.imshow(pixels, aspect="auto")
            if row == 0:
                axis.set_title(f"{times[step]:.1f} s", fontsize=9, pad=3)
            if column == 0:
                axis.set_ylabel(role.value.replace("_", " "), fontsize=10)


def _joints(axis: Any, episode: Episode, times: np.ndarray) -> None:
    step = 1 / episode.rate
    for joint, colour in enumerate(_JOINT_COLOURS):
        measured = _broken(episode.states[:, joint], episode.segment)
        axis.plot(*_joined(times, measured), color=colour, lw=1.4)
        commanded = np.where(episode.commanded, episode.targets[:, joint], np.nan)
        axis.plot(times + step, commanded, color=colour, lw=0.9, ls=(0, (3, 2)), alpha=0.9)
    arm = robot(episode.robot)
    q = episode.states[:, :NUM_JOINTS]
    beyond = (q > arm.position_upper) | (q < arm.position_lower)
    for joint in np.flatnonzero(beyond.any(axis=0)).tolist():
        rows = beyond[:, joint]
        axis.plot(times[rows], q[rows, joint], "x", color="black", ms=5)
    # Names at the ends of the lines, pushed apart where lines end close to each other.
    low, high = axis.get_ylim()
    least, last = (high - low) / 22, -np.inf
    for joint in np.argsort(q[-1]).tolist():
        last = max(last + least, q[-1, joint])
        axis.annotate(
            f"{joint + 1}",
            (1.004, last),
            xycoords=("axes fraction", "data"),
            color=_JOINT_COLOURS[joint],
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
    axis.set_ylabel("joints [rad]")
    handles = [axis.plot([], [], color="#444444", lw=1.4)[0]]
    labels = ["measured"]
    if episode.commanded.any():
        handles.append(axis.plot([], [], color="#444444", lw=0.9, ls=(0, (3, 2)))[0])
        labels.append(f"commanded ({episode.action_source})")
    if beyond.any():
        handles.append(axis.plot([], [], "x", color="black")[0])
        labels.append("beyond a limit")
    handles.append(axis.fill_between([], [], color="#dddddd"))
    labels.append("idle")
    handles.append(axis.fill_between([], [], color=_REFUSED, alpha=0.25))
    labels.append("no observation")
    axis.legend(
        handles, labels, ncols=len(labels), frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.985)
    )


def _gripper(axis: Any, episode: Episode, times: np.ndarray) -> None:
    measured = _broken(episode.states[:, NUM_JOINTS], episode.segment)
    axis.plot(*_joined(times, measured), color="#333333", lw=1.4)
    targets = episode.targets[:, NUM_JOINTS]
    axis.plot(times + 1 / episode.rate, targets, color="#d95f02", lw=0.9, ls=(0, (3, 2)))
    axis.set(ylim=(-0.1, 1.1), yticks=(0, 1), yticklabels=("open", "closed"))
    axis.set_ylabel("gripper")


def _strip(axis: Any, episode: Episode, times: np.ndarray) -> None:
    """A row for each stream: the age of its sample at each step as a share of the limit; refused times across all."""
    limits = {role.value: camera.max_age for role, camera in episode.streams.cameras.items()}
    limits |= {
        "joint_states": episode.streams.joint_states_max_age,
        "gripper": episode.streams.gripper_max_age,
    }
    names = list(episode.samples_ns)
    step = 1 / episode.rate
    for row, name in enumerate(names):
        share = (episode.stamps_ns - episode.samples_ns[name]) / NANOSECONDS / limits[name]
        axis.bar(
            times,
            0.86,
            bottom=len(names) - row - 0.93,
            width=step * 1.02,
            color=[_age_colour(value) for value in share],
            linewidth=0,
        )
    refused = _refused(episode)
    axis.bar(refused, len(names), width=step, color=_REFUSED, alpha=0.25, linewidth=0)
    for time, each in zip(refused, episode.refused, strict=True):
        if each.stream in names:
            bottom = len(names) - names.index(each.stream) - 0.93
            axis.bar(time, 0.86, bottom=bottom, width=step * 1.02, color=_REFUSED, linewidth=0)
    axis.set(
        ylim=(0, len(names)),
        yticks=np.arange(len(names)) + 0.5,
        yticklabels=[name.replace("_", " ") for name in reversed(names)],
    )
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.set_title(
        "age of the sample at each step: light none, dark its limit; red: no observation because of it",
        fontsize=9,
        loc="left",
        pad=3,
    )


def _refused(episode: Episode) -> np.ndarray:
    """The times without an observation [s], from the first step."""
    times = np.array([each.reference_ns for each in episode.refused], dtype=np.int64)
    return (times - episode.stamps_ns[0]) / NANOSECONDS


def _age_colour(share: float) -> tuple[float, float, float]:
    share = min(max(float(share), 0.0), 1.0)
    light, dark = np.array((0.88, 0.93, 0.97)), np.array((0.07, 0.22, 0.40))
    return tuple((light + (dark - light) * share).tolist())


def _mark(axis: Any, episode: Episode, times: np.ndarray, step: float) -> None:
    """Shades idle steps and times without an observation, and tidies the axis."""
    for first, last in _runs(episode.idle):
        axis.axvspan(times[first] - step / 2, times[last] + step / 2, color="#dddddd", lw=0, zorder=0)
    for refused in _refused(episode):
        axis.axvspan(refused - step / 2, refused + step / 2, color=_REFUSED, alpha=0.25, lw=0, zorder=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _title(figure: Any, figures: EpisodeFigures, height: float) -> None:
    instruction = f"“{figures.instruction}”" if figures.instruction else "no instruction"
    figure.text(_LEFT, 1 - 0.28 / height, instruction[:110], fontsize=14, weight="bold", va="center")
    figure.text(
        _RIGHT,
        1 - 0.28 / height,
        figures.verdict.value,
        fontsize=14,
        weight="bold",
        color=_VERDICT_COLOURS[figures.verdict],
        ha="right",
        va="center",
    )
    findings = "; ".join(finding.text for finding in figures.findings)
    facts = f"{figures.id}, {figures.robot}, {figures.outcome}, {figures.seconds:.1f} s, {figures.steps} steps"
    line = f"{facts}.  {findings}" if findings else facts
    figure.text(_LEFT, 1 - 0.56 / height, line[:190], fontsize=9.5, color="#444444", va="center")


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(int), [0]))))
    return [(int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _broken(values: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """Values with a hole between segments, so that no line goes across."""
    return np.insert(values, np.flatnonzero(np.diff(segment)) + 1, np.nan)


def _joined(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times for values with holes: a hole has the time of the value before it."""
    holes = np.flatnonzero(np.isnan(values))
    rows = np.arange(len(values)) - np.searchsorted(holes, np.arange(len(values)), side="right")
    return times[np.maximum(rows, 0)], values
