"""`ki-ros checkpoint import` and `ki-ros checkpoint export`: weights of this package, openpi and LeRobot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ki_ros.model import interchange
from ki_ros.model.interchange import Report

console = Console()


def import_checkpoint(
    *,
    source: Path,
    output: Path,
    format: str,
    preset: str,
    action_space: str,
    norm_stats: Path | None,
    tokenizer: Path | None,
    dtype: str,
    overwrite: bool,
) -> int:
    """Imports and prints what became of it; returns the exit status. Arguments as in `ki_ros.cli`; empty: left out.

    Raises:
        ValueError: as `interchange.import_checkpoint`.
    """
    with _bar(source) as progress:
        report = interchange.import_checkpoint(
            source,
            output,
            layout=format,
            preset=preset,
            action_space=action_space or None,
            norm_stats=norm_stats,
            tokenizer=tokenizer,
            dtype=dtype or None,
            overwrite=overwrite,
            progress=progress,
        )
    _print(report)
    return 0


def export_checkpoint(*, source: Path, output: Path, format: str, asset_id: str, dtype: str, overwrite: bool) -> int:
    """Exports and prints what became of it; returns the exit status. Arguments as in `ki_ros.cli`; empty: left out.

    Raises:
        ValueError: as `interchange.export_checkpoint`.
    """
    with _bar(source) as progress:
        report = interchange.export_checkpoint(
            source,
            output,
            layout=format,
            asset_id=asset_id,
            dtype=dtype or None,
            overwrite=overwrite,
            progress=progress,
        )
    _print(report)
    return 0


@contextmanager
def _bar(source: Path) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(source.name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print(report: Report) -> None:
    _line(f"{report.output}: {report.tensors} tensors, {report.size / 1e9:.2f} GB, from {report.source}")
    sections = (
        ("assumed", report.assumed),
        ("not carried", report.not_carried),
        ("missing", report.missing),
        ("note", report.notes),
    )
    for title, items in sections:
        for item in items:
            _line(f"  {title}: {item}")


def _line(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
