"""Recordings of rosbag2 and others, compared with what SQL, the `mcap` library and the `rosbags` library read."""

import shutil
import sqlite3
from collections import Counter
from pathlib import Path

import mcap.reader
import mcap.writer
import numpy as np
import pytest
import yaml
from mcap.writer import IndexType
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from ki_ros.data.bag import BagError, BagWriter, encode, find_bags, message_definition, open_bag, qos_profile

START = 1_700_000_000 * 10**9
TYPES = {"/camera": "sensor_msgs/msg/Image", "/joint_states": "sensor_msgs/msg/JointState"}
RECORDED = [
    "bags_other/baglab",
    "bags_rosbag2/ros2bag/test/resources/empty_bag",
    "bags_rosbag2/rosbag2_cpp/test/rosbag2_cpp/bags/only_services.mcap",
    "bags_rosbag2/rosbag2_cpp/test/rosbag2_cpp/bags/only_topics.mcap",
    "bags_rosbag2/rosbag2_cpp/test/rosbag2_cpp/bags/topics_and_services.db3",
    "bags_rosbag2/rosbag2_cpp/test/rosbag2_cpp/bags/topics_and_services.mcap",
    *(f"bags_rosbag2/rosbag2_py/test/resources/{s}/convert_{x}" for s in ("mcap", "sqlite3") for x in "ab"),
    *(f"bags_rosbag2/rosbag2_py/test/resources/{s}/reindex_test_bags/multiple_files" for s in ("mcap", "sqlite3")),
    *(f"bags_rosbag2/rosbag2_py/test/resources/{s}/{x}" for s in ("mcap", "sqlite3") for x in ("talker", "wbag")),
    *(
        f"bags_rosbag2/rosbag2_tests/resources/{s}/{x}"
        for s in ("mcap", "sqlite3")
        for x in ("bag_with_topics_and_service_events", "cdr_test", "wrong_rmw_test")
    ),
    *(
        f"bags_rosbag2/rosbag2_transport/test/resources/{s}/{x}"
        for s in ("mcap", "sqlite3")
        for x in ("rewriter_a", "rewriter_b", "test_bag_for_seek")
    ),
]
# What of these is damaged, all of it harmless: the kinds of what is noted.
NOTED = {
    "bags_other/baglab": ["metadata"],  # there is none
    "bags_rosbag2/rosbag2_py/test/resources/mcap/reindex_test_bags/multiple_files": ["metadata"],
    "bags_rosbag2/rosbag2_py/test/resources/sqlite3/reindex_test_bags/multiple_files": ["metadata"],
    "bags_rosbag2/rosbag2_py/test/resources/mcap/wbag": ["metadata"],  # it states the times of one split
    "bags_rosbag2/rosbag2_py/test/resources/sqlite3/wbag": ["metadata"],
    # The database says cdr of two topics that metadata.yaml calls wrong_format.
    "bags_rosbag2/rosbag2_tests/resources/sqlite3/wrong_rmw_test": ["schema", "schema"],
}


def independently(path: Path) -> Counter:
    """(topic, log time, bytes) of all messages, by SQL and by the mcap library."""
    found: Counter = Counter()
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        if file.suffix == ".db3":
            with sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True) as connection:
                found.update(
                    connection.execute(
                        "SELECT name, timestamp, data FROM messages JOIN topics ON topic_id = topics.id"
                    ).fetchall()
                )
        elif file.suffix == ".mcap":
            with file.open("rb") as stream:
                for _, channel, message in mcap.reader.make_reader(stream).iter_messages():
                    found[channel.topic, message.log_time, message.data] += 1
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_every_recording_is_read_whole(test_data, name):
    path = test_data / name
    with open_bag(path) as bag:
        read = list(bag.messages())
        damage = bag.damage
    assert Counter(map(tuple, read)) == independently(path)
    times = [message.log_time_ns for message in read]
    assert times == sorted(times)
    if times:
        assert (bag.start_ns, bag.end_ns) == (times[0], times[-1])
    assert [entry.kind for entry in damage] == NOTED.get(name, [])
    if (path / "metadata.yaml").is_file():
        listed = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        topics = {t["topic_metadata"]["name"]: t for t in listed["topics_with_message_count"]}
        assert bag.topics.keys() == topics.keys()
        counts = Counter(message.topic for message in read)
        for topic in bag.topics.values():
            assert topic.type_name == topics[topic.name]["topic_metadata"]["type"]
            listed_format = topics[topic.name]["topic_metadata"]["serialization_format"]
            assert topic.serialization_format == listed_format or "schema" in NOTED[name]
            assert counts[topic.name] == topics[topic.name]["message_count"]
        assert bag.storage == listed["storage_identifier"]


