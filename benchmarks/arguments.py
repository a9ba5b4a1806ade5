"""Arguments that several benchmarks have."""

from __future__ import annotations

import argparse
from pathlib import Path

from ki_ros.files import require_writable


def output_file(text: str) -> Path:
    """A file to write; what could not be written after the work is refused before it."""
    path = Path(text)
    try:
        require_writable(path, "the file")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path
