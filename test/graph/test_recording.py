"""Recording as a person does it: real processes, the keyboard, SIGINT, and SIGKILL at random times."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from fake_rig import CAMERAS, FakeRig
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from waiting import FIGURES, PATIENCE, wait

from ki_ros import msg, rig, srv
from ki_ros.data.bag import open_bag
from ki_ros.nodes import stamps, topics

pytestmark = pytest.mark.graph

LOST_SECONDS = 1.0
"""The most of a recording that a SIGKILL may take."""

BUSY_SECONDS = 0.1
"""A rig that publishes every 0.01 s and did not for so long had no processor, and the recorder may have had none
either."""

COMMAND_PERIOD = 1 / 100


class Teleoperator(FakeRig):
    """A rig that somebody drives: it publishes commands, and calls the recorder's services."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self._joint_command = self.create_publisher(JointState, topics.JOINT_COMMAND, topics.COMMAND_QOS)
        self._arm = self.create_publisher(
            Float64MultiArray, "/forward_position_controller/commands", topics.COMMAND_QOS
        )
        self.create_timer(COMMAND_PERIOD, self._command)

    def _command(self) -> None:
        message = JointState(name=list(rig.PANDA.joint_names), position=list(rig.RESET_JOINT_POSITIONS))
        message.header.stamp = self._now()
        self._joint_command.publish(message)
        self._arm.publish(Float64MultiArray(data=list(rig.RESET_JOINT_POSITIONS)))


@pytest.fixture(scope="module")
def teleoperator(spinner):
    node = Teleoperator(context=spinner.context)
    spinner.start(node)
    return node


@contextlib.contextmanager
def recording(teleoperator: Teleoperator, output: Path, instruction: str) -> Iterator[subprocess.Popen]:
    """A recorder that has begun an episode; it is gone afterwards."""
    # A name of its own: the service of one that was killed seems to be there for some time yet.
    service = f"{output.name}/{topics.START_EPISODE}"
    arguments = ["-p", f"output:={output}", "-r", f"{topics.START_EPISODE}:={service}", "--log-level", "error"]
    process = subprocess.Popen([sys.executable, "-m", "ki_ros.nodes.recorder", "--ros-args", *arguments])
    try:
        client = teleoperator.create_client(srv.StartEpisode, service)
        wait(client.service_is_ready, f"service {service}")
        future = client.call_async(srv.StartEpisode.Request(instruction=instruction))
        wait(future.done, f"answer of {service}")
        assert future.result().success, future.result().message
        yield process
    finally:
        process.kill()
        process.wait()


def ki_ros_record(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ki_ros.cli", "record", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
    )


def marks(bag: Path) -> list[msg.Episode]:
    return [deserialize_message(m.raw, msg.Episode) for m in open_bag(bag).messages(["/episode"])]


@pytest.mark.usefixtures("domain")
def test_episodes_from_the_keyboard(tmp_path):
    process = ki_ros_record("--output", tmp_path, "--instruction", "wave")
    lines: list[str] = []

    def say(text: str, answer: str) -> None:
        process.stdin.write(text + "\n")
        process.stdin.flush()
        read_until(answer)

    def read_until(answer: str) -> None:
        while not (lines and answer in lines[-1]):
            line = process.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
        lines.append("")

    try:
        read_until("begins an episode")
        say("", "end the episode")
        say("what?", "end the episode")
        say("s", "begins an episode")
        say("open the drawer", "end the episode")
        say("f", "begins an episode")
        say("", "end the episode")
        process.stdin.write("q\n")
        process.stdin.flush()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()
    found = sorted((marks(bag) for bag in tmp_path.iterdir()), key=lambda pair: stamps.from_message(pair[0].stamp))
    expected = [("wave", "SUCCESS"), ("open the drawer", "FAILURE"), ("open the drawer", "UNKNOWN")]
    assert [(start.instruction, stop.outcome) for start, stop in found] == [
        (instruction, getattr(msg.Episode, outcome)) for instruction, outcome in expected
    ]