def test_no_recording_is_left_out(test_data):
    found = [path for folder in ("bags_other", "bags_rosbag2") for path in find_bags(test_data / folder)]
    assert sorted(str(path.relative_to(test_data)) for path in found) == sorted(RECORDED)


def messages(count=40):
    """(topic, log time, bytes) of a small recording."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(count):
        at = START + k * 10_000_000
        found.append(("/joint_states", at, encode.joint_state(at, ["a", "b"], rng.normal(size=2))))
        if k % 7 == 0:
            found.append(("/camera", at, encode.image(at, "wrist", rng.integers(0, 256, (12, 16, 3), np.uint8))))
    return found


def write(directory: Path, written, **options) -> Path:
    with BagWriter(directory, **options) as bag:
        for topic, type_name in TYPES.items():
            bag.add_topic(topic, type_name, qos=qos_profile())
        for message in written:
            bag.write(*message)
    return directory


def read(path: Path, topics=None, **options):
    with open_bag(path, **options) as bag:
        return [tuple(message) for message in bag.messages(topics)], bag.damage


@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
@pytest.mark.parametrize("mode", list(CompressionMode))
def test_compressed_recordings(tmp_path, storage, mode):
    if storage == StoragePlugin.SQLITE3 and mode == CompressionMode.STORAGE:
        pytest.skip("SQLite compresses nothing by itself")
    store = get_typestore(Stores.ROS2_JAZZY)
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    writer.set_custom_data("outcome", "success")
    with writer:
        connections = {t: writer.add_connection(t, n, typestore=store) for t, n in TYPES.items()}
        for topic, at, raw in messages():
            writer.write(connections[topic], at, raw)
    assert read(tmp_path / "bag") == (messages(), [])
    with open_bag(tmp_path / "bag") as bag:
        assert bag.custom_data == {"outcome": "success"}
        assert bag.topics["/camera"].type_name == "sensor_msgs/msg/Image"
    # Without metadata.yaml the compression is found by itself.
    (tmp_path / "bag" / "metadata.yaml").unlink()
    given, damage = read(tmp_path / "bag")
    assert given == messages()
    assert [entry.kind for entry in damage] == ["metadata"]


def test_our_own_recording(tmp_path):
    write(tmp_path / "bag", messages(), custom_data={"robot": "panda"})
    with open_bag(tmp_path / "bag") as bag:
        assert [tuple(message) for message in bag.messages()] == messages()
        assert [message.topic for message in bag.messages({"/camera", "/nowhere"})] == ["/camera"] * 6
        assert bag.damage == []
        assert bag.custom_data == {"robot": "panda"}
        assert bag.topics["/camera"].definition == message_definition("sensor_msgs/msg/Image").text
        assert yaml.safe_load(bag.topics["/camera"].qos)[0]["reliability"] == "reliable"
    assert read(tmp_path / "bag" / "bag_0.mcap") == (messages(), [])
    assert read(tmp_path / "bag" / "metadata.yaml") == (messages(), [])


def test_order_of_time_over_chunks_that_overlap(tmp_path):
    """Messages are recorded as they arrive; their log times may be out of order between and inside of chunks."""
    rng = np.random.default_rng(3)
    times = rng.permutation(200) + 5
    with BagWriter(tmp_path / "bag", flush_seconds=3600) as bag:
        bag.add_topic("/text", "std_msgs/msg/String")
        for k, at in enumerate(times.tolist()):
            bag.write("/text", at, encode.string(str(at)))
            if k % 10 == 9:
                bag.flush()
    given, damage = read(tmp_path / "bag")
    assert given == [("/text", at, encode.string(str(at))) for at in sorted(times.tolist())]
    assert damage == []


def in_mcap(directory: Path, written, **options) -> Path:
    """One MCAP file by the mcap library, with its options."""
    directory.mkdir()
    with (directory / f"{directory.name}_0.mcap").open("wb") as stream:
        writer = mcap.writer.Writer(stream, chunk_size=2000, **options)
        writer.start(profile="ros2")
        schemas = {name: writer.register_schema(name, "ros2msg", b"") for name in TYPES.values()}
        channels = {topic: writer.register_channel(topic, "cdr", schemas[name]) for topic, name in TYPES.items()}
        for topic, at, raw in written:
            writer.add_message(channels[topic], at, raw, at)
        writer.finish()
    return directory


def in_rosbag2(directory: Path, written, storage: StoragePlugin) -> Path:
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(directory, version=9, storage_plugin=storage) as writer:
        connections = {topic: writer.add_connection(topic, name, typestore=store) for topic, name in TYPES.items()}
        for topic, at, raw in written:
            writer.write(connections[topic], at, raw)
    return directory


def in_two_files(directory: Path, written) -> Path:
    """Files of equal lengths, without metadata.yaml."""
    half = len(written) // 2
    directory.mkdir()
    for number, part in enumerate((written[:half], written[half:])):
        made = in_mcap(directory / "made", part)
        (made / "made_0.mcap").rename(directory / f"bag_{number}.mcap")
        made.rmdir()
    return directory


WAYS = {
    "this package": write,
    "one chunk": lambda directory, written: write(directory, written, flush_seconds=3600),
    "small chunks": in_mcap,
    "chunks without an index": lambda directory, written: in_mcap(directory, written, index_types=IndexType.NONE),
    "no chunks": lambda directory, written: in_mcap(directory, written, use_chunking=False),
    "two files": in_two_files,
    "rosbags mcap": lambda directory, written: in_rosbag2(directory, written, StoragePlugin.MCAP),
    "rosbags sqlite3": lambda directory, written: in_rosbag2(directory, written, StoragePlugin.SQLITE3),
}


def by_clock(written, back: dict[int, int]):
    """The messages with a clock that is set back before message k by so many ns."""
    shift, found = 0, []
    for k, (topic, at, raw) in enumerate(written):
        shift += back.get(k, 0)
        found.append((topic, at - shift, raw))
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("back", [{55: 150_000_000}, {55: 10**12}, {23: 2 * 10**8, 80: 3 * 10**8}])
def test_what_is_recorded_after_the_clock_was_set_back_follows_what_was_before(tmp_path, way, back):
    written = by_clock(messages(100), back)
    given, damage = read(WAYS[way](tmp_path / "bag", written))
    assert given == written
    told = [entry.detail for entry in damage if entry.kind == "clock"]
    assert len(told) == len(back)
    for detail, (k, by) in zip(told, back.items(), strict=True):
        seconds = (by - (messages(100)[k][1] - messages(100)[k - 1][1])) / 1e9
        assert f"after {written[k - 1][1]} ns log times go back by {seconds:.3f} s" in detail
    assert {entry.kind for entry in damage} <= {"clock", "metadata"}
    assert read(tmp_path / "bag", {"/camera"})[0] == [message for message in written if message[0] == "/camera"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("disorder", ["overtaking", "topic after topic", "one wrong time", "a late topic"])
def test_disorder_is_no_clock_that_was_set_back(tmp_path, way, disorder):
    written = messages(100)
    rng = np.random.default_rng(1)
    if disorder == "overtaking":
        written = sorted(written, key=lambda message: message[1] + rng.integers(90_000_000))
    elif disorder == "topic after topic":
        written = sorted(written, key=lambda message: message[0])
    elif disorder == "one wrong time":
        written[50] = (written[50][0], written[50][1] - 3 * 10**9, written[50][2])
    else:
        # What waited in the recorder for its turn: a topic whose messages are recorded half a second late.
        written = sorted(written, key=lambda message: message[1] + (message[0] == "/camera") * 500_000_000)
    given, damage = read(WAYS[way](tmp_path / "bag", written))
    assert Counter(given) == Counter(written)
    assert [at for _, at, _ in given] == sorted(at for _, at, _ in written)
    assert not [entry for entry in damage if entry.kind == "clock"]


def test_files_that_are_listed_in_another_order_are_no_clock_that_was_set_back(tmp_path):
    written = messages(98)
    half = len(written) // 2
    given, damage = read(in_two_files(tmp_path / "bag", written[half:] + written[:half]))
    assert given == written
    assert [entry.kind for entry in damage] == ["metadata"]


def test_splits_are_merged_and_a_missing_one_is_told(test_data, tmp_path):
    source = test_data / "bags_rosbag2/rosbag2_py/test/resources/mcap/wbag"
    shutil.copytree(source, tmp_path / "wbag", copy_function=shutil.copyfile)
    (tmp_path / "wbag").chmod(0o755)
    whole, _ = read(source)
    gone = independently(tmp_path / "wbag" / "wbag_2.mcap")
    (tmp_path / "wbag" / "wbag_2.mcap").unlink()
    given, damage = read(tmp_path / "wbag")
    assert Counter(given) == Counter(whole) - gone
    assert [entry.file.name for entry in damage if entry.kind == "split"] == ["wbag_2.mcap"]
    lost = [entry.lost for entry in damage if entry.kind == "count"]
    assert sum(int(text.split()[0]) for text in lost) == gone.total()
    # Without metadata.yaml the gap in the numbers tells it.
    (tmp_path / "wbag" / "metadata.yaml").unlink()
    assert [entry.file.name for entry in read(tmp_path / "wbag")[1]] == ["metadata.yaml", "wbag_2.mcap"]


def test_what_sqlite_had_not_yet_merged_is_read(tmp_path):
    """With rosbag2's resilient profile, the last messages of a killed recording are in the write-ahead log."""
    live = tmp_path / "live"
    live.mkdir()
    connection = sqlite3.connect(live / "bag_0.db3", isolation_level=None)
    connection.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;"
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
        "serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);"
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, "
        "data BLOB NOT NULL); CREATE INDEX timestamp_idx ON messages (timestamp ASC);"
        "INSERT INTO topics VALUES (1, '/text', 'std_msgs/msg/String', 'cdr', '');"
    )
    written = [("/text", k, encode.string(str(k))) for k in range(50)]
    for _, at, raw in written:
        connection.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (1, ?, ?)", (at, raw))
    shutil.copytree(live, tmp_path / "killed")
    connection.close()
    before = {file: file.read_bytes() for file in (tmp_path / "killed").iterdir() if file.suffix != ".db3-shm"}
    assert len(before) == 2
    given, damage = read(tmp_path / "killed")
    assert given == written
    assert [entry.kind for entry in damage] == ["metadata"]
    assert {file: file.read_bytes() for file in before} == before


