"""When recording warns of a full disk, and when it stops."""

from __future__ import annotations

import shutil

import pytest

from ki_ros.data.recorder.disk import GIGABYTE, DiskLevel, DiskWatch


def watch(directory, free_gb: float, **limits) -> DiskWatch:
    limits = {"warn_bytes": 10 * GIGABYTE, "warn_seconds": 600.0, "stop_bytes": 2 * GIGABYTE, **limits}
    return DiskWatch(directory, free_bytes=lambda _: round(free_gb * GIGABYTE), **limits)


@pytest.mark.parametrize(
    ("free_gb", "megabytes_per_second", "level"),
    [
        (100.0, 0.0, DiskLevel.OK),
        (100.0, 50.0, DiskLevel.OK),
        (31.9, 50.0, DiskLevel.WARN),  # 2 GB + 600 s of 50 MB/s are 32 GB
        (32.1, 50.0, DiskLevel.OK),
        (9.9, 0.0, DiskLevel.WARN),
        (2.1, 0.0, DiskLevel.WARN),
        (1.9, 0.0, DiskLevel.STOP),
        (0.0, 50.0, DiskLevel.STOP),
    ],
)
def test_levels(tmp_path, free_gb, megabytes_per_second, level):
    assert watch(tmp_path, free_gb).state(megabytes_per_second * 1e6).level is level


def test_the_time_that_is_left_counts_to_the_stop(tmp_path):
    assert watch(tmp_path, 12.0).state(100e6).seconds_left == pytest.approx(100.0)
    assert watch(tmp_path, 12.0).state(0.0).seconds_left == float("inf")
    assert watch(tmp_path, 1.0).state(100e6).seconds_left == 0.0


def test_messages_name_figures_and_remedy(tmp_path):
    early = watch(tmp_path, 12.0).state(100e6).message
    assert "12.0 GB free" in early
    assert "2 minutes at 100 MB/s" in early
    assert "make room" in early
    late = watch(tmp_path, 1.0).state(0.0).message
    assert "stop_free_gb" in late
    assert "choose another output" in late


def test_a_directory_that_does_not_exist_yet_is_on_its_parents_disk(tmp_path):
    asked = []

    def free(path):
        asked.append(path)
        return 100 * GIGABYTE

    watch = DiskWatch(tmp_path / "a" / "b", warn_bytes=1, warn_seconds=1, stop_bytes=1, free_bytes=free)
    watch.state(0.0)
    assert asked == [tmp_path]


def test_the_real_disk_is_asked(tmp_path):
    state = DiskWatch(tmp_path, warn_bytes=0, warn_seconds=0, stop_bytes=0).state(0.0)
    assert state.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert state.level is DiskLevel.OK
