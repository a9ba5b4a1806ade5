"""One command at a time in a directory that it writes."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class InUseError(ValueError):
    """An output that another process is at; the message names it."""


@contextmanager
def in_use(output: Path, by: str) -> Iterator[None]:
    """Keeps others out of a directory while the context lasts. However this process ends, the directory is free then.

    Args:
        output: the directory; made if it is missing.
        by: what is done there, for the message.

    Raises:
        InUseError: somebody else is there.
        OSError: the directory cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / _LOCK_FILE, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"output {output} is in use by another {by}; wait for it, or give another output"
            ) from None
        except OSError as error:
            # A file system without locks keeps nobody out. What is done there is done as well without.
            if error.errno not in _NO_LOCKS:
                raise
        yield


def is_in_use(output: Path) -> bool:
    """Whether somebody is in a directory, as far as can be said: another may be a moment later."""
    try:
        with in_use(output, ""):
            return False
    except InUseError:
        return True
