"""What a conversion asks of the directory that it writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from ki_ros.model.interchange.errors import InterchangeError


def require_apart(source: Path, output: Path) -> None:
    """Raises InterchangeError unless neither directory is inside the other."""
    one, other = source.resolve(), output.resolve()
    if one == other or one.is_relative_to(other) or other.is_relative_to(one):
        raise InterchangeError(
            f"output is {output}, which overlaps the source {source}; give a directory apart from it"
        )


def require_free(output: Path, *, is_ours: Callable[[Path], bool], known: tuple[str, ...], overwrite: bool) -> None:
    """Refuses to write over what a conversion has not written.

    Args:
        output: absent, empty, or, with `overwrite`, a directory that a conversion wrote.
        is_ours: whether a directory is what a conversion of this kind writes.
        known: patterns of the entries that conversions write; anything else would be lost.
        overwrite: whether it may be replaced.

    Raises:
        InterchangeError: it may not; the message says why and what to do.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InterchangeError(f"output is {output}, which is no directory; give another path")
    entries = sorted(entry.name for entry in output.iterdir()) if output.is_dir() else []
    if not entries:
        return
    if not overwrite:
        raise InterchangeError(f"output is {output}, which is not empty; give another path, or overwrite")
    others = [name for name in entries if not any(fnmatch(name, pattern) for pattern in known)]
    if others or not is_ours(output):
        raise InterchangeError(
            f"output is {output}, which holds what no conversion wrote ({', '.join(others or entries)}); "
            "give another path, or remove it yourself"
        )


def require_space(output: Path, size: int) -> None:
    """Raises InterchangeError when the disk has less than `size` bytes left."""
    parent = next(parent for parent in output.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise InterchangeError(
            f"{parent} has {free / 1e9:.2f} GB left, the checkpoint takes {size / 1e9:.2f} GB; free some, or give "
            "another path"
        )
