"""What a sweep found: means over seeds as a table and as a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from ki_ros.training.metrics import METRICS_FILE, read_metrics
from ki_ros.training.sweep import Run, Sweep

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

METRICS = {
    "flow_loss": "flow loss",
    "fast_loss": "FAST loss",
    "fast_accuracy": "FAST accuracy [%]",
    "action_error": "action error",
    "following": "following [%]",
}
"""Held-out metrics of the table, in its order; one that no run has is left out."""

DRAWN = ("flow_loss", "fast_loss", "action_error", "following")
"""Those of the picture, a column each."""

_SHARES = ("fast_accuracy", "following")
_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))


@dataclass(frozen=True)
class Point:
    """The runs of the same settings.

    Attributes:
        name: of the runs, without the seed.
        settings: value of each axis by its label.
        runs: those that are finished.
        mean, deviation: over these runs, of each metric that all of them have, and of `seconds`; the deviation is
            that of a sample, and NaN for a single run.
    """

    name: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    mean: dict[str, float]
    deviation: dict[str, float]


def summarise(sweep: Sweep, results: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """The points of a sweep that have a finished run, in the sweep's order.

    Args:
        sweep: whose runs.
        results: of `ki_ros.training.sweep.measure`, by the run's name, of the runs that are finished.
    """
    groups: dict[str, list[Run]] = {}
    for run in sweep.runs:
        if run.name in results:
            groups.setdefault(run.point, []).append(run)
    points = []
    for name, runs in groups.items():
        rows = [{**results[run.name]["evaluation"], "seconds": results[run.name]["seconds"]} for run in runs]
        columns = {
            metric: [math.nan if row[metric] is None else float(row[metric]) for row in rows]
            for metric in rows[0]
            if all(metric in row for row in rows)
        }
        mean = {metric: statistics.fmean(values) for metric, values in columns.items()}
        deviation = {metric: _deviation(values) for metric, values in columns.items()}
        points.append(Point(name, runs[0].settings, tuple(runs), mean, deviation))
    return points


def table(sweep: Sweep, points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text: settings, number of runs, mean ± standard deviation of each metric, minutes of a run."""
    labels = list(sweep.axes)
    named = [point for point in points if _is_named(sweep, point)]
    shown = [metric for metric in METRICS if any(metric in point.mean for point in points)]
    header = [*(["run"] if named or not labels else []), *labels, "n", *(METRICS[m] for m in shown), "minutes"]
    rows = []
    for point in points:
        name = [point.name if point in named or not labels else ""] if named or not labels else []
        settings = [setting_text(point.settings[label]) for label in labels]
        values = [_mean_text(point, metric) for metric in shown]
        rows.append([*name, *settings, str(len(point.runs)), *values, f"{point.mean['seconds'] / 60:.1f}"])
    return header, rows


