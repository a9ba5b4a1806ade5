"""What a command could not use of recordings, for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape


def print_left_out(console: Console, refused: Mapping[str, str]) -> None:
    """Prints recordings that were left out, and why."""
    for name, reason in refused.items():
        console.print(f"[red]left out[/] {escape(name)}: {escape(reason)}", highlight=False, soft_wrap=True)


def print_damaged(console: Console, damaged: Mapping[str, Sequence[str]]) -> None:
    """Prints recordings that were used all the same, and the first thing that is wrong with each."""
    for name, damage in damaged.items():
        more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
        console.print(f"[yellow]damaged[/] {escape(name)}: {escape(damage[0])}{more}", highlight=False, soft_wrap=True)
