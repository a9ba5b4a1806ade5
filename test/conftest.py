"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The directory of real recordings and recorded numbers; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("KI_ROS_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no test data at {path}; set KI_ROS_TEST_DATA")
    return path
