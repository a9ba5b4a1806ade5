"""Recordings on disk, cached: the same episodes as `read_episodes` gives, and `ki-ros cache` on the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_bags import CAMERAS, MadeBag, joints_at, ns, picture

from ki_ros.data.bag import encode
from ki_ros.data.bag_chunks import BagChunks
from ki_ros.data.cache import Cache, CacheError
from ki_ros.data.cache.bags import bag_origins, bag_settings
from ki_ros.data.cache.build import build_cache
from ki_ros.data.cache.part import Storage
from ki_ros.data.episodes import read_episodes
from ki_ros.resize import resize_with_pad
from ki_ros.rig import ActionSpace, CameraRole
from ki_ros.share import find_share

RAW = Storage("raw", settings=bag_settings())


def record(directory: Path, name: str, *, seconds: float = 2.0, outcome: int = 1, text: str = "reach the cup") -> Path:
    bag = MadeBag().rig(seconds, joint_hz=100.0)
    for t in np.arange(0.1, seconds, 0.01):
        bag.command(t, joints_at(t + 0.1), 0.1 + 0.1 * t)
    bag.start(0.15, name, text)
    bag.stop(seconds - 0.1, name, outcome)
    return bag.write(directory / name)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Three bags, one in a directory of its own, one of a failure."""
    directory = tmp_path_factory.mktemp("bags")
    record(directory, "one")
    record(directory / "monday", "two", outcome=2)
    record(directory, "three", seconds=2.5, text="push the cup")
    return directory


@pytest.fixture
def bags(recorded, tmp_path):
    """A copy of them to change."""
    return shutil.copytree(recorded, tmp_path / "bags")


