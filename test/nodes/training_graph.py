"""A running policy node with its training mode, recordings to train on, and a node that plays everything around it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from recording_graph import free_domain
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tiny_model import TINY_MODEL

from ki_ros import msg, srv
from ki_ros.data.bag import BagWriter, encode
from ki_ros.nodes import stamps, topics
from ki_ros.nodes.policy import PolicyNode
from ki_ros.rig import GRIPPER_JOINT, PANDA, RESET_JOINT_POSITIONS, CameraRole

DEADLINE = 240.0
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
ROLES = (CameraRole.EXTERIOR_1, CameraRole.WRIST)
STATE = np.array([*RESET_JOINT_POSITIONS, 0.3])
INSTRUCTION = "reach the red block"


def picture(number: int, side: int = 224) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def record(directory: Path, number: int, seconds: float = 2.5) -> Path:
    """A demonstration: both cameras, the arm, the gripper, and the commands that moved them."""
    messages: list[tuple[float, str, str, bytes]] = []
    kinds = {"image": "sensor_msgs/msg/Image", "joints": "sensor_msgs/msg/JointState", "episode": "ki_ros/msg/Episode"}

    def put(at: float, topic: str, kind: str, raw: bytes) -> None:
        messages.append((at, topic, kind, raw))

    def ns(at: float) -> int:
        return START + round(at * SECOND)

    id = f"reach {number}"
    put(0.0, "/episode", "episode", encode.episode(ns(0.0), id, INSTRUCTION, 0, 0, "panda", ""))
    for i, at in enumerate(np.arange(0.0, seconds, 1 / 15)):
        for role in ROLES:
            image = encode.image(ns(at), role.value, picture(1000 * number + i, 24))
            put(at + 0.004, f"/camera/{role.value}/image_raw", "image", image)
    for at in np.arange(0.0, seconds, 1 / 60):
        joints = np.array(RESET_JOINT_POSITIONS) + 0.3 * np.sin(at * 2 + np.arange(7) + number)
        closed = 0.4 * (1 + np.sin(3 * at))
        put(at, "/joint_states", "joints", encode.joint_state(ns(at), PANDA.joint_names, joints))
        put(at, "/gripper/joint_states", "joints", encode.joint_state(ns(at), (GRIPPER_JOINT,), (closed,)))
        put(at, "/joint_command", "joints", encode.joint_state(ns(at), PANDA.state_names, (*(joints + 0.01), closed)))
    put(seconds, "/episode", "episode", encode.episode(ns(seconds), id, INSTRUCTION, 1, 1, "panda", ""))
    with BagWriter(directory) as writer:
        for at, topic, kind, raw in sorted(messages, key=lambda message: message[0]):
            writer.add_topic(topic, kinds[kind])
            writer.write(topic, ns(at), raw)
    return directory


def write_config(file: Path) -> Path:
    """A training of seconds, of a model of a few thousand weights."""
    values = {
        "output": str(file.parent / "named by the file"),
        "model": TINY_MODEL,
        "data": {"kind": "bags", "directory": "elsewhere", "held_out": 1, "build_workers": 1, "hold_after_end": True},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1},
        "evaluation": {"every": 0, "samples": 2, "num_steps": 1},
        "fast_vocab_size": 300,
        "steps": 6,
        "batch_size": 2,
        "precision": "float32",
        "device": "cpu",
        "ema_decay": None,
        "save_every": 0,
        "log_every": 1,
        "workers": 0,
        "tensorboard": False,
    }
    file.write_text(json.dumps(values))
    return file


class Graph:
    """The node under test and one that plays the rest, spun by the test itself."""

    def __init__(self, **parameters) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=free_domain())
        # A trainer that gives way would stand still on a busy machine.
        usual = {"preset": "ki_tiny", "allow_untrained": True, "autostart": True, "training__niceness": 0}
        values = usual | {"threads": 1, "num_steps": 2, "seed": 0} | parameters
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
        self.node = PolicyNode(context=self.context, parameter_overrides=overrides)
        self.other = Node("other", context=self.context)
        self.spinner = SingleThreadedExecutor(context=self.context)
        self.spinner.add_node(self.node)
        self.spinner.add_node(self.other)
        self.statuses: list[msg.TrainingStatus] = []
        self.chunks: list[msg.ActionChunk] = []
        self.diagnostics: dict[str, dict[str, str]] = {}
        self.sequence = 0
        self.ahead = 0
        """By how much the clock of what is around the node is ahead of the node's [ns]."""
        self._epoch = self.other.create_publisher(msg.Epoch, topics.EPOCH, topics.LATCHED_QOS)
        self._observation = self.other.create_publisher(msg.Observation, topics.OBSERVATION, topics.NEWEST_QOS)
        self.other.create_subscription(
            msg.TrainingStatus, topics.TRAINING_STATUS, self.statuses.append, topics.LATCHED_QOS
        )
        self.other.create_subscription(msg.ActionChunk, topics.ACTION_CHUNK, self.chunks.append, topics.NEWEST_QOS)
        self.other.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._start = self.other.create_client(srv.StartTraining, topics.START_TRAINING)
        self._stop = self.other.create_client(Trigger, topics.STOP_TRAINING)
        self._load = self.other.create_client(srv.LoadCheckpoint, topics.LOAD_CHECKPOINT)
        clients = (self._start, self._stop, self._load)
        self.until(lambda: self.statuses and all(client.service_is_ready() for client in clients), "discovery")
        self._epoch.publish(msg.Epoch(id=1, instruction=INSTRUCTION))
        self.until(lambda: self._observation.get_subscription_count(), "a subscriber of observations")

    def close(self) -> None:
        self.spinner.shutdown()
        self.node.destroy_node()
        self.other.destroy_node()
        rclpy.shutdown(context=self.context)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Spins until a condition holds; fails at the deadline."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                said = self.statuses[-1].message if self.statuses else "nothing"
                pytest.fail(f"not within {DEADLINE:g} s: {what}; the training said: {said}")
            self.spinner.spin_once(timeout_sec=0.02)

    @property
    def status(self) -> msg.TrainingStatus:
        return self.statuses[-1]

    def reach(self, state: int) -> msg.TrainingStatus:
        """Waits until the training is in a state."""
        self.until(lambda: self.status.state == state, f"training state {state}")
        return self.status

    def train(self, **request) -> srv.StartTraining.Response:
        return self._call(self._start, srv.StartTraining.Request(**request))

    def stop(self) -> Trigger.Response:
        return self._call(self._stop, Trigger.Request())

    def load(self, checkpoint: Path | str = "") -> srv.LoadCheckpoint.Response:
        return self._call(self._load, srv.LoadCheckpoint.Request(checkpoint=str(checkpoint)))

    def observe(self) -> None:
        """Publishes the observation, always the same one."""
        self.sequence += 1
        message = msg.Observation(epoch=1, instruction=INSTRUCTION, sequence=self.sequence, state=STATE)
        message.header.stamp = stamps.to_message(time.time_ns() + self.ahead)
        for role in ROLES:
            view = Image(height=224, width=224, encoding="rgb8", step=672)
            view.header.frame_id = role.value
            view.data.frombytes(picture(1).tobytes())
            message.views.append(view)
        self._observation.publish(message)

    def answer(self) -> np.ndarray:
        """The chunk that answers the observation: (horizon, 8) float32."""
        self.observe()
        self.until(lambda: self.chunks and self.chunks[-1].observation_sequence == self.sequence, "a chunk")
        return np.array(self.chunks[-1].actions, np.float32).reshape(-1, 8)

    @contextmanager
    def executor(self, state: int | None, schedule: str = "") -> Iterator[None]:
        """An executor in that state, as far as one hears; None for one that is silent. It has the newest chunk."""
        publisher = self.other.create_publisher(msg.ExecutorStatus, topics.EXECUTOR_STATUS, topics.COMMAND_QOS)

        def say() -> None:
            if state is not None:
                message = msg.ExecutorStatus(state=state, schedule=schedule, epoch=1)
                message.header.stamp = stamps.to_message(time.time_ns() + self.ahead)
                message.observation_sequence = self.chunks[-1].observation_sequence if self.chunks else 0
                publisher.publish(message)

        timer = self.other.create_timer(0.01, say)
        try:
            self.until(lambda: publisher.get_subscription_count(), "a subscriber of the executor's status")
            end = time.monotonic() + 0.1
            self.until(lambda: time.monotonic() > end, "some statuses")
            yield
        finally:
            self.other.destroy_timer(timer)
            self.other.destroy_publisher(publisher)
            self.until(lambda: not self.node.count_publishers(topics.EXECUTOR_STATUS), "the executor's end")

    def figure(self, component: str, name: str) -> str:
        """A value of the newest diagnostics; empty while there is none."""
        return self.diagnostics.get(component, {}).get(name, "")

    def _call(self, client, request):
        future = client.call_async(request)
        self.until(future.done, f"answer of {client.srv_name}")
        return future.result()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            self.diagnostics[status.name.partition(": ")[2]] = values | {"message": status.message}
