"""The main function of every node: start, spin until SIGINT or SIGTERM, stop cleanly."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions, install_signal_handlers

from ki_ros.variables import die_with_parent

STARTUP_FAILED = 2
"""Exit status of a node that could not start; the error is on standard error."""


def uses_sim_time(node: Node) -> bool:
    """Whether the node takes its time from /clock."""
    return node.get_parameter("use_sim_time").value


def pacing_clock(node: Node) -> Clock:
    """The clock for a node's periodic work: simulated time in simulation, else the steady clock.

    System time may jump when it is synchronised; a timer on it would then pause or race.
    """
    return node.get_clock() if uses_sim_time(node) else Clock(clock_type=ClockType.STEADY_TIME)


def run(create: Callable[[], Node]) -> None:
    """Creates the node and spins it. Does not return: ends the process with 0, or `STARTUP_FAILED` with a message.

    A node with threads of its own stops them in `destroy_node`.
    """
    die_with_parent()
    try:
        rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        # Arguments, or a parameter file, that rcl cannot read.
        print(f"ki_ros: {error}", file=sys.stderr)
        sys.exit(STARTUP_FAILED)
    # ROS is not shut down under a node that is being made, which its other threads or rclpy itself would not survive:
    # until it spins, a signal is an exception here.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    node = None
    try:
        node = create()
        spinner = SingleThreadedExecutor()
        spinner.add_node(node)
        install_signal_handlers(SignalHandlerOptions.ALL)
        spinner.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception as error:
        # Once a signal has shut ROS down, anything may fail for want of it, and means nothing.
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
