"""Damaged recordings: never a crash, never a hang, and nothing is lost in silence.

Every copy is compared with what the undamaged recording gives. A message that is missing, or is not what it was, must
come with an entry in `damage` that says that something is lost. One thing cannot be noticed and is allowed for by name:
changed bytes where the format keeps no checksum, which is inside the rows of SQLite, and in MCAP outside of chunks or
in chunks without a checksum. Even then no message may be missing.
"""

import contextlib
import functools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rosbags.rosbag2
from mcap.exceptions import McapError
from mcap.records import Chunk
from mcap.records import Message as MessageRecord
from mcap.stream_reader import StreamReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.typesys import Stores, get_typestore

from ki_ros.data.bag import BagError, BagWriter, encode, open_bag

START = 1_700_000_000 * 10**9
SHARED = (
    "bags_rosbag2/rosbag2_py/test/resources/mcap/wbag",
    "bags_rosbag2/rosbag2_py/test/resources/sqlite3/wbag",
    "bags_rosbag2/rosbag2_py/test/resources/mcap/reindex_test_bags/multiple_files",
    "bags_rosbag2/rosbag2_py/test/resources/sqlite3/convert_b",
    "bags_rosbag2/rosbag2_tests/resources/mcap/bag_with_topics_and_service_events",
    "bags_rosbag2/rosbag2_tests/resources/sqlite3/bag_with_topics_and_service_events",
    "bags_rosbag2/rosbag2_tests/resources/sqlite3/cdr_test",
    "bags_rosbag2/rosbag2_tests/resources/mcap/wrong_rmw_test",
    "bags_rosbag2/ros2bag/test/resources/empty_bag",
    "bags_other/baglab",
)


def messages():
    """(topic, log time, bytes) of a small recording."""
    rng = np.random.default_rng(1)
    found = [("/instruction", START, encode.string("pick the cube"))]
    for k in range(15):
        at = START + k * 66_666_667
        found.append(("/camera", at, encode.image(at, "wrist", rng.integers(0, 256, (12, 16, 3), np.uint8))))
    for k in range(100):
        at = START + k * 10_000_000
        found.append(("/joint_states", at, encode.joint_state(at, ["a", "b"], rng.normal(size=2))))
    return sorted(found, key=lambda message: message[1])


TYPES = {
    "/instruction": "std_msgs/msg/String",
    "/camera": "sensor_msgs/msg/Image",
    "/joint_states": "sensor_msgs/msg/JointState",
}


def fill(bag: BagWriter) -> None:
    """Writes the messages, twenty to a chunk."""
    for topic, type_name in TYPES.items():
        bag.add_topic(topic, type_name)
    for k, message in enumerate(messages()):
        bag.write(*message)
        if k % 20 == 19:
            bag.flush()


def write_ours(directory: Path, compression: str) -> Path:
    with BagWriter(directory, compression=compression, flush_seconds=3600) as bag:
        fill(bag)
    return directory


def write_killed(directory: Path) -> Path:
    """A recording of which the process ended without closing it."""
    child = os.fork()
    if child == 0:
        bag = BagWriter(directory, flush_seconds=3600)
        fill(bag)
        os._exit(0)
    os.waitpid(child, 0)
    return directory


