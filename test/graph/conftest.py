"""The graph as separate processes over Fast DDS, for the tests of this directory."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run scripts/setup")

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from waiting import FAULTS, FIGURES

# For the checker of command streams, which is the same for every stream.
sys.path.append(str(Path(__file__).resolve().parents[1] / "execution"))


@pytest.fixture(scope="module")
def domain() -> Iterator[int]:
    """A ROS domain of this module's own, on this machine only."""
    number = random.SystemRandom().randrange(1, 102)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(number))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield number


class Spinner:
    """Spins nodes of this process in a thread."""

    def __init__(self, domain: int) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._thread = threading.Thread(target=self._spin)

    def start(self, node) -> None:
        self._executor.add_node(node)
        self._thread.start()

    def stop(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self.context.shutdown()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except (ExternalShutdownException, ShutdownException):
            return
        except Exception:
            # What fails for want of a context that has been shut down is the end of the test, not its failure.
            if self.context.ok():
                raise


@pytest.fixture(scope="module")
def spinner(domain):
    spinner = Spinner(domain)
    yield spinner
    spinner.stop()


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.0f} ms"


def pytest_terminal_summary(terminalreporter) -> None:
    for line in FIGURES:
        terminalreporter.write_line(line)
    if not FAULTS:
        return
    terminalreporter.section("faults: how soon the arm is held and at rest, why, and what brings it back")
    for row in FAULTS:
        times = " ".join(f"{_milliseconds(row[key]):>7}" for key in ("hold_s", "rest_s"))
        terminalreporter.write_line(f"{row['fault']:<42} {times}  {row['reason']:<20} back: {row['recovery']}")
    if file := os.environ.get("KI_ROS_FAULTS_JSON"):
        from ki_ros.files import write_json

        write_json(Path(file), FAULTS)
