"""The picture of a rollout: what the cameras saw, what was commanded and measured, when chunks came and how fast."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from ki_ros.commands.reaching import Reaching
from ki_ros.commands.rollout import Rollout, figures
from ki_ros.rig import NUM_JOINTS
from ki_ros.sim.scene import BLOCK_COLOURS
from ki_ros.sim.tasks import REACHED

matplotlib.use("Agg")

import matplotlib.pyplot as plt

FRAMES = 8
"""Pictures of each camera in the strip."""


def draw(rollout: Rollout, path: Path) -> None:
    """Writes the picture as PNG."""
    start = rollout.command_times[0] if len(rollout.command_times) else rollout.observation_times[0]
    reaching = rollout.reaching
    figure = plt.figure(figsize=(14, 13 if reaching is None else 15), layout="constrained")
    heights = [2.8, *([] if reaching is None else [1.8]), 2.6, 0.7, 1.0, 1.7]
    *top, joint_row, gripper_row, timeline_row, bottom_row = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    _cameras(figure, top[0], rollout, start)
    joints = figure.add_subplot(joint_row)
    _joints(joints, rollout, start)
    if reaching is not None:
        _reaching(figure.add_subplot(top[1], sharex=joints), reaching, start)
    gripper = figure.add_subplot(gripper_row, sharex=joints)
    gripper.plot(rollout.command_times - start, rollout.commands[:, NUM_JOINTS], color="tab:brown", lw=1)
    gripper.set(ylabel="gripper\n[rad]", ylim=(-0.05, 0.85))
    timeline = figure.add_subplot(timeline_row, sharex=joints)
    _chunks(timeline, rollout, start)
    timeline.set_xlabel("time on the graph's clock [s]")
    bottom = bottom_row.subgridspec(1, 3)
    _latency(figure.add_subplot(bottom[0]), rollout)
    _intervals(figure.add_subplot(bottom[1]), rollout)
    _table(figure.add_subplot(bottom[2]), rollout)
    figure.suptitle(f"“{rollout.instruction}” — {rollout.robot.name}, {rollout.clock_seconds:.0f} s")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _cameras(figure, cell, rollout: Rollout, start: float) -> None:
    chosen = np.unique(np.linspace(0, len(rollout.frames) - 1, FRAMES).round().astype(int)) if rollout.frames else []
    roles = list(rollout.frames[0][1]) if rollout.frames else []
    if not roles:
        figure.add_subplot(cell).text(0.5, 0.5, "no observation arrived", ha="center")
        return
    strip = cell.subgridspec(len(roles), len(chosen), wspace=0.01, hspace=0.01)
    rows = _picture_rows([views[role] for _, views in rollout.frames for role in roles])
    for column, index in enumerate(chosen):
        time, views = rollout.frames[index]
        for row, role in enumerate(roles):
            axes = figure.add_subplot(strip[row, column])
            axes.imshow(views[role][rows])
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(f"{time - start:.1f} s", fontsize=9)
            if column == 0:
                axes.set_ylabel(role, fontsize=9)


def _picture_rows(views: list[np.ndarray]) -> slice:
    """The rows of the views that hold picture rather than padding above and below."""
    used = np.flatnonzero(np.max([view.max(axis=(1, 2)) for view in views], axis=0))
    return slice(used[0], used[-1] + 1) if len(used) else slice(None)


def _reaching(axes, reaching: Reaching, start: float) -> None:
    """Distance to each block in its colour; the named one's is wide while it is named."""
    times = reaching.times - start
    for colour, distances in reaching.distances.items():
        axes.plot(times, 100 * distances, color=BLOCK_COLOURS[colour], lw=1, alpha=0.6)
    changes = [spoken.time - start for spoken in reaching.spoken] + [times[-1] if len(times) else 0.0]
    for spoken, outcome, begin, end in zip(
        reaching.spoken, reaching.outcomes(), changes[:-1], changes[1:], strict=True
    ):
        axes.axvline(begin, color="black", lw=0.8)
        said = f"“{spoken.text}”" + (f"\nreached after {outcome['seconds']:.1f} s" if outcome["reached"] else "")
        axes.text(begin, 1.02, said, fontsize=9, va="bottom", transform=axes.get_xaxis_transform())
        if spoken.colour is not None:
            named = (times >= begin) & (times < end)
            distances = reaching.distances[spoken.colour]
            axes.plot(times[named], 100 * distances[named], color=BLOCK_COLOURS[spoken.colour], lw=3.5)
    axes.axhspan(0, 100 * REACHED, color="tab:green", alpha=0.15)
    axes.set(ylabel="fingertips to the\npoint above a\nblock [cm]", ylim=(0, None))
    axes.grid(alpha=0.3)


def _joints(axes, rollout: Rollout, start: float) -> None:
    colours = plt.get_cmap("tab10").colors
    for joint in range(NUM_JOINTS):
        colour = colours[joint]
        axes.plot(rollout.joint_times - start, rollout.joints[:, joint], color=colour, lw=2.5, alpha=0.35)
        axes.plot(
            rollout.command_times - start, rollout.commands[:, joint], color=colour, lw=1, label=f"joint {joint + 1}"
        )
    axes.set(ylabel="joint position [rad]", title="commanded (thin) and measured (wide)")
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(ncols=NUM_JOINTS, fontsize=8, loc="upper center")


def _chunks(axes, rollout: Rollout, start: float) -> None:
    times = rollout.status_times - start
    axes.plot(times, np.where(rollout.executing, rollout.steps, np.nan), lw=1, color="tab:blue", label="row executed")
    holding = ~rollout.executing
    axes.fill_between(times, 0, 1, where=holding, color="tab:red", alpha=0.25, transform=axes.get_xaxis_transform())
    axes.plot(rollout.chunk_times - start, np.full(len(rollout.chunk_times), -1.0), "|", color="black", label="chunk")
    axes.set(ylabel="row of the\nchunk")
    axes.legend(fontsize=8, loc="upper right", title="red: holding", title_fontsize=8)


def _latency(axes, rollout: Rollout) -> None:
    axes.hist(rollout.inference_ms, bins=40, color="tab:purple")
    axes.set(xlabel="inference [ms]", ylabel="chunks")


def _intervals(axes, rollout: Rollout) -> None:
    intervals = np.diff(rollout.command_times) * 1e3
    axes.hist(intervals, bins=40, color="tab:green", log=len(intervals) > 0)
    axes.axvline(1e3 / rollout.command_rate, color="black", lw=0.8)
    axes.set(xlabel="between two commands [ms]", ylabel="commands")


def _table(axes, rollout: Rollout) -> None:
    axes.axis("off")
    shown = (
        "observation_hz",
        "refused",
        "chunk_hz",
        "infer_ms_p50",
        "infer_ms_p99",
        "command_hz",
        "command_jitter_ms_p99",
        "guard_interventions",
        "limit_violations",
        "real_time_factor",
    )
    values = figures(rollout)
    rows = [[name, f"{values[name]:.4g}"] for name in shown]
    table = axes.table(rows, loc="center", cellLoc="left", colWidths=(0.7, 0.3), edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1.0, 1.25)