def markdown(sweep: Sweep, results: Mapping[str, Mapping[str, Any]], command: str) -> str:
    """The table as Markdown, with what it takes to make it again. Results as for `summarise`."""
    points = summarise(sweep, results)
    header, rows = table(sweep, points)
    finished = sum(len(point.runs) for point in points)
    left = [word.endswith(("run", "FAST")) or word in ("run", *sweep.axes) for word in header]
    lines = [
        f"`{command}`",
        "",
        f"Runs: {finished} of {len(sweep.runs)}. Code: {', '.join(revisions(results)) or 'unknown'}. {_facts(sweep)}",
        "",
        "Values are of held-out data after the last step: mean ± standard deviation over the seeds, n of them. The "
        "action error is the mean absolute one, in normalised units.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "|".join(" --- " if is_left else " ---: " for is_left in left) + "|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def revisions(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The revisions of the code that finished the runs, where they are known; more than one may not be comparable."""
    return sorted({result["revision"] for result in results.values() if result["revision"] is not None})


def summary(sweep: Sweep, results: Mapping[str, Mapping[str, Any]], states: Mapping[str, str]) -> dict[str, Any]:
    """All runs and all points as plain values for JSON; what is not finite is None.

    Args:
        sweep: the sweep.
        results: as for `summarise`.
        states: of every run by name: "finished", "failed", "interrupted" or "waiting".
    """
    runs = [
        {
            "name": run.name,
            "directory": str(run.directory),
            "settings": run.settings,
            "seed": run.config.seed,
            "state": states[run.name],
            **results.get(run.name, {"steps": None, "seconds": None, "revision": None, "evaluation": {}}),
        }
        for run in sweep.runs
    ]
    points = [
        {
            "name": point.name,
            "settings": point.settings,
            "n": len(point.runs),
            "mean": {name: _finite(value) for name, value in point.mean.items()},
            "standard_deviation": {name: _finite(value) for name, value in point.deviation.items()},
        }
        for point in summarise(sweep, results)
    ]
    return {"axes": list(sweep.axes), "runs": runs, "points": points}


def draw(sweep: Sweep, points: Sequence[Point], path: Path) -> None:
    """Writes the picture as PNG: held-out metrics as training goes, and at its end over the first axis.

    The first axis is that with the label lambda, or else the first whose values are numbers, or the first. Its values
    stand at equal distances: those of a grid are seldom equidistant.
    """
    metrics = [metric for metric in DRAWN if any(metric in point.mean for point in points)]
    if not metrics:
        return
    axis = _first_axis(sweep)
    along = [point.settings.get(axis) if axis else point.name for point in points]
    ticks = _in_order(along)
    lines = _in_order([_line(sweep, point, axis) for point in points])
    palette = plt.get_cmap("viridis")
    colours = {str(tick): palette(0.9 * k / max(1, len(ticks) - 1)) for k, tick in enumerate(ticks)}
    styles = {line: _STYLES[k % len(_STYLES)] for k, line in enumerate(lines)}

    figure, grid = plt.subplots(
        2, len(metrics), figsize=(3.6 * len(metrics) + 2.4, 7.2), layout="constrained", squeeze=False
    )
    for column, metric in enumerate(metrics):
        curves, ends = grid[0][column], grid[1][column]
        for point, tick in zip(points, along, strict=True):
            line, marker = styles[_line(sweep, point, axis)]
            steps, values = _curve(point, metric)
            curves.plot(steps, values, line, marker=marker, ms=3, lw=1.3, color=colours[str(tick)])
        for k, name in enumerate(lines):
            chosen = [
                (p, t) for p, t in zip(points, along, strict=True) if _line(sweep, p, axis) == name and metric in p.mean
            ]
            # Side by side, so that the bars of one line do not hide another's.
            places = [ticks.index(t) + 0.08 * (k - (len(lines) - 1) / 2) for _, t in chosen]
            scale = 100.0 if metric in _SHARES else 1.0
            ends.errorbar(
                places,
                [scale * p.mean[metric] for p, _ in chosen],
                [scale * p.deviation[metric] if len(p.runs) > 1 else 0.0 for p, _ in chosen],
                color=f"C{k}",
                # Between runs that have no order there is nothing.
                ls=styles[name][0] if axis else "none",
                marker=styles[name][1],
                ms=5,
                lw=1.3,
                capsize=3,
                label=name or "grid",
            )
        curves.set(title=METRICS[metric], xlabel="step")
        curves.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ends.set(xlabel=_axis_title(axis), xticks=range(len(ticks)), xlim=(-0.5, len(ticks) - 0.5))
        ends.set_xticklabels([setting_text(tick) for tick in ticks], rotation=0 if axis else 25)
        for axes in (curves, ends):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("held-out, as training goes")
    grid[1][0].set_ylabel(f"held-out, at the end (n = {_numbers(points)})")
    _legends(grid, axis, {setting_text(tick): colours[str(tick)] for tick in ticks}, styles)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def setting_text(value: Any) -> str:
    """A setting as it is shown."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _legends(grid: Any, axis: str | None, colours: Mapping[str, Any], styles: Mapping[str, Any]) -> None:
    handles = [Line2D([], [], color=colour, lw=2, label=name) for name, colour in colours.items()]
    if len(styles) > 1 or any(styles):
        handles += [
            Line2D([], [], color="grey", ls=line, marker=marker, ms=4, label=name or "grid")
            for name, (line, marker) in styles.items()
        ]
        grid[1][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9, frameon=False)
    grid[0][-1].legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9, frameon=False, title=axis or "run"
    )


def _axis_title(axis: str | None) -> str:
    return {"lambda": "knowledge_insulation_lambda"}.get(axis, axis) if axis else ""


def _numbers(points: Sequence[Point]) -> str:
    counts = sorted({len(point.runs) for point in points})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _first_axis(sweep: Sweep) -> str | None:
    def is_number(label: str) -> bool:
        values = [run.settings[label] for run in sweep.runs]
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)

    if "lambda" in sweep.axes:
        return "lambda"
    return next(filter(is_number, sweep.axes), sweep.axes[0] if sweep.axes else None)


