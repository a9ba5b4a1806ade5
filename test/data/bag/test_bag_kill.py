"""A recording whose process is killed keeps all but its last second."""

import os
import select
import signal
import struct
import time

import numpy as np
import pytest

from ki_ros.data.bag import BagWriter, encode, open_bag

RATES = {"/joint_states": 200, "/camera": 15}


def record(directory, report: int) -> None:
    """Writes in real time, without end; tells of each message through the pipe `report` once it was taken."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    due = dict.fromkeys(RATES, time.monotonic())
    with BagWriter(directory) as bag:
        bag.add_topic("/joint_states", "sensor_msgs/msg/JointState")
        bag.add_topic("/camera", "sensor_msgs/msg/Image")
        while True:
            topic = min(due, key=due.get)
            time.sleep(max(due[topic] - time.monotonic(), 0))
            due[topic] += 1 / RATES[topic]
            now = time.monotonic_ns()
            if topic == "/camera":
                bag.write(topic, now, encode.image(now, "wrist", pixels))
            else:
                bag.write(topic, now, encode.joint_state(now, ["a", "b"], [0.0, 1.0]))
            os.write(report, struct.pack("<q", now))


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_a_random_moment(tmp_path, seed):
    directory = tmp_path / "demo"
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            record(directory, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    # The moment is given by the child's own messages: so many of them, however fast the machine is.
    moment = int(np.random.default_rng(seed).integers(150, 450))
    taken: list[int] = []
    while len(taken) < moment:
        assert select.select([ours], [], [], 60)[0], "the child has stopped writing"
        taken += [time_ns for (time_ns,) in struct.iter_unpack("<q", os.read(ours, 8))]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while data := os.read(ours, 8):
        taken += [time_ns for (time_ns,) in struct.iter_unpack("<q", data)]
    os.close(ours)

    with open_bag(directory) as bag:
        kept = [message.log_time_ns for message in bag.messages()]
        kinds = [entry.kind for entry in bag.damage]
        lost = [entry.lost for entry in bag.damage]
    assert kept == sorted(kept)
    assert kept == taken[: len(kept)] or kept[:-1] == taken  # one message may have been taken and not reported
    seconds = (taken[-1] - kept[-1]) / 1e9
    print(f"killed after {(taken[-1] - taken[0]) / 1e9:.2f} s and {len(taken)} messages: the last {seconds:.2f} s lost")
    assert seconds <= 1.0
    assert kinds == ["metadata", "unfinished"]
    assert "nothing" not in lost
