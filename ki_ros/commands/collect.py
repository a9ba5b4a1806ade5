"""`ki-ros collect`: demonstrations of the simulated tasks by the scripted operator, as bags."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ki_ros.commands.locks import in_use
from ki_ros.commands.workers import require_workers, spread
from ki_ros.files import write_json
from ki_ros.lockstep.collect import Collected, Collector, discard_unfinished, episode_id
from ki_ros.lockstep.evaluation import SEED_OFFSET
from ki_ros.sim.tasks import Task

console = Console()


class CollectError(ValueError):
    """Demonstrations that cannot be collected; the message names the field, the value and the fix."""


def collect(
    *,
    output: Path,
    tasks: tuple[Task, ...],
    episodes: int,
    seed: int,
    quality: int | None,
    workers: int,
    json: Path | None,
) -> int:
    """Records what is not there yet; returns the exit status. Arguments as in `ki_ros.cli.Collect`.

    Raises:
        ValueError: a number out of its range, or an output that is in use.
        OSError, BagWriteError: a bag cannot be written.
    """
    if episodes < 1:
        raise CollectError(f"episodes is {episodes}; give at least 1")
    if not 0 <= seed <= SEED_OFFSET - episodes:
        raise CollectError(f"seed is {seed}; give 0 to {SEED_OFFSET - episodes}: higher ones belong to evaluations")
    if quality is not None and not 1 <= quality <= 100:
        raise CollectError(f"quality is {quality}; give 1 to 100, or leave it out for raw images")
    require_workers(workers)
    # Two would remove each other's bags in progress.
    with in_use(output, "ki-ros collect"):
        figures = _record(output, tasks, range(seed, seed + episodes), quality, workers)
    table = Table("task", "recorded now", "succeeded", "seconds")
    for name, values in figures.items():
        table.add_row(name, str(values["episodes"]), str(values["successes"]), f"{values['seconds']:.0f}")
    console.print(table)
    console.print(f"bags are in {output}; next: ki-ros bags check {output}", markup=False, soft_wrap=True)
    if json is not None:
        write_json(json, figures)
    return 0


def _record(
    output: Path, tasks: tuple[Task, ...], numbers: range, quality: int | None, workers: int
) -> dict[str, dict[str, float]]:
    wanted = [(task, number) for number in numbers for task in tasks]
    missing = [(task, number) for task, number in wanted if not (output / episode_id(task, number)).is_dir()]
    if len(missing) < len(wanted):
        console.print(f"{len(wanted) - len(missing)} of {len(wanted)} episodes are there already")
    try:
        collected = list(
            spread(
                partial(Collector, output, quality),
                _collect,
                missing,
                workers=workers,
                title="recording",
                console=console,
                describe=lambda result: result.id,
            )
        )
    finally:
        # Half a bag is a recording to whoever looks for recordings.
        for task, number in missing:
            discard_unfinished(output, task, number)
    return {task.value: _figures([c for c in collected if c.id.startswith(f"{task.value}_")]) for task in tasks}


def _collect(collector: Collector, item: tuple[Task, int]) -> Collected:
    return collector.collect(*item)


def _figures(collected: list[Collected]) -> dict[str, float]:
    return {
        "episodes": len(collected),
        "successes": sum(c.success for c in collected),
        "seconds": sum(c.seconds for c in collected),
    }
