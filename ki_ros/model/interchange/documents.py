"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ki_ros.model.interchange.errors import InterchangeError


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InterchangeError, which names the file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InterchangeError(f"{file}: cannot be read as JSON ({error}); copy the checkpoint again") from error
    if not isinstance(values, dict):
        raise InterchangeError(f"{file} is {str(values)[:60]!r}; give a JSON object")
    return values


def integer(file: Path, values: dict[str, Any], key: str) -> int | None:
    """A positive integer, or None where the object has no such key."""
    value = values.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InterchangeError(f"{file}: {key} is {value!r}; give a positive integer")
    return value


def encode(values: dict[str, Any]) -> bytes:
    """Indented JSON; floats keep every bit."""
    return (json.dumps(values, indent=2) + "\n").encode()
