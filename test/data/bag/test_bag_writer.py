"""What BagWriter writes, as the `rosbags` and `mcap` libraries read it."""

import json
import os
import resource
import sys
from pathlib import Path

import mcap.reader
import numpy as np
import pytest
import yaml
from mcap.stream_reader import StreamReader
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from ki_ros.data.bag import BagWriteError, BagWriter, encode, message_definition, qos_profile

START = 1_700_000_000 * 10**9
TYPES = {
    "/camera": "sensor_msgs/msg/Image",
    "/joint_states": "sensor_msgs/msg/JointState",
    "/instruction": "std_msgs/msg/String",
    "/epoch": "ki_ros/msg/Epoch",
    "/silent": "diagnostic_msgs/msg/DiagnosticArray",
}


def messages(seed: int = 0, seconds: int = 2):
    """(topic, log time, raw) of a small recording: 15 Hz pictures, 100 Hz joints, an instruction and its epoch."""
    rng = np.random.default_rng(seed)
    written = [
        ("/instruction", START, encode.string("pick the cube")),
        ("/epoch", START + 1, encode.epoch(START, 7, "pick the cube")),
    ]
    for k in range(15 * seconds):
        time = START + k * 66_666_667
        written.append(("/camera", time, encode.image(time, "wrist", rng.integers(0, 256, (24, 32, 3), np.uint8))))
    for k in range(100 * seconds):
        time = START + k * 10_000_000
        written.append(("/joint_states", time, encode.joint_state(time, ["a", "b"], rng.normal(size=2))))
    return sorted(written, key=lambda message: message[1])


def write(directory: Path, written, **options) -> BagWriter:
    with BagWriter(directory, **options) as bag:
        for topic, type_name in TYPES.items():
            bag.add_topic(topic, type_name, qos=qos_profile(latched=topic == "/instruction"))
        for topic, time, raw in written:
            bag.write(topic, time, raw)
    return bag


def metadata(directory: Path) -> dict:
    return yaml.safe_load((directory / "metadata.yaml").read_text())["rosbag2_bagfile_information"]


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_rosbags_reads_the_same_messages(tmp_path, compression):
    written = messages()
    bag = write(tmp_path / "demo", written, compression=compression, custom_data={"outcome": "success", "robot": "7"})
    assert bag.path == tmp_path / "demo" / "demo_0.mcap"
    with Reader(tmp_path / "demo") as reader:
        read = [(connection.topic, time, bytes(raw)) for connection, time, raw in reader.messages()]
        assert {c.topic: c.msgtype for c in reader.connections} == TYPES
        assert {c.topic: c.msgcount for c in reader.connections} == {t: bag.counts[t] for t in TYPES}
        profile = next(c.ext.offered_qos_profiles[0] for c in reader.connections if c.topic == "/instruction")
        assert (profile.durability, profile.reliability) == (QosDurability.TRANSIENT_LOCAL, QosReliability.RELIABLE)
        assert metadata(tmp_path / "demo")["custom_data"] == {"outcome": "success", "robot": "7"}
        assert reader.start_time == START
        assert reader.end_time == written[-1][1] + 1
    assert sorted(read) == sorted(written)
    assert [time for _, time, _ in read] == sorted(time for _, time, _ in written)


