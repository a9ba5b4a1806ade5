"""`ki-ros evaluate`: seeded closed-loop episodes of a policy in the simulated tasks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ki_ros.commands.workers import require_workers, spread
from ki_ros.execution.schedule import REAL_TIME
from ki_ros.files import write_json
from ki_ros.lockstep.evaluation import Evaluator, Result, episode_seed, summarise
from ki_ros.lockstep.fast_policy import FASTPolicy
from ki_ros.policy import Policy
from ki_ros.sim.tasks import Task

console = Console()


class EvaluateError(ValueError):
    """An evaluation that cannot be run; the message names the field, the value and the fix."""


def evaluate(
    *,
    checkpoint: Path | None,
    preset: str,
    task: tuple[Task, ...],
    episodes: int,
    seed: int,
    replan: int,
    latency: float,
    schedule: str,
    num_steps: int,
    backbone: bool,
    workers: int,
    json: Path | None,
) -> int:
    """Runs the episodes and prints what came of them; returns the exit status. Arguments as in `ki_ros.cli.Evaluate`.

    Raises:
        ValueError: an argument out of its range, or a policy that cannot be loaded.
    """
    if episodes < 1:
        raise EvaluateError(f"episodes is {episodes}; give at least 1")
    if seed < 0:
        raise EvaluateError(f"seed is {seed}; give 0 or more")
    if backbone and checkpoint is None:
        raise EvaluateError("backbone is set without a checkpoint; give one that was trained with FAST tokens")
    if backbone and schedule in REAL_TIME:
        raise EvaluateError(
            f"schedule is {schedule} and backbone is set; FAST tokens agree with nothing, drop one of them"
        )
    require_workers(workers)
    make = partial(_make, checkpoint, preset, seed, replan, latency, schedule, num_steps, backbone)
    items = [(one, episode_seed(seed, number)) for one in task for number in range(episodes)]
    results = spread(
        make,
        _run,
        items,
        workers=workers,
        title="episodes",
        console=console,
        describe=lambda result: f"{result.task}: {'success' if result.success else 'no success'}",
    )
    figures = summarise(sorted(results, key=lambda result: (result.task, result.seed))) | {
        "checkpoint": str(checkpoint or f"{preset} (untrained)"),
        "seed": seed,
        "replan": replan,
        "latency": latency,
        "schedule": schedule,
        "num_steps": num_steps,
        "backbone": backbone,
    }
    _print(figures)
    if json is not None:
        write_json(json, figures)
    return 0


def _make(
    checkpoint: Path | None,
    preset: str,
    seed: int,
    replan: int,
    latency: float,
    schedule: str,
    num_steps: int,
    backbone: bool,
) -> Evaluator:
    policy = Policy.load(
        preset=preset if checkpoint is None else None, checkpoint=checkpoint, seed=seed, threads=1, num_steps=num_steps
    )
    acts = FASTPolicy(policy, checkpoint) if backbone and checkpoint is not None else policy
    return Evaluator(acts, replan=replan, latency=latency, schedule=schedule)


def _run(evaluator: Evaluator, item: tuple[Task, int]) -> Result:
    return evaluator.run(*item)


def _print(figures: dict[str, Any]) -> None:
    table = Table("", "n", "success", "named block", "median", "closest")
    rows = [*figures["tasks"].items(), ("all", figures)]
    if len(figures["tasks"]) == 1:
        rows.pop()
    for name, values in rows:
        table.add_row(name, *_cells(values))
    console.print(table)
    table = Table("instruction", "n", "success", "named block", "median", "closest")
    for text, values in figures["instructions"].items():
        table.add_row(text, *_cells(values))
    console.print(table)
    console.print(
        "in brackets: Wilson's interval of 95 %; named block: the first block that the arm went to is the named one"
    )
    console.print(
        f"an arm that ignores the instruction goes to the named block in {figures['chance_of_following']:.0%}"
    )


def _cells(values: dict[str, Any]) -> list[str]:
    def share(name: str, interval: str) -> str:
        low, high = values[interval]
        return f"{100 * values[name]:.0f} % ({100 * low:.0f} to {100 * high:.0f})"

    seconds = values["seconds_median"]
    return [
        str(values["episodes"]),
        share("success_rate", "success_interval"),
        share("language_following", "language_following_interval"),
        "" if seconds is None else f"{seconds:.1f} s",
        f"{100 * values['closest_median']:.1f} cm",
    ]
