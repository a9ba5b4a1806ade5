"""A run as a picture: `curves.png` beside its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.files import write_atomically
from ki_ros.training.metrics import read_metrics

_BACKBONE, _EXPERT, _HELD_OUT = "#1f5fa8", "#c4521b", "#222222"
_PANELS = (
    ("flow loss", "flow_loss", _EXPERT, True),
    ("FAST loss [nat per token]", "fast_loss", _BACKBONE, True),
    ("FAST accuracy", "fast_accuracy", _BACKBONE, False),
)


def draw_curves(output: Path) -> Path:
    """Draws both losses, accuracy, gradient norms and action error of the run in `output` over its steps.

    Training values are smoothed over a fiftieth of the run, and shown as they are behind that.

    Returns:
        the picture's path.

    Raises:
        MetricsError: the run's metrics are not readable.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_metrics(output / "metrics.jsonl")
    training = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "eval"]
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).flat
    for axis, (title, name, colour, logarithmic) in zip(axes, _PANELS, strict=False):
        _train(axis, training, name, colour, "training")
        _evaluated(axis, held_out, name)
        axis.set_title(title)
        if logarithmic:
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.02)
        axis.legend(frameon=False)
    axis = axes[3]
    for side, colour in (("backbone", _BACKBONE), ("expert", _EXPERT)):
        _train(axis, training, f"grad_norm_{side}", colour, side)
    axis.set_title("gradient norm, before clipping")
    axis.set_yscale("log")
    axis.legend(frameon=False)
    axis = axes[4]
    _evaluated(axis, held_out, "action_error", label="sampled by the expert")
    if any("fast_action_error" in line for line in held_out):
        _evaluated(axis, held_out, "fast_action_error", label="decoded from the backbone", colour=_BACKBONE)
    axis.set_title("action error, evaluation [normalised units]")
    axis.set_ylim(bottom=0)
    if held_out:
        axis.legend(frameon=False)
    axis = axes[5]
    _train(axis, training, "samples_per_second", "#3d7a3a", "samples/s")
    axis.set_title("speed [samples/s]")
    axis.set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    path = output / "curves.png"
    write_atomically(path, lambda file: figure.savefig(file, dpi=100, format="png"))
    return path


def _train(axis: Any, lines: Sequence[dict[str, Any]], name: str, colour: str, label: str) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if not points:
        return
    steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
    width = max(1, len(values) // 50)
    kernel = np.ones(width)
    smooth = np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
    axis.plot(steps, smooth, color=colour, linewidth=1.8, label=label)


def _evaluated(
    axis: Any, lines: Sequence[dict[str, Any]], name: str, *, label: str = "evaluation", colour: str = _HELD_OUT
) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        axis.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, linewidth=1, label=label)
