"""Environment variables of this package's own."""

from __future__ import annotations

import ctypes
import os
import signal

DIE_WITH_PARENT = "KI_ROS_DIE_WITH_PARENT"
"""Set for processes that must end when the one that started them does: to its id, or to 1."""


def die_with_parent() -> None:
    """Where `DIE_WITH_PARENT` is set, has SIGTERM sent to this process when its parent ends, however it does (Linux).

    To the kernel the parent is the thread that started this process.
    """
    parent = os.environ.get(DIE_WITH_PARENT, "")
    if not parent:
        return
    end_with_parent(int(parent) if parent.isdigit() else 0)


def end_with_parent(parent: int) -> None:
    """Has SIGTERM sent to this process when its parent ends, however it does (Linux).

    Args:
        parent: its number, to notice that it has ended already; 0 or 1 where it is not known.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if parent > 1 and os.getppid() != parent:
        # It ended before it could be watched.
        os.kill(os.getpid(), signal.SIGTERM)