def _line(sweep: Sweep, point: Point, axis: str | None) -> str:
    """What tells the lines of the picture apart: all settings but that of its first axis; off the grid, the name."""
    if axis is None:
        return ""
    if _is_named(sweep, point):
        return point.name
    return ", ".join(f"{label} {setting_text(value)}" for label, value in point.settings.items() if label != axis)


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Each value once: numbers by size, else as they come."""
    once = list({str(value): value for value in values}.values())
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in once)
    return sorted(once) if numbers else once


def _curve(point: Point, metric: str) -> tuple[list[int], list[float]]:
    """Steps of the evaluations that all runs of a point made, and the mean of a metric at each."""
    scale = 100.0 if metric in _SHARES else 1.0
    histories = [
        {
            line["step"]: scale * line[metric]
            for line in read_metrics(run.directory / METRICS_FILE)
            if line["kind"] == "eval" and metric in line
        }
        for run in point.runs
    ]
    steps = sorted(set.intersection(*(set(history) for history in histories)))
    return steps, [statistics.fmean(history[step] for history in histories) for step in steps]


def _is_named(sweep: Sweep, point: Point) -> bool:
    """Whether it is off the grid: a name of the grid begins with its first axis."""
    return not sweep.axes or not point.name.startswith(f"{sweep.axes[0]}=")


def _mean_text(point: Point, metric: str) -> str:
    if metric not in point.mean:
        return "-"
    scale, digits = (100.0, 1) if metric in _SHARES else (1.0, 4)
    text = f"{scale * point.mean[metric]:.{digits}f}"
    return text if len(point.runs) == 1 else f"{text} ± {scale * point.deviation[metric]:.{digits}f}"


def _facts(sweep: Sweep) -> str:
    """Steps, batches, seeds and data of all runs, where these do not differ."""
    configs = [run.config for run in sweep.runs]
    seeds = sorted({config.seed for config in configs})
    facts = {
        "Steps": {config.steps for config in configs},
        "batch size": {config.batch_size for config in configs},
        "flow samples": {config.flow_samples for config in configs},
        "held-out samples": {config.evaluation.samples for config in configs},
        "data": {_data(run) for run in sweep.runs},
    }
    texts = [f"{name}: {next(iter(values)) if len(values) == 1 else 'differ'}" for name, values in facts.items()]
    return "; ".join([*texts, f"seeds: {', '.join(map(str, seeds))}"]) + "."


def _data(run: Run) -> str:
    """The data without where they lie, which is another place elsewhere."""
    values = run.config.to_dict()["data"]
    shown = [f"{name} {value}" for name, value in values.items() if name not in ("kind", "directory", "seed")]
    return f"{values['kind']} ({', '.join(shown)})"


def _deviation(values: Sequence[float]) -> float:
    # The module's own refuses values that are not finite.
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
