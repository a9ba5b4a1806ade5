"""One episode's bag: its marks, its bounded queue, its end on a broken disk."""

from __future__ import annotations

import re
import threading
from datetime import datetime, timezone
from pathlib import Path

import pytest
import yaml
from rosbags.highlevel import AnyReader

from ki_ros.data.bag import BagWriteError, BagWriter, encode
from ki_ros.data.recorder.bag import EpisodeBag, EpisodeInfo, Outcome, TopicInfo, directory_name, new_id

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
INFO = EpisodeInfo("abc123", "put the marker in the pot", "panda", "first try")
TOPICS = {"/joint_command": TopicInfo("sensor_msgs/msg/JointState"), "/image": TopicInfo("sensor_msgs/msg/Image")}


def joint(i: int) -> bytes:
    return encode.joint_state(START + i, ["a"], [float(i)])


def messages(directory: Path) -> list[tuple[str, int, bytes]]:
    """What the rosbags library finds in a bag."""
    with AnyReader([directory]) as reader:
        return [(connection.topic, time, bytes(raw)) for connection, time, raw in reader.messages()]


def custom_data(directory: Path) -> dict[str, str]:
    return yaml.safe_load((directory / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"]


def test_a_bag_begins_with_start_and_ends_with_stop(tmp_path):
    bag = EpisodeBag(tmp_path, INFO, START, TOPICS)
    for i in range(100):
        assert bag.put("/joint_command", START + i, joint(i))
    done = threading.Event()
    stop = bag.stop(START + 5 * SECOND, Outcome.FAILURE, "slipped", done.set)
    assert bag.join(10.0)
    assert done.is_set()
    assert bag.failure is None
    found = messages(bag.directory)
    assert [topic for topic, _, _ in found] == ["/episode", *["/joint_command"] * 100, "/episode"]
    assert found[0][2] == encode.episode(START, "abc123", INFO.instruction, 0, 0, "panda", "first try")
    assert found[-1] == ("/episode", START + 5 * SECOND, stop)
    assert stop == encode.episode(START + 5 * SECOND, "abc123", INFO.instruction, 1, 2, "panda", "first try; slipped")
    assert [raw for _, _, raw in found[1:-1]] == [joint(i) for i in range(100)]
    data = custom_data(bag.directory)
    assert (data["outcome"], data["state"], data["note"]) == ("failure", "complete", "first try; slipped")
    assert (data["episode_id"], data["instruction"], data["robot"]) == ("abc123", INFO.instruction, "panda")


def test_directories_sort_by_time_and_ids_differ(tmp_path):
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone.utc)
    assert directory_name("x", now) == "20260304T050607Z_x"
    bag = EpisodeBag(tmp_path, INFO, START, {})
    bag.stop(START, Outcome.UNKNOWN)
    bag.join()
    assert re.fullmatch(r"\d{8}T\d{6}Z_abc123", bag.directory.name)
    assert len({new_id() for _ in range(1000)}) == 1000


class StuckDisk:
    """Writers whose disk takes nothing until it is released."""

    def __init__(self, monkeypatch) -> None:
        self.release = threading.Event()
        write = BagWriter.write

        def stuck(writer, topic, log_time_ns, raw):
            if topic != "/episode":
                assert self.release.wait(10.0)
            write(writer, topic, log_time_ns, raw)

        monkeypatch.setattr(BagWriter, "write", stuck)


def test_a_slow_disk_drops_pictures_first_counts_them_and_keeps_commands(tmp_path, monkeypatch):
    disk = StuckDisk(monkeypatch)
    bag = EpisodeBag(tmp_path, INFO, START, TOPICS, queue_bytes=1_000_000)
    picture = bytes(100_000)
    kept = sum(bag.put("/image", START + i, picture) for i in range(20))
    commands = sum(bag.put("/joint_command", START + i, joint(i)) for i in range(500))
    assert kept == 8, "seven eighths of the queue are for pictures"
    assert bag.dropped == {"/image": 12}
    assert commands == 500
    assert 0.8 < bag.queued_share <= 1.0
    disk.release.set()
    bag.stop(START + SECOND, Outcome.SUCCESS)
    assert bag.join(10.0)
    topics = [topic for topic, _, _ in messages(bag.directory)]
    assert (topics.count("/image"), topics.count("/joint_command"), topics[-1]) == (8, 500, "/episode")
    assert bag.queued_share == 0.0


def test_the_stop_is_written_even_when_the_queue_is_full(tmp_path, monkeypatch):
    disk = StuckDisk(monkeypatch)
    bag = EpisodeBag(tmp_path, INFO, START, TOPICS, queue_bytes=1000)
    while bag.put("/joint_command", START, joint(0)):
        pass
    bag.stop(START + SECOND, Outcome.SUCCESS)
    disk.release.set()
    assert bag.join(10.0)
    assert messages(bag.directory)[-1][0] == "/episode"


def test_a_broken_disk_is_noticed_and_nothing_is_accepted_any_more(tmp_path, monkeypatch):
    broken = threading.Event()

    def fail(_writer, topic, _time, _raw):
        if topic != "/episode":
            broken.set()
            raise BagWriteError("the disk is gone")

    bag = EpisodeBag(tmp_path, INFO, START, TOPICS)
    monkeypatch.setattr(BagWriter, "write", fail)
    assert bag.put("/joint_command", START, joint(0))
    assert broken.wait(10.0)
    done = threading.Event()
    bag.stop(START + SECOND, Outcome.SUCCESS, on_done=done.set)
    assert bag.join(10.0)
    assert done.is_set(), "the end is announced also then"
    assert "the disk is gone" in str(bag.failure)
    assert not bag.put("/joint_command", START, joint(1))
    assert bag.dropped["/joint_command"] == 1


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BagWriteError, match="file"):
        EpisodeBag(file, INFO, START, TOPICS)


def test_a_topic_that_is_found_late_is_recorded(tmp_path):
    bag = EpisodeBag(tmp_path, INFO, START, {})
    bag.add_topic("/text", TopicInfo("std_msgs/msg/String"))
    bag.put("/text", START + 1, encode.string("late"))
    bag.stop(START + 2, Outcome.UNKNOWN)
    bag.join()
    assert messages(bag.directory)[1] == ("/text", START + 1, encode.string("late"))
