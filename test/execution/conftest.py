"""Fixtures of the tests of the execution."""

import sys

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much was searched, where all of it was in this process."""
    module = sys.modules.get("test_anything_arrives")
    if module is not None and module.SEARCHED:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(module.SEARCHED.items()))
        terminalreporter.write_line(f"anything arrives: {counts}, each stream checked")
