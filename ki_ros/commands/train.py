"""`ki-ros train`: a policy from demonstrations."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from ki_ros.commands.cache import build_with_progress
from ki_ros.commands.memory import show_memory
from ki_ros.files import write_json
from ki_ros.training.cached import cache_plan
from ki_ros.training.config import CachedData, TrainConfigError, load
from ki_ros.training.trainer import train as run

console = Console()


def train(
    *,
    config: Path,
    bags: Path | None,
    set: tuple[str, ...],
    output: Path | None,
    resume: bool,
    dry_run: bool,
    json: Path | None,
) -> int:
    """Trains, or says what it would need; returns the exit status. Arguments as in `ki_ros.cli.Train`.

    Raises:
        ValueError, OSError, RuntimeError: see `ki_ros.training.trainer.train`.
    """
    overrides = [*set, *([f"output={output}"] if output is not None else [])]
    settings = load(config, overrides, bags=bags)
    if json is not None and json.is_dir():
        raise TrainConfigError(f"json is {json}, a directory; give a file")
    if dry_run:
        return show_memory(settings, json)
    if isinstance(settings.data, CachedData) and _is_main() and (plan := cache_plan(settings.data)) is not None:
        build_with_progress(plan, console)
    outcome = run(settings, resume=resume, console=console)
    status = 130 if outcome.interrupted else 0
    if not _is_main():
        return status
    state = "interrupted" if outcome.interrupted else "done"
    console.print(f"{state} at step {outcome.step}: {outcome.checkpoint}", soft_wrap=True)
    if json is not None:
        write_json(
            json,
            {
                "step": outcome.step,
                "interrupted": outcome.interrupted,
                "checkpoint": str(outcome.checkpoint),
                "evaluation": outcome.evaluation,
            },
        )
    return status


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
