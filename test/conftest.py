"""What all tests share: the data, how much is tried, and what keeps them steady on a busy machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported, here and in every process that a test starts. The models of the tests are too small for a
# second thread to help, and threads that wait for one another lose all their time on a machine that is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's job in the background ignores SIGINT, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

FULL = os.environ.get("KI_ROS_TEST_FULL", "") not in ("", "0")

# How long an example takes says nothing where other processes want the processors too.
settings.register_profile(
    "ki_ros",
    deadline=None,
    max_examples=500 if FULL else 50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ki_ros")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of nodes and of the graph run in real time, which other tests beside them would disturb."""
    for item in items:
        if item.path.parent.name in ("graph", "nodes"):
            item.add_marker("graph")


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether everything is to be tried that a run leaves out for its time: KI_ROS_TEST_FULL is set to 1."""
    return FULL


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The directory of real recordings and recorded numbers; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("KI_ROS_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no test data at {path}; set KI_ROS_TEST_DATA")
    return path