def test_fields_are_read_through_the_definitions_in_the_file(tmp_path):
    write(tmp_path / "demo", messages())
    with AnyReader([tmp_path / "demo"]) as reader:
        (epoch,) = [
            reader.deserialize(raw, connection.msgtype)
            for connection, _, raw in reader.messages()
            if connection.topic == "/epoch"
        ]
    assert (epoch.id, epoch.instruction, epoch.stamp.sec) == (7, "pick the cube", START // 10**9)


def test_records_are_those_of_rosbag2(tmp_path):
    write(tmp_path / "demo", messages(), custom_data={"robot": "panda"})
    with (tmp_path / "demo" / "demo_0.mcap").open("rb") as file:
        reader = mcap.reader.make_reader(file, validate_crcs=True)
        assert reader.get_header().profile == "ros2"
        summary = reader.get_summary()
        assert {index.compression for index in summary.chunk_indexes} == {"zstd"}
        schemas = {schema.name: schema for schema in summary.schemas.values()}
        assert set(schemas) == set(TYPES.values())
        assert {schema.encoding for schema in schemas.values()} == {"ros2msg"}
        channels = {channel.topic: channel for channel in summary.channels.values()}
        assert {channel.message_encoding for channel in channels.values()} == {"cdr"}
        assert yaml.safe_load(channels["/instruction"].metadata["offered_qos_profiles"])[0]["depth"] == 10
        hashes = {channel.topic: channel.metadata["topic_type_hash"] for channel in channels.values()}
        in_file = [yaml.safe_load(record.metadata["serialized_metadata"]) for record in reader.iter_metadata()]
    # rosbag2 keeps its metadata in the file too, without the key under which metadata.yaml has it.
    on_disk = metadata(tmp_path / "demo")
    assert in_file[-1] == on_disk
    assert in_file[0]["custom_data"] == {"robot": "panda"}
    assert on_disk["version"] == 9
    assert on_disk["storage_identifier"] == "mcap"
    assert on_disk["files"][0].keys() == {"path", "starting_time", "duration", "message_count"}
    assert on_disk["files"][0]["path"] == on_disk["relative_file_paths"][0] == "demo_0.mcap"
    assert all(
        isinstance(t["topic_metadata"]["offered_qos_profiles"], list) for t in on_disk["topics_with_message_count"]
    )
    store = get_typestore(Stores.ROS2_JAZZY)
    for topic in ("/camera", "/joint_states", "/instruction", "/silent"):
        assert hashes[topic] == store.hash_rihs01(TYPES[topic])


def test_definitions_and_hashes_are_those_of_the_installed_packages():
    compared = 0
    for type_name in (*TYPES.values(), "trajectory_msgs/msg/JointTrajectory", "ki_ros/msg/ActionChunk"):
        package, _, name = type_name.split("/")
        folder = Path(sys.prefix, "share", package, "msg")
        definition = message_definition(type_name)
        if not (folder / f"{name}.json").is_file():
            continue
        compared += 1
        assert definition.text.startswith((folder / f"{name}.msg").read_text())
        hashes = {
            entry["type_name"]: entry["hash_string"]
            for entry in json.loads((folder / f"{name}.json").read_text())["type_hashes"]
        }
        assert definition.type_hash == hashes[type_name]
    if not compared:
        pytest.skip("no ROS packages are installed")


def test_a_machine_without_ros_writes_the_same_types(tmp_path, monkeypatch):
    with_ros = {name: message_definition(name).type_hash for name in TYPES.values()}
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    message_definition.cache_clear()
    assert {name: message_definition(name).type_hash for name in TYPES.values()} == with_ros
    message_definition.cache_clear()


def test_chunks_end_by_size_and_by_time(tmp_path):
    with BagWriter(tmp_path / "size", flush_seconds=3600, compression="none") as bag:
        bag.add_topic("/text", "std_msgs/msg/String")
        for k in range(10):
            bag.write("/text", k, encode.string("x" * 400_000))
    with (tmp_path / "size" / "size_0.mcap").open("rb") as file:
        sizes = [index.uncompressed_size for index in mcap.reader.make_reader(file).get_summary().chunk_indexes]
    assert len(sizes) == 4  # three messages to a chunk
    assert max(sizes) < 1.3e6


def test_a_message_reaches_the_disk_though_none_follows(tmp_path):
    bag = BagWriter(tmp_path / "demo", flush_seconds=0.05)
    bag.add_topic("/text", "std_msgs/msg/String")
    bag.write("/text", 5, encode.string("x"))
    before = bag.path.stat().st_size
    # The test's own time limit ends this loop if the message never arrives.
    while bag.path.stat().st_size == before:
        pass
    with bag.path.open("rb") as file:
        chunk = next(r for r in StreamReader(file, emit_chunks=True).records if type(r).__name__ == "Chunk")
    assert chunk.message_start_time == 5
    bag.close()


def test_an_exception_keeps_what_was_recorded(tmp_path):
    def record():
        with BagWriter(tmp_path / "demo") as bag:
            bag.add_topic("/text", "std_msgs/msg/String")
            bag.write("/text", 5, encode.string("x"))
            bag.annotate("outcome", "failure")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        record()
    with Reader(tmp_path / "demo") as reader:
        assert reader.message_count == 1
        assert metadata(tmp_path / "demo")["custom_data"] == {"outcome": "failure"}


def test_a_bag_without_messages(tmp_path):
    with BagWriter(tmp_path / "demo") as bag:
        bag.add_topic("/text", "std_msgs/msg/String")
    with Reader(tmp_path / "demo") as reader:
        assert reader.message_count == 0
        assert [c.topic for c in reader.connections] == ["/text"]


def test_errors_say_what_to_do(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(BagWriteError, match="holds files already"):
        BagWriter(tmp_path / "full")
    with pytest.raises(BagWriteError, match=r"'gzip'.*zstd, lz4, none"):
        BagWriter(tmp_path / "gzip", compression="gzip")
    with BagWriter(tmp_path / "demo") as bag:
        with pytest.raises(BagWriteError, match=r"'/nowhere'.*add_topic"):
            bag.write("/nowhere", 0, b"")
        bag.add_topic("/text", "std_msgs/msg/String")
        bag.add_topic("/text", "std_msgs/msg/String")
        with pytest.raises(BagWriteError, match=r"std_msgs/msg/String.*one type per topic"):
            bag.add_topic("/text", "std_msgs/msg/Bool")
        with pytest.raises(BagWriteError, match=r"'no_such_msgs'.*AMENT_PREFIX_PATH"):
            bag.add_topic("/other", "no_such_msgs/msg/Thing")
        with pytest.raises(BagWriteError, match="PACKAGE/msg/NAME"):
            bag.add_topic("/other", "std_msgs/String")
        with pytest.raises(BagWriteError, match="-1 ns"):
            bag.write("/text", -1, encode.string("x"))
        with pytest.raises(BagWriteError, match="qos_profile"):
            bag.add_topic("/other", "std_msgs/msg/Bool", qos="{")
    with pytest.raises(BagWriteError, match="closed"):
        bag.write("/text", 0, encode.string("x"))
    bag.close()


def test_a_full_disk_raises_and_leaves_what_was_written(tmp_path):
    """A limit on the size of files stands for the full disk: the kernel refuses the write halfway through a chunk."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
            bag = BagWriter(tmp_path / "demo", compression="none", flush_seconds=3600)
            bag.add_topic("/text", "std_msgs/msg/String")
            try:
                for k in range(10):
                    bag.write("/text", k, encode.string("x" * 500_000))
            except BagWriteError as first:
                try:
                    bag.close()
                except BagWriteError as second:
                    code = 0 if str(first) == str(second) and "Free space" in str(first) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    path = tmp_path / "demo" / "demo_0.mcap"
    assert path.stat().st_size == 2_000_000
    assert not (tmp_path / "demo" / "metadata.yaml").exists()
    with path.open("rb") as file:
        chunk = next(r for r in StreamReader(file, emit_chunks=True).records if type(r).__name__ == "Chunk")
    assert len(chunk.data) > 1_000_000
