"""Where a run is, in a file for another process: for what started it, for a script, for a person.

The file is put in place as a whole, so a reader never sees half of it. Only the newest state is in it; `metrics.jsonl`
has the history.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from ki_ros.files import write_json

INTERVAL = 1.0
"""Shortest time between two writings for the sake of the number of steps alone [s]."""


class Phase(str, Enum):
    """What a run is at; the last three are how it ended."""

    READING = "reading"
    PREPARING = "preparing"
    TRAINING = "training"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether nothing follows."""
        return self in (Phase.DONE, Phase.STOPPED, Phase.FAILED)


class StatusError(ValueError):
    """A file that is not one of a run's state; the message names it."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run is.

    Attributes:
        phase: what it is at.
        step, steps: optimiser steps that are done, and all; 0 of 0 before training begins.
        metrics: of the newest step that was logged, as in `metrics.jsonl`.
        evaluation: metrics of the newest evaluation.
        seconds_left: until the last step, at the pace of the last ones [s]; None while unknown.
        checkpoint: the newest one; None while there is none.
        message: what a person should know: what is being read, or why it failed.
    """

    phase: Phase = Phase.PREPARING
    step: int = 0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    seconds_left: float | None = None
    checkpoint: Path | None = None
    message: str = ""


class StatusFile:
    """Keeps a file at a run's state.

    Args:
        path: of the file; None to keep none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._status = RunStatus()
        self._written = -math.inf

    def update(self, **changes: Any) -> None:
        """Changes fields of the state and writes it.

        Raises:
            OSError: it cannot be written.
        """
        self._status = replace(self._status, **changes)
        if self._path is not None:
            write_json(self._path, _plain(asdict(self._status)))
            self._written = time.monotonic()

    def advance(self, step: int) -> None:
        """Notes the number of steps, and writes it if the last writing was a while ago."""
        if time.monotonic() - self._written >= INTERVAL:
            self.update(step=step)


def read_status(path: Path) -> RunStatus:
    """The state in a file.

    Raises:
        FileNotFoundError: there is none yet.
        StatusError: it is of something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["phase"] = Phase(values["phase"])
        for name in ("metrics", "evaluation"):
            values[name] = {key: math.nan if value is None else value for key, value in values[name].items()}
        values["checkpoint"] = Path(values["checkpoint"]) if values["checkpoint"] else None
        return RunStatus(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StatusError(f"{path} is not the state of a run ({error}); remove it") from error


def _plain(value: Any) -> Any:
    """As JSON has it, whose only word for what is no finite number is null."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, Phase):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