def test_rows_on_a_damaged_page_are_lost_and_no_others(test_data, tmp_path):
    source = test_data / "bags_rosbag2/rosbag2_py/test/resources/sqlite3/wbag"
    whole = independently(source / "wbag_1.db3")
    data = bytearray((source / "wbag_1.db3").read_bytes())
    page = int.from_bytes(data[16:18], "big")
    data[8 * page : 9 * page] = b"\xa5" * page
    (tmp_path / "wbag_1.db3").write_bytes(data)
    given, damage = read(tmp_path / "wbag_1.db3")
    lost = whole - Counter(given)
    assert not Counter(given) - whole
    assert 0 < lost.total() < whole.total() / 10
    assert f"{lost.total()} messages" in [entry.lost for entry in damage]


def chunks_of(path: Path):
    with path.open("rb") as stream:
        return mcap.reader.make_reader(stream).get_summary().chunk_indexes


def write_in_chunks(directory: Path, compression: str) -> Path:
    with BagWriter(directory, flush_seconds=3600, compression=compression) as bag:
        bag.add_topic("/text", "std_msgs/msg/String")
        for k in range(100):
            bag.write("/text", k, encode.string("x" * 50))
            if k % 10 == 9:
                bag.flush()
    return directory / f"{directory.name}_0.mcap"


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_a_chunk_whose_checksum_does_not_match_is_left_out(tmp_path, compression):
    path = write_in_chunks(tmp_path / "bag", compression)
    index = chunks_of(path)[4]
    data = bytearray(path.read_bytes())
    data[index.chunk_start_offset + index.chunk_length - 20] ^= 1
    path.write_bytes(data)
    given, damage = read(path)
    assert [at for _, at, _ in given] == [*range(40), *range(50, 100)]
    assert damage[0].kind == "checksum"
    assert damage[0].lost == "10 of its 10 messages"
    assert damage[1].kind == "count"
    if compression == "none":
        anyway, _ = read(path, unverified=True)
        assert [at for _, at, _ in anyway] == list(range(100))


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_a_file_cut_in_a_chunk_keeps_all_before_and_some_of_it(tmp_path, compression):
    rng = np.random.default_rng(5)
    with BagWriter(tmp_path / "bag", flush_seconds=3600, compression=compression) as bag:
        bag.add_topic("/camera", "sensor_msgs/msg/Image")
        written = [("/camera", k, encode.image(k, "", rng.integers(0, 256, (60, 80, 3), np.uint8))) for k in range(80)]
        for k, message in enumerate(written):
            bag.write(*message)
            if k == 9:
                bag.flush()
    path = tmp_path / "bag" / "bag_0.mcap"
    last = chunks_of(path)[1]
    path.write_bytes(path.read_bytes()[: last.chunk_start_offset + int(0.8 * last.chunk_length)])
    given, damage = read(path)
    assert given == written[: len(given)]
    assert len(given) > 10 + 0.6 * 70
    assert {entry.kind for entry in damage} == {"unfinished"}


