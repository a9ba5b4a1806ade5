"""The error of this package."""

from __future__ import annotations


class InterchangeError(ValueError):
    """A checkpoint that cannot be converted whole; the message names the file, the value and the fix."""
