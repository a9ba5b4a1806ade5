"""`ki-ros train`: a policy from demonstrations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console

from ki_ros.commands.cache import build_with_progress
from ki_ros.commands.locks import InUseError, in_use
from ki_ros.commands.memory import show_memory
from ki_ros.commands.signals import terminated_as_interrupted
from ki_ros.data.cache.build import BuildProgress
from ki_ros.files import write_json
from ki_ros.training.cached import cache_plan
from ki_ros.training.config import CachedData, load
from ki_ros.training.status import Phase, StatusFile
from ki_ros.training.trainer import train as run
from ki_ros.variables import die_with_parent

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
    status: Path | None = None,
) -> int:
    """Trains, or says what it would need; returns the exit status. Arguments as in `ki_ros.cli.Train`.

    Raises:
        InUseError: another training is at it in the same output.
        ValueError, OSError, RuntimeError: see `ki_ros.training.trainer.train`.
    """
    die_with_parent()
    state = StatusFile(status if _is_main() else None)
    with _how_it_ends(state), terminated_as_interrupted():
        return _train(config, bags, set, output, resume, dry_run, json, state)


def _train(
    config: Path,
    bags: Path | None,
    changes: tuple[str, ...],
    output: Path | None,
    resume: bool,
    dry_run: bool,
    json: Path | None,
    state: StatusFile,
) -> int:
    overrides = [*changes, *([f"output={output}"] if output is not None else [])]
    settings = load(config, overrides, bags=bags)
    if dry_run:
        return show_memory(settings, json)
    with in_use(settings.output, "training") if _is_main() else nullcontext():
        if isinstance(settings.data, CachedData) and _is_main() and (plan := cache_plan(settings.data)) is not None:

            def reading(progress: BuildProgress) -> None:
                state.update(phase=Phase.READING, message=f"{progress.done} of {progress.total} recordings are read")

            build_with_progress(plan, console, reading)
        state.update(phase=Phase.PREPARING, message="")
        outcome = run(settings, resume=resume, console=console, status=state)
    exit_status = 130 if outcome.interrupted else 0
    if not _is_main():
        return exit_status
    word = "interrupted" if outcome.interrupted else "done"
    console.print(f"{word} at step {outcome.step}: {outcome.checkpoint}", markup=False, soft_wrap=True)
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
    phase = Phase.STOPPED if outcome.interrupted else Phase.DONE
    state.update(phase=phase, step=outcome.step, seconds_left=None, checkpoint=outcome.checkpoint)
    return exit_status


@contextmanager
def _how_it_ends(state: StatusFile) -> Iterator[None]:
    """Has the reason of an end that is none of the trainer's own in the status file."""
    try:
        yield
    except InUseError:
        # The file may be that of the other one.
        raise
    except KeyboardInterrupt:
        with suppress(OSError):
            state.update(phase=Phase.STOPPED, seconds_left=None, message="it was interrupted before it could save")
        raise
    except BaseException as error:
        with suppress(OSError):
            name = "" if isinstance(error, (ValueError, OSError, RuntimeError)) else f"{type(error).__name__}: "
            state.update(phase=Phase.FAILED, seconds_left=None, message=f"{name}{error}")
        raise


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
