"""The idle share of the processors."""

from __future__ import annotations

import pytest

from ki_ros.sim.machine import IdleShare


def write(file, *, user: int, idle: int, iowait: int = 0, steal: int = 0) -> None:
    file.write_text(f"cpu  {user} 0 0 {idle} {iowait} 0 0 {steal} 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")


@pytest.fixture
def stat(tmp_path):
    file = tmp_path / "stat"
    write(file, user=1000, idle=5000)
    return file


def test_the_share_is_that_since_the_last_sample(stat):
    idle = IdleShare(stat)
    write(stat, user=1075, idle=5020, iowait=5)
    assert idle.sample() == pytest.approx(0.25)
    write(stat, user=1175, idle=5020, iowait=5, steal=100)
    assert idle.sample() == 0.0


def test_too_few_ticks_say_nothing_and_are_not_lost(stat):
    idle = IdleShare(stat)
    write(stat, user=1005, idle=5005)
    assert idle.sample() is None
    write(stat, user=1020, idle=5020)
    assert idle.sample() == pytest.approx(0.5)


def test_where_the_kernel_does_not_say_nothing_is_known(tmp_path):
    idle = IdleShare(tmp_path / "nothing")
    assert idle.sample() is None


def test_this_machine():
    idle = IdleShare()
    for _ in range(10_000_000):
        share = idle.sample()
        if share is not None:
            break
    assert 0.0 <= share <= 1.0