def write_theirs(directory: Path, storage: StoragePlugin, mode: CompressionMode) -> Path:
    store = get_typestore(Stores.ROS2_JAZZY)
    writer = rosbags.rosbag2.Writer(directory, version=9, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {t: writer.add_connection(t, n, typestore=store) for t, n in TYPES.items()}
        for topic, at, raw in messages():
            writer.write(connections[topic], at, raw)
    return directory


@pytest.fixture(scope="session")
def recordings(test_data, tmp_path_factory):
    """Directories of undamaged recordings: ours, those of the rosbags library, and rosbag2's own."""
    base = tmp_path_factory.mktemp("recordings")
    made = [write_ours(base / f"ours_{compression}", compression) for compression in ("zstd", "lz4", "none")]
    made.append(write_killed(base / "killed"))
    for storage in (StoragePlugin.SQLITE3, StoragePlugin.MCAP):
        for mode in (CompressionMode.FILE, CompressionMode.MESSAGE):
            made.append(write_theirs(base / f"theirs_{storage.name}_{mode.name}", storage, mode))
    return made + [test_data / name for name in SHARED]


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    target.chmod(0o755)
    return target


def read(path: Path):
    """The messages and the damage that a recording gives."""
    with open_bag(path) as bag:
        return Counter(bag.messages()), bag.damage


# What happens to recordings. Each takes a random generator and the copy's directory, and returns what it did.


def pick(rng, directory: Path) -> Path:
    files = sorted(file for file in directory.iterdir() if file.stat().st_size)
    if rng.random() < 0.8:
        files = [file for file in files if file.name != "metadata.yaml"] or files
    return files[rng.integers(len(files))]


def truncate(rng, directory: Path) -> str:
    file = pick(rng, directory)
    size = int(rng.integers(file.stat().st_size))
    os.truncate(file, size)
    return f"{file.name} cut to {size} bytes"


def on_bytes(change: Callable[[np.random.Generator, bytearray], str]):
    """Damage of the bytes of one of the files; `change` says what it did to them."""

    @functools.wraps(change)
    def damage(rng, directory: Path) -> str:
        file = pick(rng, directory)
        data = bytearray(file.read_bytes())
        done = change(rng, data)
        file.write_bytes(data)
        return f"{file.name} {done}"

    return damage


@on_bytes
def flip_bits(rng, data: bytearray) -> str:
    places = rng.integers(len(data), size=int(rng.integers(1, 9)))
    for place in places:
        data[place] ^= 1 << int(rng.integers(8))
    return f"with bits flipped in bytes {sorted(places.tolist())}"


@on_bytes
def flip_one_bit(rng, data: bytearray) -> str:
    place = int(rng.integers(len(data)))
    data[place] ^= 1 << int(rng.integers(8))
    return f"with a bit flipped in byte {place}"


@on_bytes
def blank(rng, data: bytearray) -> str:
    place, length = int(rng.integers(len(data))), int(rng.integers(1, 600))
    data[place : place + length] = bytes(len(data[place : place + length]))
    return f"with {length} bytes blank from byte {place}"


@on_bytes
def cut_out(rng, data: bytearray) -> str:
    place, length = int(rng.integers(len(data))), int(rng.integers(1, 3000))
    del data[place : place + length]
    return f"without {length} bytes from byte {place}"


@on_bytes
def damage_head(rng, data: bytearray) -> str:
    place = int(rng.integers(min(100, len(data))))
    data[place] = int(rng.integers(256))
    return f"with another byte {place}"


def remove(rng, directory: Path) -> str:
    file = pick(rng, directory)
    file.unlink()
    return f"{file.name} removed"


def empty(rng, directory: Path) -> str:
    file = pick(rng, directory)
    os.truncate(file, 0)
    return f"{file.name} emptied"


def rename(rng, directory: Path) -> str:
    file = pick(rng, directory)
    suffix = [".mcap", ".db3", ".bag", ""][rng.integers(4)]
    file.rename(file.with_suffix(suffix))
    return f"{file.name} renamed to {suffix}"


KINDS = (truncate, flip_bits, flip_one_bit, flip_one_bit, blank, cut_out, remove, empty, rename, damage_head)
IN_PLACE = (flip_bits, flip_one_bit, blank, damage_head)


def without_checksums(directory: Path) -> bool:
    """Whether a recording has messages whose bytes no checksum covers."""
    if any(".db3" in file.name or file.suffix == ".zstd" for file in directory.iterdir()):
        return True
    for file in directory.glob("*.mcap"):
        # A killed recording ends without an end, which this reader minds.
        with file.open("rb") as stream, contextlib.suppress(McapError):
            for record in StreamReader(stream, emit_chunks=True).records:
                if isinstance(record, MessageRecord) or (isinstance(record, Chunk) and not record.uncompressed_crc):
                    return True
    return False


def check_copy(rng, source: Path, copy: Path, kind, whole: Counter, *, unprotected: bool) -> str:
    """Damages a copy and reads it; returns what became of it."""
    copied(source, copy)
    done = kind(rng, copy)
    began = time.monotonic()
    try:
        given, damage = read(copy)
    except BagError:
        return "refused"
    finally:
        seconds = time.monotonic() - began
        assert seconds < 10, f"{source.name}: {done}: read for {seconds:.1f} s"
    if given == whole:
        return "damage noted" if damage else "nothing to notice"
    if not any(entry.lost != "nothing" for entry in damage):
        assert unprotected, f"{source.name}: {done}: lost in silence; noted: {[str(entry) for entry in damage]}"
        assert kind in IN_PLACE, f"{source.name}: {done}: lost in silence"
        assert given.total() == whole.total(), f"{source.name}: {done}: messages are missing in silence"
        return "changed, unnoticed, as no checksum covers it"
    return "partly read"


def test_damaged_copies(recordings, tmp_path, full):
    copies = 300 if full else 60
    rng = np.random.default_rng(20240607)
    whole = {source: read(source)[0] for source in recordings}
    unprotected = {source: without_checksums(source) for source in recordings}
    outcomes: Counter[str] = Counter()
    for k in range(copies):
        source, kind = recordings[k % len(recordings)], KINDS[rng.integers(len(KINDS))]
        copy = tmp_path / str(k)
        outcomes[check_copy(rng, source, copy, kind, whole[source], unprotected=unprotected[source])] += 1
        shutil.rmtree(copy)
    assert outcomes.total() == copies
    # The damage was real, and much of what it left was read.
    assert outcomes["partly read"] > copies / 4
    assert outcomes["refused"] < copies / 3
    assert outcomes["changed, unnoticed, as no checksum covers it"] < copies / 10
