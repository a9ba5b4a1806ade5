#!/usr/bin/env python3
"""What latency costs, by schedule: closed-loop episodes in the simulated rig with the policy's thinking time added.

    benchmarks/latency.py [--checkpoint models/ki_tiny] [--task reach] [--episodes 50] [--seed 7] [--replan 5]
                          [--delays 0 0.05 0.1 0.2 0.3] [--schedules ...] [--output DIR] [--picture FILE] [--json FILE]

All cells meet the same scenes, in lockstep: the delay is simulated time, whatever this machine's speed is. Prints, for
each schedule and delay: success with Wilson's interval of 95 %, the median time of the successes, the change of a
joint's commanded velocity where chunks meet (the mean, a median over the episodes; and the largest of all), and the
commands' root-mean-square jerk. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from arguments import output_file

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from ki_ros.commands.workers import spread
from ki_ros.execution.schedule import SCHEDULES
from ki_ros.files import write_atomically, write_json
from ki_ros.lockstep.evaluation import Evaluator, episode_seed, summarise
from ki_ros.policy import Policy
from ki_ros.sim.tasks import Task

console = Console()
PANELS = (
    ("success_rate", "success [%]", 100.0),
    ("seconds_median", "time to finish, median [s]", 1.0),
    ("seam_step_mean_median", "step at a seam, mean [rad/s]", 1.0),
    ("rms_jerk_median", "jerk, root mean square [rad/s³]", 1.0),
)


class Drives:
    """Makes the figures of one cell; a process has one of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._policy = Policy.load(checkpoint=options.checkpoint, seed=options.seed, threads=1)

    def drive(self, schedule: str, delay: float) -> dict[str, Any]:
        o = self._options
        evaluator = Evaluator(self._policy, replan=o.replan, latency=delay, schedule=schedule)
        try:
            return summarise([evaluator.run(o.task, episode_seed(o.seed, n)) for n in range(o.episodes)])
        finally:
            evaluator.close()


def drive(drives: Drives, cell: tuple[str, float, Path]) -> str:
    """Drives a cell and writes its figures; returns a word on them."""
    schedule, delay, file = cell
    figures = drives.drive(schedule, delay)
    write_json(file, figures | {"schedule": schedule, "delay": delay})
    return f"{schedule} {1e3 * delay:.0f} ms: {figures['success_rate']:.0%}"


def main() -> None:
    options = _options()
    directory = options.output / f"{options.task.value}_{options.episodes}_{options.seed}_{options.replan}"
    directory.mkdir(parents=True, exist_ok=True)
    cells = [
        (schedule, delay, directory / f"{schedule}_{1e3 * delay:.0f}.json")
        for schedule in options.schedules
        for delay in options.delays
    ]
    missing = [cell for cell in cells if not cell[-1].is_file()]
    for _ in spread(
        partial(Drives, options),
        drive,
        missing,
        workers=options.workers,
        title="cells",
        console=console,
        describe=str,
    ):
        pass
    figures = [json.loads(file.read_text()) for *_, file in cells]
    _print(figures)
    picture = options.picture or directory / "latency.png"
    write_atomically(picture, lambda path: _draw(figures, options, path))
    console.print(f"wrote {picture}", markup=False, soft_wrap=True)
    if options.json is not None:
        cells_of = [{k: v for k, v in row.items() if k not in ("results", "tasks", "instructions")} for row in figures]
        settings = {"checkpoint": str(options.checkpoint), "task": options.task.value, "seed": options.seed}
        write_json(options.json, settings | {"replan": options.replan, "cells": cells_of})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("models/ki_tiny"))
    parser.add_argument("--task", type=Task, default=Task.REACH)
    parser.add_argument("--episodes", type=int, default=50, help="of each cell")
    parser.add_argument("--seed", type=int, default=7, help="of scenes and noise")
    parser.add_argument("--replan", type=int, default=5, help="rows of a chunk to execute before the next one")
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.3], help="[s]")
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=SCHEDULES)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path("out/latency"))
    parser.add_argument("--picture", type=output_file, default=None)
    parser.add_argument("--json", type=output_file, default=None)
    return parser.parse_args()


def _print(figures: list[dict[str, Any]]) -> None:
    table = Table("schedule", "delay", "n", "success", "time", "step at seams, mean", "largest", "jerk")
    for row in figures:
        low, high = row["success_interval"]
        seconds = row["seconds_median"]
        table.add_row(
            row["schedule"],
            f"{1e3 * row['delay']:.0f} ms",
            str(row["episodes"]),
            f"{100 * row['success_rate']:.0f} % ({100 * low:.0f} to {100 * high:.0f})",
            "" if seconds is None else f"{seconds:.2f} s",
            f"{row['seam_step_mean_median']:.3f} rad/s",
            f"{row['seam_step_largest']:.2f} rad/s",
            f"{row['rms_jerk_median']:.0f} rad/s³",
        )
    console.print(table)


def _draw(figures: list[dict[str, Any]], options: argparse.Namespace, path: Path) -> None:
    figure, panels = plt.subplots(1, len(PANELS), figsize=(15, 3.8), sharex=True, layout="constrained")
    for panel, (key, label, scale) in zip(panels, PANELS, strict=True):
        for schedule in options.schedules:
            rows = [row for row in figures if row["schedule"] == schedule and row[key] is not None]
            panel.plot([1e3 * row["delay"] for row in rows], [scale * row[key] for row in rows], "o-", label=schedule)
        panel.set(xlabel="added delay [ms]", ylabel=label)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{options.task.value}, {options.episodes} episodes a cell, same scenes", fontsize=11)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"latency.py: {error}") from None
