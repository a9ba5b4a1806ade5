#!/usr/bin/env python3
"""Knowledge insulation in closed loop: every checkpoint of a sweep's runs drives the simulated rig.

    benchmarks/insulation.py [--sweep config/sweep/reach_insulation.yaml] [--output DIR] [--task reach] [--episodes 40]
                             [--seed 7] [--reached 0.5] [--last] [--workers N] [--picture FILE] [--json FILE]

All checkpoints meet the same scenes. The runs named `insulated` are driven twice: by the action expert, and as
`FAST-only` by the tokens of their backbone. That is what training on the FAST loss alone gives, to the bit: with
insulation the flow loss has no gradient in the backbone, and each side's gradient is clipped by its own norm.

Prints a table: success and following of the last checkpoints (all seeds' episodes together, with Wilson's 95 %
interval, and the spread between seeds), the first step at which a seed's success is at least --reached, and the time
of a training step. Draws success and following over steps. With --last only the last checkpoint of each run is driven.
Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import defaultdict
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
from ki_ros.files import write_atomically, write_json
from ki_ros.lockstep.evaluation import Evaluator, episode_seed, summarise, wilson
from ki_ros.lockstep.fast_policy import FASTPolicy
from ki_ros.policy import Policy
from ki_ros.sim.tasks import BLOCKS, Task
from ki_ros.training.state import checkpoints
from ki_ros.training.sweep import Run, finished, load

BACKBONE_OF = {"insulated": "FAST-only"}
"""Points whose backbone is driven too, and what that is called."""

console = Console()


class Drives:
    """Makes the figures of one checkpoint; a process has one of it."""

    def __init__(self, task: Task, episodes: int, seed: int) -> None:
        self._task, self._seeds, self._seed = task, [episode_seed(seed, n) for n in range(episodes)], seed

    def drive(self, checkpoint: Path, backbone: bool) -> dict[str, Any]:
        policy = Policy.load(checkpoint=checkpoint, seed=self._seed, threads=1)
        evaluator = Evaluator(FASTPolicy(policy, checkpoint) if backbone else policy)
        try:
            return summarise([evaluator.run(self._task, seed) for seed in self._seeds])
        finally:
            evaluator.close()


def drive(drives: Drives, item: tuple[str, str, int, Path, bool, Path]) -> str:
    """Drives a checkpoint and writes its figures; returns a word on them."""
    point, name, step, checkpoint, backbone, file = item
    figures = drives.drive(checkpoint, backbone)
    write_json(file, figures | {"point": point, "run": name, "step": step})
    return f"{point} {step}: {figures['success_rate']:.0%}"


def main() -> None:
    options = _options()
    sweep = load(options.sweep, output=options.output)
    runs = [run for run in sweep.runs if finished(run) is not None]
    if len(runs) < len(sweep.runs):
        said = f"{len(runs)} of {len(sweep.runs)} runs are finished; first: ki-ros sweep {options.sweep}"
        console.print(said, markup=False)
    if not runs:
        raise SystemExit(1)
    directory = sweep.output / "closed_loop" / f"{options.task.value}_{options.episodes}_{options.seed}"
    directory.mkdir(parents=True, exist_ok=True)
    items = [item for run in runs for item in _items(run, directory, options.last)]
    missing = [item for item in items if not item[-1].is_file()]
    for _ in spread(
        partial(Drives, options.task, options.episodes, options.seed),
        drive,
        missing,
        workers=options.workers,
        title="checkpoints",
        console=console,
        describe=str,
    ):
        pass
    driven = [json.loads(item[-1].read_text()) for item in items]
    seconds = {run.point: [] for run in runs}
    for run in runs:
        result = finished(run)
        assert result is not None
        seconds[run.point].append(result["seconds"] / result["steps"])
    figures = {point: _figures(rows, seconds.get(point, []), options) for point, rows in _by_point(driven).items()}
    _print(figures, options)
    picture = options.picture or directory / "insulation.png"
    write_atomically(picture, lambda path: _draw(figures, options, path))
    console.print(f"wrote {picture}", markup=False, soft_wrap=True)
    if options.json is not None:
        write_json(options.json, {"task": options.task.value, "reached": options.reached, "points": figures})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, default=Path("config/sweep/reach_insulation.yaml"))
    parser.add_argument("--output", type=Path, default=None, help="of the sweep, if not the file's")
    parser.add_argument("--task", type=Task, default=Task.REACH)
    parser.add_argument("--episodes", type=int, default=40, help="of each checkpoint")
    parser.add_argument("--seed", type=int, default=7, help="of the scenes")
    parser.add_argument("--reached", type=float, default=0.5, help="success whose first step is reported")
    parser.add_argument("--last", action="store_true", help="only the last checkpoint of each run")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--picture", type=output_file, default=None)
    parser.add_argument("--json", type=output_file, default=None)
    return parser.parse_args()


def _items(run: Run, directory: Path, last: bool) -> list[tuple[str, str, int, Path, bool, Path]]:
    items, kept = [], checkpoints(run.directory)
    for step, path in kept.items():
        if last and step != max(kept):
            continue
        items.append((run.point, run.name, step, path, False, directory / f"{run.name}_{step}.json"))
        if run.point in BACKBONE_OF:
            file = directory / f"{run.name}_{step}_backbone.json"
            items.append((BACKBONE_OF[run.point], run.name, step, path, True, file))
    return items


def _by_point(driven: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    points: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in driven:
        points[row["point"]].append(row)
    return points


def _figures(rows: list[dict[str, Any]], seconds: list[float], options: argparse.Namespace) -> dict[str, Any]:
    steps: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        steps[row["step"]][row["run"]] = row
    last = steps[max(steps)]
    firsts = [
        next((step for step in sorted(steps) if steps[step][run]["success_rate"] >= options.reached), None)
        for run in sorted(last)
    ]
    return {
        "seeds": len(last),
        "last": {name: _pooled(list(last.values()), name) for name in ("success", "following")},
        "refused": sum(result["refused"] for row in last.values() for result in row["results"]),
        "steps_to_reached": firsts,
        "seconds_per_step": statistics.fmean(seconds) if seconds else None,
        "curve": {
            step: {name: _pooled(list(steps[step].values()), name) for name in ("success", "following")}
            for step in sorted(steps)
        },
    }


def _pooled(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    count, share = ("successes", "success_rate") if name == "success" else ("followed", "language_following")
    hits, trials = sum(row[count] for row in rows), sum(row["episodes"] for row in rows)
    return {
        "share": hits / trials,
        "interval": wilson(hits, trials),
        "seeds": [row[share] for row in rows],
        "deviation": statistics.stdev(row[share] for row in rows) if len(rows) > 1 else None,
    }


def _print(figures: dict[str, Any], options: argparse.Namespace) -> None:
    table = Table("", "seeds", "success", "following", f"steps to {options.reached:.0%}", "s/step")
    for point, values in figures.items():
        cells = []
        for name in ("success", "following"):
            value = values["last"][name]
            low, high = value["interval"]
            seeds = ", ".join(f"{100 * share:.0f}" for share in value["seeds"])
            cells.append(f"{100 * value['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f}); seeds {seeds}")
        firsts = ", ".join("never" if step is None else str(step) for step in values["steps_to_reached"])
        cost = values["seconds_per_step"]
        table.add_row(point, str(values["seeds"]), *cells, firsts, "" if cost is None else f"{cost:.2f}")
    console.print(table)


def _draw(figures: dict[str, Any], options: argparse.Namespace, path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True, sharey=True, layout="constrained")
    over_steps = any(len(values["curve"]) > 1 for values in figures.values())
    for panel, name in zip(panels, ("success", "following"), strict=True):
        for number, (point, values) in enumerate(figures.items()):
            (_draw_curve if over_steps else _draw_bar)(panel, number, point, values, name)
        panel.set(ylabel=f"{name} [%]", ylim=(0, 100))
        panel.grid(alpha=0.3)
        if over_steps:
            panel.set_xlabel("training steps")
        else:
            panel.set_xticks(range(len(figures)), list(figures), rotation=20)
    if over_steps:
        panels[0].legend(fontsize=9)
    panels[1].axhline(100 / BLOCKS, color="black", ls=":", lw=1)
    figure.suptitle(
        f"{options.task.value}: all seeds together, {options.episodes} episodes each, 95 % intervals", fontsize=11
    )
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _draw_curve(panel: Any, number: int, point: str, values: dict[str, Any], name: str) -> None:
    steps = list(values["curve"])
    curve = [values["curve"][step][name] for step in steps]
    colour = f"C{number}"
    panel.plot(steps, [100 * c["share"] for c in curve], "o-", color=colour, label=point)
    low, high = ([100 * c["interval"][side] for c in curve] for side in (0, 1))
    panel.fill_between(steps, low, high, color=colour, alpha=0.12)


def _draw_bar(panel: Any, number: int, _point: str, values: dict[str, Any], name: str) -> None:
    value = values["last"][name]
    share = 100 * value["share"]
    low, high = (abs(100 * bound - share) for bound in value["interval"])
    panel.bar(number, share, 0.6, color=f"C{number}", alpha=0.5, yerr=[[low], [high]], capsize=4)
    panel.plot([number] * len(value["seeds"]), [100 * seed for seed in value["seeds"]], "o", color="black", ms=4)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"insulation.py: {error}") from None
