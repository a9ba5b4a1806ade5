"""A cache gives back what was put in, picture by picture, and refuses what has been damaged."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from cached_episodes import VIEWS, cached, made, picture
from PIL import Image

from ki_ros.data.cache import Cache, CacheError, CacheWriter
from ki_ros.data.cache.part import Storage
from ki_ros.rig import CameraRole

EXTERIOR, WRIST = VIEWS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cache that no test changes, and the episodes in it."""
    episodes = [
        made("first", 5, 1),
        made("second", 7, 2, outcome="failure", robot="fr3", instruction="push it", roles=(WRIST,), ended=False),
        made("third", 4, 3, size=(10, 16), segment=np.array([0, 0, 1, 1]), idle=np.array([True, False, False, True])),
    ]
    return cached(tmp_path_factory.mktemp("cache"), *episodes), episodes


@pytest.fixture
def directory(whole, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(whole[0].directory, tmp_path / "copy")


def test_arrays_are_those_of_the_episodes_one_after_the_other(whole):
    cache, episodes = whole
    for name, given in (("stamps", "stamps_ns"), *((same, same) for same in ("states", "targets", "segment", "idle"))):
        np.testing.assert_array_equal(getattr(cache, name), np.concatenate([getattr(e, given) for e in episodes]))
    assert len(cache) == 16
    assert [(e.first, e.length) for e in cache.episodes] == [(0, 5), (5, 7), (12, 4)]
    for there, episode in zip(cache.episodes, episodes, strict=True):
        for name in ("id", "instruction", "outcome", "robot", "rate", "action_source", "ended", "bag"):
            assert getattr(there, name) == getattr(episode, name)
        assert there.views == dict.fromkeys(episode.roles, episode.size)


def test_raw_pictures_come_back_bit_for_bit_in_any_order(whole):
    cache, episodes = whole
    wanted = [
        (entry.first + step, role, picture(episode.seed, step, role, episode.size))
        for entry, episode in zip(cache.episodes, episodes, strict=True)
        for step in range(entry.length)
        for role in episode.roles
    ]
    for index in np.random.default_rng(0).permutation(len(wanted)):
        step, role, expected = wanted[index]
        np.testing.assert_array_equal(cache.view(step, role), expected)


def test_pictures_are_taken_once_each_in_the_order_of_the_steps(tmp_path):
    episode = made("one", 9)
    cached(tmp_path, episode)
    assert episode.asked == list(range(9))


def test_jpeg_is_close_to_a_real_picture_and_no_channel_is_swapped(tmp_path, test_data):
    file = test_data / "droid_100" / "images" / "episode_000" / "exterior_image_1_left__image_00000010.webp"
    with Image.open(file) as image:
        real = np.asarray(image.convert("RGB"))
    episode = made("real", 2, roles=(EXTERIOR,), size=real.shape[:2])
    episode.views = lambda _: {EXTERIOR: real}
    errors = {}
    for quality in (50, 95):
        cache = cached(tmp_path / str(quality), episode, storage=Storage("jpeg", quality))
        errors[quality] = np.abs(cache.view(1, EXTERIOR).astype(float) - real).mean(axis=(0, 1))
    assert (errors[95] < 4).all()
    assert (errors[50] > errors[95]).all()
    assert np.abs(real[..., 0].astype(float) - real[..., 2]).mean() > 8


def test_what_is_done_to_a_picture_stays_there_and_arrays_cannot_be_written(whole):
    cache, _ = whole
    before = cache.view(0, WRIST).copy()
    cache.view(0, WRIST)[...] = 0
    np.testing.assert_array_equal(cache.view(0, WRIST), before)
    with pytest.raises(ValueError, match="read-only"):
        cache.states[0] = 0


def test_another_process_opens_it_by_itself(whole):
    cache, _ = whole
    assert len(pickle.dumps(cache)) < 1000
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(cache.view, 13, EXTERIOR).result(), cache.view(13, EXTERIOR))


