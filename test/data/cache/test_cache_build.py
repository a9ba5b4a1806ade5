"""A cache is brought up to date with its origins, whatever ended the build before."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from cached_episodes import MadeOrigin, made

from ki_ros.data.cache import Cache, CacheError, CacheWriter
from ki_ros.data.cache.build import BuildProgress, build_cache
from ki_ros.data.cache.part import Storage

RAW = Storage("raw")

# A build by two processes of which one never gets through the last origin. Says what is done.
BUILD = """
import sys
from cached_episodes import MadeOrigin
from ki_ros.data.cache.build import build_cache
from ki_ros.data.cache.part import Storage

if __name__ == "__main__":
    origins = [MadeOrigin("a"), MadeOrigin("b"), MadeOrigin("c"), MadeOrigin("d", gate=sys.argv[2])]
    try:
        build_cache(origins, sys.argv[1], Storage("raw"), workers=2, progress=lambda p: print(p.done, flush=True))
    except KeyboardInterrupt:
        sys.exit(7)
"""


def origins(names, **changes):
    return [MadeOrigin(name, **changes) for name in names]


def ids(directory):
    return [episode.id.removeprefix("id-") for episode in Cache(directory).episodes]


def contents(directory):
    """Every byte that a reader may see, by file."""
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name not in (".lock", "part.json") and file.suffix != ".npz"
    }


def test_several_processes_make_the_same_cache_as_one(tmp_path):
    given = origins("abcdefg")
    reports = [build_cache(given, tmp_path / str(workers), RAW, workers=workers) for workers in (1, 3)]
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert reports[0].steps == reports[1].steps == 7 * 6
    assert set(reports[1].added) == set("abcdefg")


def test_progress_counts_every_origin_and_step(tmp_path):
    seen: list[BuildProgress] = []
    build_cache(origins("abc"), tmp_path, RAW, progress=seen.append)
    assert [(p.done, p.total, p.steps, p.name) for p in seen] == [
        (0, 3, 0, ""),
        (1, 3, 6, "a"),
        (2, 3, 12, "b"),
        (3, 3, 18, "c"),
    ]


def test_episodes_are_in_the_order_of_names_whenever_they_came(tmp_path):
    build_cache(origins("ca"), tmp_path, RAW)
    build_cache(origins("cab"), tmp_path, RAW)
    assert ids(tmp_path) == ["a", "b", "c"]


def test_added_are_read_changed_are_read_again_and_removed_are_named(tmp_path):
    build_cache(origins("abcd"), tmp_path, RAW)
    before = Cache(tmp_path)
    changed = MadeOrigin("b", fingerprint="2")
    report = build_cache([*origins("ad"), changed, MadeOrigin("e")], tmp_path, RAW)
    assert (set(report.added), set(report.kept), report.removed) == ({"b", "e"}, {"a", "d"}, ("c",))
    assert ids(tmp_path) == ["a", "b", "d", "e"]
    after = Cache(tmp_path)
    np.testing.assert_array_equal(after.states[6:12], next(iter(changed.episodes())).states)
    assert after.episodes[0].digest == before.episodes[0].digest
    # Nothing of what is in the cache no more is left on the disk.
    assert len(list((tmp_path / "parts").iterdir())) == 4
    assert len(list(tmp_path.glob("index-*"))) == 1


def test_what_is_up_to_date_is_not_written_again(tmp_path):
    build_cache(origins("ab"), tmp_path, RAW)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert build_cache(origins("ab"), tmp_path, RAW).kept == ("a", "b")
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("workers", [1, 2])
def test_an_origin_that_cannot_be_read_is_left_out_and_named(tmp_path, workers):
    given = [*origins("ac"), MadeOrigin("b", fault="b.mcap is no bag")]
    report = build_cache(given, tmp_path, RAW, workers=workers)
    assert report.refused == {"b": "b.mcap is no bag"}
    assert ids(tmp_path) == ["a", "c"]
    assert Cache(tmp_path).refused == report.refused


def test_what_was_refused_is_read_again_only_on_request_or_when_it_has_changed(tmp_path):
    bad = MadeOrigin("b", fault="no bag")
    build_cache([MadeOrigin("a"), bad], tmp_path, RAW)
    mended = MadeOrigin("b")
    assert build_cache([MadeOrigin("a"), mended], tmp_path, RAW, retry_refused=False).refused == {"b": "no bag"}
    assert build_cache([MadeOrigin("a"), mended], tmp_path, RAW).added == ("b",)
    build_cache([MadeOrigin("a"), bad], tmp_path, RAW)
    changed = MadeOrigin("b", fingerprint="2")
    assert build_cache([MadeOrigin("a"), changed], tmp_path, RAW, retry_refused=False).added == ("b",)
    assert Cache(tmp_path).refused == {}


def test_an_episode_that_cannot_be_stored_leaves_no_part(tmp_path):
    with CacheWriter(tmp_path, RAW) as writer:
        broken = made("bad", 5)
        broken.views = lambda step: made("bad", 5).views(step) if step < 3 else {}
        with pytest.raises(CacheError, match=r"'bad' of made: step 3 has views none, step 0 has exterior_1, wrist"):
            writer.add("bad", "1", [made("good", 5), broken])
        assert not writer.has("bad", "1")
    assert list((tmp_path / "parts").iterdir()) == []


def test_when_nothing_can_be_read_the_reason_is_given(tmp_path):
    with pytest.raises(CacheError, match=r"none of 1 origins can be cached; the first refused is a: torn"):
        build_cache([MadeOrigin("a", fault="torn")], tmp_path, RAW)


def test_two_origins_of_one_name_are_refused(tmp_path):
    with pytest.raises(CacheError, match="two origins have the name 'a'"):
        build_cache([MadeOrigin("a"), MadeOrigin("a", steps=3)], tmp_path, RAW)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (Storage("jpeg"), "holds a cache with encoding 'raw', but 'jpeg' was asked for"),
        (
            Storage("raw", settings={"streams": "x"}),
            "holds a cache with settings {}, but {'streams': 'x'} was asked for",
        ),
    ],
)
def test_another_storage_is_refused_and_nothing_is_touched(tmp_path, storage, message):
    build_cache(origins("a"), tmp_path, RAW)
    before = contents(tmp_path)
    with pytest.raises(CacheError, match=message):
        build_cache(origins("ab"), tmp_path, storage)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": np.zeros((6, 7))}, r"states has shape \(6, 7\); give \(6, 8\)"),
        ({"targets": np.full((6, 8), np.nan)}, "targets at step 0 is .*nan.*give finite values"),
        ({"idle": np.zeros(5, bool)}, r"idle has shape \(5,\); give \(6,\)"),
        ({"stamps_ns": np.zeros(6, np.int64)}, "stamps_ns do not increase"),
        ({"segment": np.array([1, 1, 0, 0, 2, 2])}, "segment decreases"),
        ({"outcome": "good"}, "outcome is 'good'; use one of success, failure, unknown"),
        ({"stamps_ns": np.zeros(0, np.int64)}, "has no steps; leave it out"),
    ],
)
def test_an_episode_with_wrong_arrays_is_refused(tmp_path, changes, message):
    with CacheWriter(tmp_path, RAW) as writer, pytest.raises(CacheError, match=rf"'odd' of made.*{message}"):
        writer.add("odd", "1", [made("odd", 6, **changes)])


@pytest.fixture
def gated(tmp_path):
    """A build in its own process that is held up at its last origin, the pipe that it and its workers hold open."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    here = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[2])]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "cache"), str(gate)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with open(gate) as pipe:
        assert pipe.readline() == "reading\n"
        # The other worker gets through with the rest.
        for line in process.stdout:
            if line == "3\n":
                break
        yield process, pipe, tmp_path / "cache"
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_build_that_was_killed_goes_on_and_leaves_no_process(gated, sent):
    process, pipe, directory = gated
    with pytest.raises(CacheError, match="holds no complete cache"):
        Cache(directory)
    process.send_signal(sent)
    assert process.wait() == -sent
    assert pipe.read() == ""  # all who had the pipe open are gone
    report = build_cache(origins("abcd"), directory, RAW)
    assert (report.kept, report.added) == (("a", "b", "c"), ("d",))
    build_cache(origins("abcd"), directory.parent / "undisturbed", RAW)
    assert contents(directory) == contents(directory.parent / "undisturbed")