def run(*arguments: object, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ki_ros.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_cache_holds_what_the_bags_do(recorded, tmp_path):
    report = build_cache(bag_origins(recorded), tmp_path, RAW, workers=2)
    assert set(report.added) == {"one", "monday/two", "three"}
    cache = Cache(tmp_path)
    found = {episode.id: episode for episode in cache.episodes}
    assert set(found) == {"one", "two", "three"}
    for path in (recorded / "one", recorded / "monday" / "two", recorded / "three"):
        (given,) = read_episodes(path)
        there = found[given.id]
        assert (there.instruction, there.outcome, there.robot) == (given.instruction, given.outcome.value, given.robot)
        assert (there.rate, there.action_source, there.bag) == (given.rate, "joint_command", path)
        rows = slice(there.first, there.first + there.length)
        for name, values in (
            ("stamps", given.stamps_ns),
            ("states", given.states),
            ("targets", given.targets),
            ("segment", given.segment),
            ("idle", given.idle),
        ):
            np.testing.assert_array_equal(getattr(cache, name)[rows], values)
        for step in range(len(given)):
            for role, view in given.views(step).items():
                np.testing.assert_array_equal(cache.view(there.first + step, role), view)


def test_a_sample_holds_what_the_next_steps_are_commanded(recorded, tmp_path):
    """By the recording's own arithmetic: 0.1 s ahead of the joints, at the end of each step."""
    build_cache(bag_origins(recorded), tmp_path, RAW)
    source = BagChunks(Cache(tmp_path), horizon=5, action_space=ActionSpace.JOINT_POSITION)
    cache = source.cache
    first = cache.episodes[source.episodes[0]].first
    t = (cache.stamps[first] - 1_700_000_000 * 10**9) / 1e9
    for row, action in enumerate(source[0].actions):
        end = t + (row + 1) / 15
        # The newest command is at most 10 ms old at the end of the step, and joints move by at most 0.2 rad/s.
        np.testing.assert_allclose(action[:7], joints_at(end + 0.1), rtol=0, atol=0.0025)
        assert action[7] == pytest.approx((0.1 + 0.1 * end) / 0.8, abs=0.003)


@pytest.mark.parametrize("seen", [True, False])
def test_holding_is_taught_where_an_episode_was_seen_until_its_end(tmp_path, seen):
    """A camera fails in mid-motion; the operator notices two seconds later, and the arm has gone on."""
    made = MadeBag().rig(4.0)
    made.start(0.2, "one", "reach the cup")
    made.stop(3.5, "one")
    for t in np.arange(0.1, 4.0, 0.01):
        made.command(t, joints_at(t + 0.1), 0.4)
    if not seen:
        made.messages = [m for m in made.messages if m[0] != CAMERAS["exterior_1"] or m[2] < ns(1.5)]
    made.write(tmp_path / "bags" / "one")
    build_cache(bag_origins(tmp_path / "bags"), tmp_path / "cache", RAW)
    source = BagChunks(
        Cache(tmp_path / "cache"), action_space=ActionSpace.JOINT_VELOCITY, drop_idle=False, hold_after_end=True
    )
    for left in (1, 3, 14):
        mask = source[len(source) - left].action_mask
        assert mask.tolist() == [True] * (15 if seen else left) + [False] * (0 if seen else 15 - left)


def test_changes_of_bags_are_noticed(bags, tmp_path):
    cache = tmp_path / "cache"
    build_cache(bag_origins(bags), cache, RAW)
    shutil.rmtree(bags / "three")
    record(bags, "four")
    shutil.rmtree(bags / "one")
    record(bags, "one", seconds=2.2)
    report = build_cache(bag_origins(bags), cache, RAW)
    assert (set(report.added), report.kept, report.removed) == ({"four", "one"}, ("monday/two",), ("three",))
    assert {episode.id for episode in Cache(cache).episodes} == {"one", "two", "four"}


def test_a_moved_set_of_bags_is_not_read_again(bags, tmp_path):
    cache = tmp_path / "cache"
    build_cache(bag_origins(bags), cache, RAW)
    moved = bags.rename(tmp_path / "elsewhere")
    assert build_cache(bag_origins(moved), cache, RAW).added == ()


def test_other_streams_are_another_cache(recorded, tmp_path):
    parameters = find_share("config") / "droid_sim.yaml"
    assert bag_settings(parameters)["streams"]["cameras"]
    build_cache(bag_origins(recorded), tmp_path, RAW)
    with pytest.raises(CacheError, match="holds a cache with settings"):
        build_cache(bag_origins(recorded, parameters), tmp_path, Storage("raw", settings=bag_settings(parameters)))


def test_steps_without_a_picture_are_left_out_and_the_others_cached(tmp_path):
    """Only decoding finds that the pictures of a twelfth of a second are damaged."""
    made = MadeBag().rig(2.0)
    made.start(0.0, "torn", "reach the cup")
    made.stop(1.9, "torn")
    made.messages = [m for m in made.messages if m[0] != CAMERAS["wrist"]]
    _, png = cv2.imencode(".png", picture(7))
    bad = bytearray(png.tobytes())
    bad[20:30] = bytes(10)
    for t in np.arange(0, 2, 1 / 30):
        raw = encode.compressed_image(ns(t), "wrist", "png", bytes(bad) if 1.0 < t < 1.1 else png.tobytes())
        made.put(CAMERAS["wrist"] + "/compressed", "compressed", t, raw)
    made.write(tmp_path / "bags" / "torn")
    record(tmp_path / "bags", "whole")
    report = build_cache(bag_origins(tmp_path / "bags"), tmp_path / "cache", RAW)
    assert (report.added, report.refused) == (("torn", "whole"), {})
    cache = Cache(tmp_path / "cache")
    torn = cache.episodes[0]
    rows = slice(torn.first, torn.first + torn.length)
    at = (cache.stamps[rows] - ns(0)) / 1e9
    assert not ((at > 1.01) & (at < 1.09)).any()
    assert at[0] < 0.2
    assert at[-1] > 1.7
    assert (np.diff(cache.segment[rows]) == (np.diff(at) > 0.1)).all()
    assert cache.segment[rows].max() == 1
    for step in range(rows.start, rows.stop):
        np.testing.assert_array_equal(cache.view(step, CameraRole.WRIST), resize_with_pad(picture(7)[..., ::-1], 224))


def test_where_there_is_no_bag_it_is_said(tmp_path):
    with pytest.raises(CacheError, match=r"has no bag: no directory with \.mcap or \.db3"):
        bag_origins(tmp_path)
    with pytest.raises(CacheError, match="is no directory"):
        bag_origins(tmp_path / "nowhere")


def test_command_reports_what_is_in_the_cache_and_what_is_not(bags, tmp_path):
    (file,) = (bags / "three").glob("*.mcap")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (bags / "broken").mkdir()
    (bags / "broken" / "broken_0.mcap").write_bytes(b"nothing of use")
    said = run("cache", bags, tmp_path / "cache", "--json", tmp_path / "cache.json")
    figures = json.loads((tmp_path / "cache.json").read_text())
    assert figures["episodes"] == 3
    assert list(figures["refused"]) == ["broken"]
    assert re.search(r"left out broken: \S+", said)
    assert [name.split()[0] for name in figures["damaged"]] == ["three"]
    assert "damaged three of" in said
    tasks = {(task["instruction"], task["outcome"]): task["episodes"] for task in figures["tasks"]}
    assert tasks == {("reach the cup", "success"): 1, ("reach the cup", "failure"): 1, ("push the cup", "unknown"): 1}
    assert figures["steps"] == len(Cache(tmp_path / "cache"))
    again = run("cache", bags, tmp_path / "cache")
    assert "0 read, 3 kept, 0 removed, 1 left out" in again
    assert "encoding" in run("cache", bags, tmp_path / "cache", "--encoding", "raw", status=1)
