"""Records what a running graph does, for reports: a passive node that keeps messages as they arrive.

Messages are decoded when the run is over, so that watching costs the graph as little as it can.
"""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

from ki_ros import msg, srv
from ki_ros.nodes import topics


@dataclass(frozen=True)
class Arrival:
    """A message as it came.

    Attributes:
        wall: time of arrival on the steady clock [s].
        data: the serialised message, cut to its header where the rest is not wanted.
    """

    wall: float
    data: bytes

    @property
    def stamp(self) -> float:
        """The stamp of the message's header [s]. Its first field must be a header, or a time."""
        sec, nanosec = struct.unpack_from("<iI", self.data, 4)
        return sec + nanosec * 1e-9


class Monitor(Node):
    """Keeps the graph's messages while `recording`. Its callbacks run in the thread that spins it.

    Args:
        joint_states_topic: topic of the arm's joint states.
        camera_topic: topic of one camera, whose rate is the rate that the cameras sustain.
        frame_period: time between two observations that are kept whole, for the pictures in them [s].
    """

    def __init__(self, *, joint_states_topic: str, camera_topic: str, frame_period: float = 1.0) -> None:
        super().__init__("monitor")
        self.recording = threading.Event()
        self.first_observation = threading.Event()
        self.executing = threading.Event()
        self.observations: list[Arrival] = []
        self.frames: list[Arrival] = []
        self.chunks: list[Arrival] = []
        self.commands: list[Arrival] = []
        self.statuses: list[Arrival] = []
        self.joint_states: list[Arrival] = []
        self.camera: list[Arrival] = []
        self.clock: list[Arrival] = []
        self.diagnostics: dict[str, dict[str, str]] = {}
        self._frame_period = frame_period
        self._raw(msg.Observation, topics.OBSERVATION, topics.NEWEST_QOS, self._on_observation)
        self._raw(msg.ActionChunk, topics.ACTION_CHUNK, topics.NEWEST_QOS, self._keep(self.chunks))
        self._raw(JointState, topics.JOINT_COMMAND, topics.COMMAND_QOS, self._keep(self.commands))
        self._raw(msg.ExecutorStatus, topics.EXECUTOR_STATUS, topics.COMMAND_QOS, self._on_status)
        self._raw(JointState, joint_states_topic, qos_profile_sensor_data, self._keep(self.joint_states))
        self._raw(Image, camera_topic, qos_profile_sensor_data, self._keep(self.camera, length=16))
        self._raw(Clock, "/clock", qos_profile_sensor_data, self._keep(self.clock))
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 20)
        self._set_instruction = self.create_client(srv.SetInstruction, topics.SET_INSTRUCTION)

    def set_instruction(self, instruction: str, timeout: float) -> srv.SetInstruction.Response:
        """Calls the service. Another thread must spin this node.

        Raises:
            TimeoutError: no answer in time [s].
        """
        deadline = time.monotonic() + timeout
        if not self._set_instruction.wait_for_service(timeout):
            raise TimeoutError(f"no service {topics.SET_INSTRUCTION} within {timeout:g} s: is the executor running?")
        done = threading.Event()
        future = self._set_instruction.call_async(srv.SetInstruction.Request(instruction=instruction))
        future.add_done_callback(lambda _: done.set())
        if not done.wait(max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"service {topics.SET_INSTRUCTION} did not answer within {timeout:g} s")
        return future.result()

    def _raw(self, kind, topic, qos, callback) -> None:
        self.create_subscription(kind, topic, callback, qos, raw=True)

    def _keep(self, store: list[Arrival], length: int | None = None):
        def keep(data: bytes) -> None:
            if self.recording.is_set():
                store.append(Arrival(time.monotonic(), data[:length]))

        return keep

    def _on_observation(self, data: bytes) -> None:
        self.first_observation.set()
        if not self.recording.is_set():
            return
        arrival = Arrival(time.monotonic(), data)
        if not self.frames or arrival.stamp >= self.frames[-1].stamp + self._frame_period:
            self.frames.append(arrival)
        self.observations.append(Arrival(arrival.wall, data[:16]))

    def _on_status(self, data: bytes) -> None:
        arrival = Arrival(time.monotonic(), data)
        if self.recording.is_set():
            self.statuses.append(arrival)
        elif not self.executing.is_set():
            status = deserialize_message(data, msg.ExecutorStatus)
            if status.state == msg.ExecutorStatus.EXECUTING:
                self.executing.set()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.diagnostics[status.name] = {
                "message": status.message,
                **{value.key: value.value for value in status.values},
            }
