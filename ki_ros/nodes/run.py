"""The main function of every node: start, spin until SIGINT or SIGTERM, stop cleanly."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from ki_ros.variables import die_with_parent

N = TypeVar("N", bound=Node)

STARTUP_FAILED = 2
"""Exit status of a node that could not start; the error is on standard error."""

ENDING_SECONDS = 1.0
"""How long a node may go on after SIGINT or SIGTERM to come to its end; less than what starts nodes waits for."""

FAILED_SECONDS = 0.5
"""The same after a callback that failed: what else it has broken is not known."""


def uses_sim_time(node: Node) -> bool:
    """Whether the node takes its time from /clock."""
    return node.get_parameter("use_sim_time").value


def pacing_clock(node: Node) -> Clock:
    """The clock for a node's periodic work: simulated time in simulation, else the steady clock.

    System time may jump when it is synchronised; a timer on it would then pause or race.
    """
    return node.get_clock() if uses_sim_time(node) else Clock(clock_type=ClockType.STEADY_TIME)


class _Signals:
    """SIGINT and SIGTERM while a node spins: noted, so that it ends between two callbacks and with ROS still there.

    rclpy's own handlers shut ROS down at once: what a node has to say at its end could not be sent any more.
    """

    def __init__(self, node: Node) -> None:
        self.came = False
        self._waker = node.create_guard_condition(_nothing)
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        # The interpreter writes to it when a signal comes, even while the main thread waits for messages.
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _nothing)
        threading.Thread(target=self._note, name="signals", daemon=True).start()

    def _note(self) -> None:
        while os.read(self._read, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        self.came = True
        self._waker.trigger()


def run(create: Callable[[], N], ended: Callable[[N], bool] | None = None) -> None:
    """Creates the node and spins it. Does not return: ends the process with 0, or `STARTUP_FAILED` with a message.

    A node with threads of its own stops them in `destroy_node`, and says there what others must know of its end: ROS
    still works then.

    A callback that raises ends the process too, with its traceback and 1.

    Args:
        create: the node.
        ended: asked again and again once a signal has come or a callback has raised, whether the node may be destroyed;
            until then it spins on, `ENDING_SECONDS` or `FAILED_SECONDS` at most, and not beyond a callback that raises
            then. None: at once.
    """
    die_with_parent()
    try:
        rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        # Arguments, or a parameter file, that rcl cannot read.
        print(f"ki_ros: {error}", file=sys.stderr)
        sys.exit(STARTUP_FAILED)
    # Until the node spins, a signal is an exception here.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    node = None
    try:
        node = create()
        spinner = SingleThreadedExecutor()
        spinner.add_node(node)
        signals = _Signals(node)
        # What is there now stays. Looking through all of it for garbage would stop the node for tens of milliseconds.
        gc.collect()
        gc.freeze()
        try:
            while not signals.came:
                spinner.spin_once()
        except Exception:
            if rclpy.ok():
                _finish(node, spinner, ended, FAILED_SECONDS)
            raise
        _finish(node, spinner, ended, ENDING_SECONDS)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception as error:
        # Once something has shut ROS down, anything may fail for want of it, and means nothing.
        if rclpy.ok():
            if node is not None or not isinstance(error, (ValueError, OSError, ImportError, RuntimeError)):
                raise
            rclpy.logging.get_logger("ki_ros").fatal(f"{type(error).__name__}: {error}")
            rclpy.try_shutdown()
            sys.exit(STARTUP_FAILED)
    finally:
        # Already stopping: a second SIGINT (a launch adds its own to the terminal's) must not interrupt that.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    sys.exit(0)


def _finish(node: N, spinner: SingleThreadedExecutor, ended: Callable[[N], bool] | None, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while ended is not None and not ended(node) and time.monotonic() < deadline:
        spinner.spin_once(timeout_sec=max(0.0, deadline - time.monotonic()))


def _nothing(*_: object) -> None:
    pass
