"""`ki-ros cache`: bags, read once for training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ki_ros.commands.losses import print_damaged, print_left_out
from ki_ros.commands.progress import progress_bar
from ki_ros.data.cache import Cache
from ki_ros.data.cache.bags import bag_origins, bag_settings
from ki_ros.data.cache.build import BuildProgress, BuildReport, CachePlan
from ki_ros.data.cache.part import Storage
from ki_ros.files import write_json

console = Console()


def cache(
    *,
    bags: Path,
    output: Path,
    params_file: Path | None,
    encoding: Literal["jpeg", "raw"],
    quality: int,
    workers: int,
    json: Path | None,
) -> int:
    """Brings a cache up to date and prints what is in it; returns the exit status. Arguments as in `ki_ros.cli.Cache`.

    Raises:
        ValueError: a directory without bags, or without one that can be read; a cache that is damaged or of other
            settings.
        OSError: the cache cannot be written.
    """
    plan = CachePlan(
        origins=bag_origins(bags, params_file),
        directory=output,
        storage=Storage(encoding, quality, bag_settings(params_file)),
        workers=workers or os.cpu_count() or 1,
    )
    try:
        report = build_with_progress(plan, console)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        raise
    figures = _summary(Cache(output))
    _print(figures, report)
    if json is not None:
        changes = {
            "added": list(report.added),
            "kept": len(report.kept),
            "removed": list(report.removed),
            "refused": report.refused,
        }
        write_json(json, figures | changes)
    return 0


def build_with_progress(
    plan: CachePlan, shown: Console, progress: Callable[[BuildProgress], None] = lambda _: None
) -> BuildReport:
    """Brings a cache up to date, with a bar where it takes time, and names what is left out and what is gone.

    Args:
        plan: of the cache.
        shown: where the bar is drawn.
        progress: called with what the bar shows.

    Raises:
        ValueError, OSError: as `build_cache`.
    """
    with progress_bar("reading", "{task.fields[steps]:,} steps", shown, transient=True) as bar:
        task = bar.add_task("", total=None, steps=0)

        def show(state: BuildProgress) -> None:
            bar.update(task, completed=state.done, total=state.total, steps=state.steps)
            progress(state)

        report = plan.build(
            retry_refused=True,
            progress=show,
            waiting=lambda: shown.print(f"waiting for another process that reads into {plan.directory}", markup=False),
        )
    print_left_out(shown, report.refused)
    for name in report.removed:
        shown.print(f"[yellow]removed[/] {escape(name)}: it is there no longer", highlight=False, soft_wrap=True)
    return report


def _summary(made: Cache) -> dict:
    tasks = Counter((episode.instruction, episode.outcome) for episode in made.episodes)
    steps: Counter = Counter()
    for episode in made.episodes:
        steps[episode.instruction, episode.outcome] += episode.length
    return {
        "episodes": len(made.episodes),
        "steps": len(made),
        "idle_steps": int(made.idle.sum()),
        "seconds": sum(episode.length / episode.rate for episode in made.episodes),
        "bytes": sum(file.stat().st_size for file in made.directory.rglob("*") if file.is_file()),
        "encoding": made.encoding,
        "damaged": {
            f"{episode.id} of {episode.bag}": list(episode.damage) for episode in made.episodes if episode.damage
        },
        "action_sources": dict(Counter(episode.action_source for episode in made.episodes)),
        "tasks": [
            {"instruction": instruction, "outcome": outcome, "episodes": count, "steps": steps[instruction, outcome]}
            for (instruction, outcome), count in sorted(tasks.items())
        ],
    }


def _print(figures: dict, report: BuildReport) -> None:
    table = Table()
    for column, justify in (("instruction", "left"), ("outcome", "left"), ("episodes", "right"), ("steps", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for task in figures["tasks"]:
        instruction = escape(task["instruction"]) or "(none)"
        table.add_row(instruction, task["outcome"], str(task["episodes"]), f"{task['steps']:,}")
    console.print(table)
    print_damaged(console, figures["damaged"])
    console.print(
        f"{figures['episodes']} episodes, {figures['steps']:,} steps ({figures['idle_steps']:,} idle), "
        f"{figures['seconds'] / 60:.1f} min, {figures['bytes'] / 1e6:.1f} MB as {figures['encoding']}; "
        f"{len(report.added)} read, {len(report.kept)} kept, {len(report.removed)} removed, "
        f"{len(report.refused)} left out",
        highlight=False,
        soft_wrap=True,
    )
