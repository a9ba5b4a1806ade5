"""What a training run reports as it goes: a file of lines, TensorBoard, and a line or a bar on the terminal."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

METRICS_FILE = "metrics.jsonl"
"""Name of the file of lines in a run's directory."""

TENSORBOARD_DIRECTORY = "tensorboard"
"""Name of the directory of TensorBoard's files in a run's directory."""

SHOWN = {
    "flow_loss": "flow {:.4f}",
    "fast_loss": "fast {:.4f}",
    "fast_accuracy": "accuracy {:.1%}",
    "samples_per_second": "{:.1f} samples/s",
}
"""Metrics of the terminal, by name; a run that lacks one does without."""

LINE_INTERVAL = 30.0
"""Shortest time between two lines of training where there is no terminal to draw a bar on [s]."""

Kind = Literal["train", "eval"]


class MetricsLog:
    """Writes a run's metrics; a context manager, for one process of the run.

    Each call of `log` adds a line `{"step": .., "kind": "train", "flow_loss": ..}` to `metrics.jsonl`, which is there
    for other processes at once. What is no finite number is null there: JSON has no other word for it.

    A run that resumes from a checkpoint makes the steps after it once more, so on entering the block their lines are
    taken off the file, and so is a last line that a crash left unfinished.

    Attributes:
        seconds_left: until the last step, at the pace of the last reports of training [s]; None before any step.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        total_steps: int,
        start_step: int,
        progress: bool,
        tensorboard: bool,
        console: Console | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            directory: of the run; made if there is none.
            total_steps: last step of the run.
            start_step: step of the checkpoint that the run resumes from, 0 for a new run.
            progress: whether to show progress: a bar on a terminal; elsewhere a line now and then.
            tensorboard: whether to write for TensorBoard too.
            console: to print to; standard error if None.

        Raises:
            ValueError: steps that no run has.
        """
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}; give a positive number of steps")
        if not 0 <= start_step <= total_steps:
            raise ValueError(f"start_step is {start_step}; give a step from 0 to total_steps, {total_steps}")
        self._directory = Path(directory)
        self._start = start_step
        self._total = total_steps
        self._progress = progress
        self._tensorboard = tensorboard
        self._console = Console(stderr=True) if console is None else console
        self._file: Any = None
        self._writer: Any = None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._pace = _Pace(start_step)
        self._last_line = -math.inf
        self.seconds_left: float | None = None

    def __enter__(self) -> MetricsLog:
        """Raises MetricsError for a file that is not of such lines, ImportError where TensorBoard is not installed."""
        self._writer = self._open_tensorboard() if self._tensorboard else None
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / METRICS_FILE
        if path.exists():
            _cut(path, self._start)
        self._file = path.open("a", encoding="utf-8")
        if self._progress and self._console.is_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=self._total, completed=self._start)
            self._bar.start()
        self._pace = _Pace(self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()
        self._file.close()

    def log(self, step: int, values: Mapping[str, float], kind: Kind = "train") -> None:
        """Records values of a step, which may be 0-dimensional tensors.

        Raises:
            ValueError: a name that every line has already.
        """
        numbers = {name: float(value) for name, value in values.items()}
        for name in ("step", "kind"):
            if name in numbers:
                raise ValueError(f"values has {name!r}, which every line has already; give it another name")
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **finite}, allow_nan=False) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        if kind == "train":
            self.seconds_left = self._pace.left(step, self._total)
        if self._progress:
            self._show(step, numbers, kind)

    def has(self, step: int, kind: Kind) -> bool:
        """Whether values of a step were recorded, by this run or by the one that it goes on with."""
        return any(
            (line["step"], line["kind"]) == (step, kind) for line in read_metrics(self._directory / METRICS_FILE)
        )

    def message(self, text: str) -> None:
        """Prints a line above the bar, whether progress is shown or not."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, step: int, values: dict[str, float], kind: Kind) -> None:
        shown = [form.format(values[name]) for name, form in SHOWN.items() if name in values]
        if kind == "eval":
            self.message(f"step {step}: eval, {', '.join(shown)}")
            return
        if self.seconds_left is not None:
            shown.append(f"{_duration(self.seconds_left)} left")
        text = ", ".join(shown)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL or step >= self._total:
            self._last_line = now
            self.message(f"step {step}/{self._total}: {text}")

    def _open_tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard is True, but the package tensorboard is not installed; pip install tensorboard, or turn "
                "it off"
            ) from error
        return SummaryWriter(str(self._directory / TENSORBOARD_DIRECTORY), purge_step=self._start + 1)


class MetricsError(ValueError):
    """A file that is not one of metrics; the message names the line."""


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in their order; null is NaN. An unfinished last line is left out.

    Raises:
        MetricsError: any other line that is not a JSON object with a step and a kind.
    """
    path = Path(path)
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            if not text.endswith(b"\n"):
                break
            raise MetricsError(f"{path}: line {number} is not JSON ({error}); remove the line") from error
        if not isinstance(line, dict) or not isinstance(line.get("step"), int) or "kind" not in line:
            raise MetricsError(f"{path}: line {number} is no object with a step and a kind; remove the line")
        lines.append({name: math.nan if value is None else value for name, value in line.items()})
    return lines


def _cut(path: Path, last_step: int) -> None:
    """Leaves the lines up to a step, by putting a new file in the old one's place."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [text for text, line in zip(lines, read_metrics(path), strict=False) if line["step"] <= last_step]
    if kept == lines and all(text.endswith(b"\n") for text in lines):
        return
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.write_bytes(b"".join(text.rstrip(b"\n") + b"\n" for text in kept))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Pace:
    """Time per step over the last reports, from which the time that is left follows."""

    REPORTS = 20

    def __init__(self, start_step: int) -> None:
        self._reports = deque([(time.monotonic(), start_step)], maxlen=self.REPORTS)

    def left(self, step: int, total: int) -> float | None:
        """Time until the last step [s]; None before any step was made."""
        self._reports.append((time.monotonic(), step))
        (first_time, first_step), (last_time, last_step) = self._reports[0], self._reports[-1]
        if last_step <= first_step:
            return None
        return max(total - step, 0) * (last_time - first_time) / (last_step - first_step)


def _duration(seconds: float) -> str:
    """As hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
