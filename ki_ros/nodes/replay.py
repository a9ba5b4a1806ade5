"""Publishes a recorded episode on the topics of the rig's drivers, and counts what the graph makes of it."""

from __future__ import annotations

import array
import math
import time

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.timer import Timer
from sensor_msgs.msg import Image, JointState

from ki_ros import msg, rig, srv
from ki_ros.data.droid import Episode
from ki_ros.nodes import stamps, topics
from ki_ros.nodes.executor_watch import ExecutorWatch
from ki_ros.rig import CameraRole

CAMERA_TOPICS = {role: f"/camera/{role.value}/image_raw" for role in CameraRole}
JOINT_STATES_TOPIC = "/joint_states"
GRIPPER_TOPIC = "/gripper/joint_states"


class ReplayNode(Node):
    """Replays at the recording's 15 Hz, stamped with the time of publication. All methods belong to one thread.

    Nothing is published before `lead_in`: what is recorded must not come among what is measured of an arm that moves by
    it, so `objection` is to be asked first, and `interruption` from then on.

    Attributes:
        step: the next step to publish; the episode's length when it is over.
        observed: steps that came back in an observation.
        chunks: chunks that answered one of the episode's observations.
        finite_chunks: those of them whose every value is finite.
        inference_ms: their inference times [ms].
    """

    def __init__(self, episode: Episode, robot: rig.Robot) -> None:
        super().__init__("replay")
        self.step = 0
        self.observed: set[int] = set()
        self.chunks = 0
        self.finite_chunks = 0
        self.inference_ms: list[float] = []
        self._episode = episode
        self._robot = robot
        self._stamps: dict[int, int] = {}
        self._observation_stamps: set[int] = set()
        self._newest_observation: float | None = None
        self._answered = False
        self._begun = False
        self._images = {
            role: self.create_publisher(Image, CAMERA_TOPICS[role], topics.SENSOR_QOS) for role in episode.image_files
        }
        self._joints = self.create_publisher(JointState, JOINT_STATES_TOPIC, topics.COMMAND_QOS)
        self._gripper = self.create_publisher(JointState, GRIPPER_TOPIC, topics.COMMAND_QOS)
        self.create_subscription(msg.Observation, topics.OBSERVATION, self._on_observation, topics.NEWEST_QOS)
        self.create_subscription(msg.ActionChunk, topics.ACTION_CHUNK, self._on_chunk, topics.NEWEST_QOS)
        self.set_instruction = self.create_client(srv.SetInstruction, topics.SET_INSTRUCTION)
        self._executor = ExecutorWatch(self)
        self._timer: Timer | None = None

    def objection(self) -> str | None:
        """Why nothing may be published now, and the remedy: a rig or a simulator that is running, or an executor that
        is enabled. None where there is neither, as far as discovery has told."""
        publishers = [*self._images.values(), self._joints, self._gripper]
        others = [p.topic_name for p in publishers if self.count_publishers(p.topic_name) > 1]
        if others:
            return f"somebody else publishes on {', '.join(others)}; stop the rig or the simulator first"
        return self._executor.objection()

    def interruption(self) -> str | None:
        """Why no more may be published, and the remedy: an executor that has been enabled meanwhile."""
        status = self._executor.newest()
        return None if status is None or status.state == msg.ExecutorStatus.DISABLED else self._executor.objection()

    def lead_in(self) -> None:
        """From now on the first step is published again and again, until `begin`."""
        self._timer = self.create_timer(1.0 / rig.CONTROL_HZ, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def observing(self) -> bool:
        """Whether the graph makes observations of what this node publishes."""
        return self._newest_observation is not None

    @property
    def answered(self) -> bool:
        """Whether the policy answers what this node publishes."""
        return self._answered

    @property
    def over(self) -> bool:
        """Whether every step has been published."""
        return self.step == len(self._episode)

    def begin(self) -> None:
        """Ends the lead-in and begins with the episode.

        Steps are published in the middle between two observations: the graph samples at the same rate, and jitter must
        not make it see one step twice and the next one never.
        """
        period = 1.0 / rig.CONTROL_HZ
        since = time.monotonic() - self._newest_observation
        delay = (0.5 * period - since) % period
        self._timer.cancel()
        self.destroy_timer(self._timer)
        time.sleep(delay)
        self._begun = True
        self._timer = self.create_timer(period, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _tick(self) -> None:
        if self.over:
            return
        now = self.get_clock().now().nanoseconds
        self._publish(self.step, now)
        if self._begun:
            self._stamps[now] = self.step
            self.step += 1

    def _publish(self, step: int, now: int) -> None:
        stamp = stamps.to_message(now)
        for role, publisher in self._images.items():
            pixels = self._episode.image(role, step)
            image = Image(height=pixels.shape[0], width=pixels.shape[1], encoding="rgb8", step=3 * pixels.shape[1])
            image.header.stamp = stamp
            image.header.frame_id = f"{role.value}_optical_frame"
            image.data = array.array("B", pixels.tobytes())
            publisher.publish(image)
        *joints, closedness = self._episode.states[step].tolist()
        state = JointState(name=list(self._robot.joint_names), position=joints)
        state.header.stamp = stamp
        self._joints.publish(state)
        gripper = JointState(name=[rig.GRIPPER_JOINT], position=[rig.gripper_angle(closedness)])
        gripper.header.stamp = stamp
        self._gripper.publish(gripper)

    def _on_observation(self, message: msg.Observation) -> None:
        self._newest_observation = time.monotonic()
        # A step has become an observation only if every view is of that step.
        steps = {self._stamps.get(stamps.from_message(view.header.stamp)) for view in message.views}
        if len(steps) == 1 and None not in steps:
            self.observed |= steps
            self._observation_stamps.add(stamps.from_message(message.header.stamp))

    def _on_chunk(self, message: msg.ActionChunk) -> None:
        self._answered = True
        if stamps.from_message(message.header.stamp) not in self._observation_stamps:
            return
        self.chunks += 1
        self.finite_chunks += all(map(math.isfinite, message.actions))
        self.inference_ms.append(message.inference_time * 1e3)
