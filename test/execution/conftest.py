"""Fixtures of the tests of the execution."""

import pytest
from execution_bench import Bench


@pytest.fixture
def bench() -> Bench:
    """An enabled executor with an instruction."""
    return Bench().start()


@pytest.fixture
def make_bench() -> type[Bench]:
    """For other options, or another start."""
    return Bench