def test_a_length_that_is_damaged_is_found_by_the_other(tmp_path):
    path = write_in_chunks(tmp_path / "bag", "zstd")
    index = chunks_of(path)[4]
    whole = path.read_bytes()
    for place in (1, 9 + 8 + 8 + 8 + 4 + 4 + 4):  # the record's length, and that of the compressed records in it
        for bit in range(8):
            data = bytearray(whole)
            data[index.chunk_start_offset + place] ^= 1 << bit
            path.write_bytes(data)
            given, damage = read(path)
            assert len(given) == 100
            assert damage


def swapped(definitions: dict[str, str]) -> dict[str, str]:
    first, second = definitions
    return {first: definitions[second], second: definitions[first]}


def test_swapped_definitions_and_types_are_told(tmp_path):
    texts = {name: message_definition(name).text for name in TYPES.values()}
    for case, (types, definitions) in enumerate([(TYPES, swapped(texts)), (swapped(TYPES), texts)]):
        directory = write(tmp_path / str(case), messages())
        with (directory / f"{case}_0.mcap").open("wb") as stream:
            writer = mcap.writer.Writer(stream)
            writer.start("ros2", "test")
            channels = {
                topic: writer.register_channel(
                    topic, "cdr", writer.register_schema(name, "ros2msg", definitions[name].encode())
                )
                for topic, name in types.items()
            }
            for topic, at, raw in messages():
                writer.add_message(channels[topic], at, raw, at)
            writer.finish()
        given, damage = read(directory)
        assert given == messages()
        assert [entry.kind for entry in damage] == ["schema", "schema"]