def test_ctrl_c_ends_a_build_and_its_workers(gated):
    process, pipe, directory = gated
    process.send_signal(signal.SIGINT)
    assert process.wait() == 7
    assert pipe.read() == ""
    assert build_cache(origins("abcd"), directory, RAW).kept == ("a", "b", "c")


def test_a_part_that_was_being_written_is_swept_away(tmp_path):
    build_cache(origins("a"), tmp_path, RAW)
    (part,) = (tmp_path / "parts").iterdir()
    shutil.copytree(part, tmp_path / "parts" / f".4711.{part.name}")
    (tmp_path / ".index.4711").mkdir()
    build_cache(origins("a"), tmp_path, RAW)
    assert list((tmp_path / "parts").iterdir()) == [part]
    assert not (tmp_path / ".index.4711").exists()


@pytest.mark.parametrize("file", ["part.json", "0.npz", "0.pictures"])
def test_a_part_that_lacks_a_file_is_made_anew(tmp_path, file):
    build_cache(origins("ab"), tmp_path, RAW)
    whole = contents(tmp_path)
    (part,) = (tmp_path / "parts").glob("b-*")
    (part / file).unlink()
    assert build_cache(origins("ab"), tmp_path, RAW).added == ("b",)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("file", ["part.json", "0.pictures"])
def test_a_part_that_was_cut_off_is_made_anew(tmp_path, file):
    build_cache(origins("ab"), tmp_path, RAW)
    whole = contents(tmp_path)
    (part,) = (tmp_path / "parts").glob("b-*")
    (part / file).write_bytes((part / file).read_bytes()[:-5])
    assert build_cache(origins("ab"), tmp_path, RAW).added == ("b",)
    assert contents(tmp_path) == whole


def test_builders_of_one_cache_take_turns(tmp_path):
    """The second one waits for the first, and finds all done."""
    waits = threading.Event()
    reports = []
    with CacheWriter(tmp_path, RAW) as writer:
        other = threading.Thread(
            target=lambda: reports.append(build_cache(origins("ab"), tmp_path, RAW, waiting=waits.set))
        )
        other.start()
        assert waits.wait(20)
        for origin in origins("ab"):
            writer.add(origin.name, origin.fingerprint, origin.episodes())
        writer.commit({"a": "1", "b": "1"})
        assert not reports
    other.join(20)
    assert reports[0].kept == ("a", "b")
