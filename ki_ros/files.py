"""Writing files and directories so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a temporary file beside `path`, then puts it in place."""
    temporary = _beside(path)
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path, name: str) -> None:
    """Refuses a file that cannot be written, before the work that it is to hold the outcome of.

    Args:
        path: of the file.
        name: of the option that gives it.

    Raises:
        ValueError: its directory does not exist or nothing can be written there, or the path is of something else.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{name} is {path}, a directory; give a file")
        if path.exists() and not path.is_file():
            raise ValueError(f"{name} is {path}, which is no file that can be replaced; give another path")
        if not path.parent.exists():
            raise ValueError(f"{name} is {path}; its directory does not exist: make it, or give another path")
        # Rights alone do not tell: a file system may be read-only, a name too long.
        temporary = _beside(path)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise ValueError(f"{name} is {path}, which cannot be written ({error.strerror}); give another path") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{os.getpid()}.{path.name}")


def sync(path: Path) -> None:
    """Has a file or directory on the disk before it returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """`sync` of a directory and of all that is below it."""
    for folder, _, files in os.walk(directory):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    write_atomically(path, lambda file: file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


@contextmanager
def assembled(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new directory beside `output` that takes its place when the context ends well, and vanishes otherwise.

    With `overwrite`, an older `output` is moved aside before and removed after. A process that is killed leaves at most
    hidden directories beside it (`.NAME.PID.partial`, `.NAME.PID.replaced`), never half an output.

    Raises:
        OSError: of the disk, or an `output` that is not empty at the end and is not to be overwritten.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (output.with_name(f".{output.name}.{os.getpid()}.{kind}") for kind in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        sync_tree(partial)
        if overwrite and output.exists() and any(output.iterdir()):
            _replace(partial, output, replaced)
        else:
            partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(output.parent)


def _replace(partial: Path, output: Path, replaced: Path) -> None:
    output.rename(replaced)
    try:
        partial.rename(output)
    except BaseException:
        if not output.exists():
            replaced.rename(output)
        raise
    shutil.rmtree(replaced)