def test_more_episodes_than_files_may_be_open(tmp_path):
    """Each with a file of its own: a process may have 1024 open."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cache = cached(tmp_path, *[made(str(number), 1, number, size=(2, 2)) for number in range(300)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        for step in [*range(300), *range(300)]:
            np.testing.assert_array_equal(cache.view(step, WRIST), picture(step, 0, WRIST, (2, 2)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_pictures_are_not_read_into_memory_at_opening(tmp_path):
    directory = cached(tmp_path, made("large", 40, size=(224, 224))).directory
    stored = sum(file.stat().st_size for file in directory.rglob("*.pictures"))
    assert stored == 40 * 2 * 224 * 224 * 3
    tracemalloc.start()
    cache = Cache(directory)
    cache.view(39, WRIST)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < stored / 4


def test_a_view_or_step_that_is_not_there_is_named(whole):
    cache, _ = whole
    with pytest.raises(KeyError, match=r"'second' of made has no view .*it has wrist"):
        cache.view(5, EXTERIOR)
    for step in (-1, 16):
        with pytest.raises(IndexError, match=rf"step is {step}; steps are 0 to 15"):
            cache.view(step, WRIST)


def _files(directory, pattern):
    files = sorted(directory.glob(pattern))
    assert files
    return files


@pytest.mark.parametrize(
    "pattern", ["manifest.json", "index-*/*.npy", "parts/*/0.pictures"], ids=["manifest", "index", "pictures"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_file_is_refused_by_name(directory, pattern, damage):
    """At opening; of pictures, where the size is right, when the picture is asked for."""
    for file in _files(directory, pattern):
        data = file.read_bytes()
        for place in (0, len(data) // 2, len(data) - 2):
            if damage == "missing":
                file.unlink(missing_ok=True)
            elif damage == "truncated":
                file.write_bytes(data[:place])
            else:
                file.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            with pytest.raises(CacheError, match=re.escape(str(file))):
                _read_all(Cache(directory))
        file.write_bytes(data)
    _read_all(Cache(directory))


def _read_all(cache):
    for step in range(len(cache)):
        for role in cache.episodes[cache.episode_of(step)].views:
            cache.view(step, role)


def test_a_flipped_bit_in_a_jpeg_that_still_decodes_is_found(tmp_path):
    directory = cached(tmp_path, made("one", 1, size=(64, 64), roles=(WRIST,)), storage=Storage("jpeg")).directory
    (file,) = directory.rglob("*.pictures")
    data = bytearray(file.read_bytes())
    data[len(data) - 40] ^= 1
    file.write_bytes(data)
    with pytest.raises(CacheError, match=r"0\.pictures: the picture of wrist at step 0 of episode 'one' is damaged"):
        Cache(directory).view(0, WRIST)


def test_the_instructions_of_an_error_help(directory):
    """What is said to be deleted and built again is then whole."""
    episodes = [made("first", 5, 1), made("second", 7, 2), made("third", 4, 3)]
    cached(directory.parent / "new", *episodes)
    directory = directory.parent / "new"
    for pattern in ("index-*/states.npy", "parts/0001-*/0.pictures"):
        (file,) = _files(directory, pattern)
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(CacheError, match=r"delete (\S+) and build the cache again") as caught:
            Cache(directory)
        spoilt = Path(re.search(r"delete (\S+) and", str(caught.value))[1])
        shutil.rmtree(spoilt) if spoilt.is_dir() else spoilt.unlink()
        _rebuild(directory, episodes)
        _read_all(Cache(directory))


def _rebuild(directory, episodes):
    with CacheWriter(directory, Storage("raw")) as writer:
        for number, episode in enumerate(episodes):
            if not writer.has(f"{number:04d}", "1"):
                writer.add(f"{number:04d}", "1", [episode])
        writer.commit({f"{number:04d}": "1" for number in range(len(episodes))})


def test_a_flipped_index_is_whole_again_without_its_manifest(tmp_path):
    episodes = [made("first", 5, 1)]
    directory = cached(tmp_path, *episodes).directory
    (file,) = _files(directory, "index-*/targets.npy")
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    (directory / "manifest.json").unlink()
    _rebuild(directory, episodes)
    np.testing.assert_array_equal(Cache(directory).targets, episodes[0].targets)


def test_what_is_no_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(CacheError, match=r"holds no complete cache: .*manifest.json is missing; build it with `ki-ros"):
        Cache(tmp_path)


def test_a_cache_of_another_version_is_refused(directory):
    file = directory / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["storage"]["version"] = 99
    file.write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match="version is 99, this package reads 2"):
        Cache(directory)


def test_a_cache_of_an_earlier_version_is_refused_and_made_anew(directory, whole):
    for file in (directory / "manifest.json", *directory.glob("parts/*/part.json")):
        values = json.loads(file.read_text())
        values["storage"]["version"] = 1
        for episode in values["episodes"]:
            del episode["ended"]
        file.write_text(json.dumps(values))
    with pytest.raises(CacheError, match="version is 1, this package reads 2; build it again with `ki-ros cache BAGS"):
        Cache(directory)
    episodes = whole[1]
    for episode in episodes:
        episode.asked.clear()
    _rebuild(directory, episodes)
    assert [episode.asked for episode in episodes] == [list(range(steps)) for steps in (5, 7, 4)]
    assert [episode.ended for episode in Cache(directory).episodes] == [True, False, True]
    assert len(list(directory.glob("parts/*"))) == 3


def test_a_worker_that_starts_after_a_new_build_is_told(tmp_path):
    sent = pickle.dumps(cached(tmp_path, made("one", 5, 1)))
    cached(tmp_path, made("one", 5, 1), made("two", 5, 2))
    with pytest.raises(CacheError, match="was built again while it was in use"):
        pickle.loads(sent)


def _other(role):
    return {CameraRole.EXTERIOR_1: WRIST, WRIST: CameraRole.EXTERIOR_1}[role]


@pytest.mark.parametrize("role", VIEWS)
def test_only_the_picture_that_is_asked_for_is_read(tmp_path, role):
    directory = cached(tmp_path, made("one", 1)).directory
    (file,) = directory.rglob("*.pictures")
    data = bytearray(file.read_bytes())
    half = len(data) // 2
    # Of a step, pictures lie in the order of the cameras.
    other = slice(half, None) if role is EXTERIOR else slice(0, half)
    data[other] = bytes(half)
    file.write_bytes(data)
    cache = Cache(directory)
    np.testing.assert_array_equal(cache.view(0, role), picture(0, 0, role))
    with pytest.raises(CacheError, match=f"the picture of {_other(role).value}"):
        cache.view(0, _other(role))