@pytest.mark.usefixtures("domain")
def test_another_recorder_is_named_and_ends_the_command(teleoperator, tmp_path):
    instruction = teleoperator.create_publisher(msg.Epoch, topics.EPOCH, topics.LATCHED_QOS)
    instruction.publish(msg.Epoch(id=1, instruction="wave"))
    arguments = ["--ros-args", "-p", f"output:={tmp_path / 'first'}"]
    first = subprocess.Popen([sys.executable, "-m", "ki_ros.nodes.recorder", *arguments])
    try:
        client = teleoperator.create_client(srv.StartEpisode, topics.START_EPISODE)
        wait(client.service_is_ready, "the first recorder")
        second = ki_ros_record("--output", tmp_path / "second", "--auto-episodes")
        try:
            said = " ".join(second.communicate(timeout=PATIENCE)[0].split())
        finally:
            second.kill()
            second.wait()
        assert second.returncode == 1, said
        assert "another recorder (/recorder) answers /start_episode" in said
        assert not (tmp_path / "second").exists(), "it has recorded nothing"
    finally:
        # Not killed: its service would seem to be there for some time yet.
        first.terminate()
        first.wait()
        teleoperator.destroy_publisher(instruction)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_completes_the_bag(teleoperator, tmp_path, number):
    output = tmp_path / number.name
    with recording(teleoperator, output, "wave") as process:
        (directory,) = output.iterdir()
        wait(lambda: bag_size(directory) > 100_000, "data in the bag")
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    assert (directory / "metadata.yaml").is_file()
    bag = open_bag(directory)
    counts = Counter(m.topic for m in bag.messages())
    assert not bag.damage
    assert counts["/joint_command"] > 0
    assert marks(directory)[-1].event == msg.Episode.STOP
    assert marks(directory)[-1].outcome == msg.Episode.UNKNOWN


def bag_size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.mcap"))


def test_a_kill_takes_no_more_than_the_last_second(teleoperator, tmp_path, full):
    """SIGKILL at random times; what was published and is missing, topic by topic, is at most one second old.

    On a busy machine the recorder may not have come to write, which says nothing of it; such a kill is repeated.
    """
    kills = 10 if full else 3
    rng = random.Random(0)
    losses, kept = [], []
    for number in range(3 * kills):
        output = tmp_path / f"kill_{number}"
        with recording(teleoperator, output, f"kill {number}") as process:
            kill_at = time.time() + rng.uniform(0.8, 2.2)
            wait(lambda at=kill_at: time.time() >= at, "the time of the kill")
            killed = time.time()
            process.kill()
        (directory,) = output.iterdir()
        assert not (directory / "metadata.yaml").exists()
        newest, count = newest_messages(directory)
        turns = [turn for turn in list(teleoperator.turns) if killed - 2.0 < turn < killed]
        lost = max(turns[-1] - at for at in newest.values())
        busy = max(later - turn for turn, later in pairwise([*turns, killed])) > BUSY_SECONDS
        if lost <= LOST_SECONDS or not busy:
            losses.append(lost)
            kept.append(count)
        if len(losses) == kills:
            break
    FIGURES.append(
        f"SIGKILL at {len(losses)} random times: lost {', '.join(f'{lost:.2f}' for lost in losses)} s, worst "
        f"{max(losses):.2f} s; messages kept: {', '.join(map(str, kept))}; repeated: {number + 1 - len(losses)}"
    )
    assert len(losses) == kills, "the machine was too busy for nearly every kill"
    assert max(losses) <= LOST_SECONDS


def newest_messages(directory: Path) -> tuple[dict[str, float], int]:
    """When the last message of each stream that was recorded came [s], and the number of messages that are left."""
    newest: dict[str, float] = {}
    count = 0
    for message in open_bag(directory).messages():
        newest[message.topic] = max(newest.get(message.topic, 0.0), message.log_time_ns / 1e9)
        count += 1
    assert "/episode" in newest, "what the episode is about must have survived"
    assert marks(directory)[0].instruction.startswith("kill")
    streams = {*CAMERAS.values(), "/joint_states", "/gripper/joint_states", "/joint_command"}
    assert streams <= newest.keys()
    return {topic: newest[topic] for topic in streams}, count