def test_bytes_that_are_no_message_are_left_out_and_told(tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic("/text", "std_msgs/msg/String")
        for at, raw in enumerate([encode.string("a"), b"", b"\0\1", b"hello world", encode.string("b")]):
            bag.write("/text", at, raw)
    given, damage = read(tmp_path / "bag")
    assert [at for _, at, _ in given] == [0, 4]
    assert [(entry.kind, entry.lost) for entry in damage] == [("message", "3 messages")]


def test_a_bag_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(BagError, match=r"nowhere: no such recording"):
        open_bag(tmp_path / "nowhere")
    with pytest.raises(BagError, match=r"no \.mcap or \.db3 file"):
        open_bag(tmp_path)
    (tmp_path / "a.mcap").touch()
    with pytest.raises(BagError, match=r"a\.mcap: the file is empty"):
        open_bag(tmp_path / "a.mcap")
    (tmp_path / "a.mcap").write_bytes(bytes(5000))
    with pytest.raises(BagError, match="nothing in the file is MCAP"):
        open_bag(tmp_path)
    (tmp_path / "b.txt").write_text("hello")
    with pytest.raises(BagError, match="neither MCAP nor SQLite"):
        open_bag(tmp_path / "b.txt")
    sqlite3.connect(tmp_path / "c.db3").execute("CREATE TABLE other(id)")
    with pytest.raises(BagError, match="no tables topics and messages"):
        open_bag(tmp_path / "c.db3")
    with pytest.raises(BagError, match=r"several recordings.*a\.mcap, c\.db3"):
        open_bag(tmp_path)


def test_find_bags(tmp_path):
    write(tmp_path / "runs" / "one", messages(3))
    write(tmp_path / "runs" / "two", messages(3))
    killed = tmp_path / "runs" / "killed"
    killed.mkdir()
    for k in range(2):
        shutil.copyfile(tmp_path / "runs" / "one" / "one_0.mcap", killed / f"killed_{k}.mcap")
    (tmp_path / "loose").mkdir()
    for name in ("a.mcap", "b.mcap"):
        shutil.copyfile(tmp_path / "runs" / "one" / "one_0.mcap", tmp_path / "loose" / name)
    (tmp_path / "runs" / "notes.txt").write_text("nothing here")
    found = [tmp_path / "loose" / "a.mcap", tmp_path / "loose" / "b.mcap"]
    found += [tmp_path / "runs" / name for name in ("killed", "one", "two")]
    assert find_bags(tmp_path) == found
    assert find_bags(tmp_path / "runs" / "one") == [tmp_path / "runs" / "one"]
    for path in found:
        open_bag(path).close()
