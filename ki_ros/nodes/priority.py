"""The scheduling priority of a node's process."""

from __future__ import annotations

import os
from pathlib import Path

from rclpy.node import Node


def make_real_time(node: Node, priority: int) -> bool:
    """Puts all threads of this process before those of every usual process (SCHED_FIFO); whether it may.

    Those of the middleware too, which the joint states come through. Child processes do not inherit it. Where the
    operating system refuses, the node goes on as before, and says so.

    Args:
        node: that says so.
        priority: 1 to 99, more is more urgent.
    """
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))
    except (OSError, AttributeError) as error:
        node.get_logger().warning(
            f"realtime_priority {priority} is refused ({error}), and other processes may delay commands: allow it "
            f"(rtprio {priority} for this user in /etc/security/limits.conf, then log in again; in a container "
            f"--cap-add=sys_nice --ulimit rtprio={priority}), or set it to 0"
        )
        return False
    return True
