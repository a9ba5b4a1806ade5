"""The bar of commands that take long."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(title: str, detail: str, console: Console, *, transient: bool = False) -> Progress:
    """A bar with counts and times.

    Args:
        title: what is done, before the bar.
        detail: behind it, a format over `task`, such as "{task.fields[steps]:,} steps".
        console: that it is shown on.
        transient: whether it vanishes at the end.
    """
    return Progress(
        TextColumn(title, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(detail, markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )
