"""Node `observation`: cameras, joints and gripper sampled at one rate, published as one message.

Sensor messages wait, serialised, in the middleware's queues until a tick takes them all at once; only those that are
sampled are decoded. A tick whose streams are stale or too far apart publishes nothing: the reason is counted in
diagnostics, and said in the log when it changes.
"""

from __future__ import annotations

import array
import ctypes
import difflib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import cv2
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState

from ki_ros import rig
from ki_ros.images import ImageError, UnknownEncodingError
from ki_ros.msg import Epoch, Observation, ObservationStatus
from ki_ros.nodes.diagnostics import ERROR, OK, WARN, Diagnostics, Report
from ki_ros.nodes.parameters import declare, parameter
from ki_ros.nodes.polling import subscribe_polled, take_waiting
from ki_ros.nodes.run import pacing_clock, run, uses_sim_time
from ki_ros.nodes.stamps import NANOSECONDS, to_message
from ki_ros.nodes.topics import (
    EPOCH,
    JOINT_COMMAND,
    LATCHED_QOS,
    NEWEST_QOS,
    OBSERVATION,
    OBSERVATION_STATUS,
    SENSOR_QOS,
)
from ki_ros.observation.rig_streams import (
    IMAGE_DEPTH,
    JOINT_DEPTH,
    STAMP_SOURCES,
    TRANSPORTS,
    CameraStream,
    ImageKind,
    RigSampler,
    RigStreams,
    Source,
    state_of,
)
from ki_ros.observation.sampler import Reason, Refusal, Sample
from ki_ros.rig import CameraRole

_DEFAULTS = RigStreams()

_START_UP_SECONDS = 2.0

_AHEAD_SECONDS = 0.02
"""Messages that are stamped by more than this after they arrive come from a clock that is ahead of this machine's: when
they are sampled they are older than they look, by as much."""

_REPEAT_SECONDS = 5.0


@dataclass
class Exterior1Parameters:
    """The camera over the robot's left shoulder."""

    topic: str = parameter(
        _DEFAULTS.cameras[CameraRole.EXTERIOR_1].topic,
        "Topic of its images, empty: not used. Compressed images are on this topic with /compressed behind it",
    )
    transport: str = parameter(
        "raw", "raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage", choices=tuple(TRANSPORTS)
    )
    max_age: float = parameter(CameraStream.max_age, "Its image is at most this old [s]", low=0.001, high=10.0)


@dataclass
class Exterior2Parameters(Exterior1Parameters):
    """The camera over the robot's right shoulder."""

    topic: str = parameter("", "Topic of its images, empty: not used")


@dataclass
class WristParameters(Exterior1Parameters):
    """The camera on the gripper."""

    topic: str = parameter(_DEFAULTS.cameras[CameraRole.WRIST].topic, "Topic of its images, empty: not used")


@dataclass
class Parameters:
    """Parameters of the node; their defaults are those of `RigStreams`."""

    exterior_1: Exterior1Parameters
    exterior_2: Exterior2Parameters
    wrist: WristParameters
    robot: str = parameter(_DEFAULTS.robot, "Whose joint names hold", choices=tuple(rig.ROBOTS))
    rate: float = parameter(_DEFAULTS.rate, "Observations a second", low=0.1, high=200.0)
    image_size: int = parameter(_DEFAULTS.image_size, "Side of the square views [pixels]", low=14, high=1024)
    joint_states_topic: str = parameter(_DEFAULTS.joint_states_topic, "Topic of the arm's joint states")
    joint_states_max_age: float = parameter(
        _DEFAULTS.joint_states_max_age, "The arm's state is at most this old [s]", low=0.001, high=10.0
    )
    gripper_topic: str = parameter(
        _DEFAULTS.gripper_topic, "Topic of the gripper's joint state; it may be the same as the arm's"
    )
    gripper_max_age: float = parameter(
        _DEFAULTS.gripper_max_age, "The gripper's state is at most this old [s]", low=0.001, high=10.0
    )
    max_spread: float = parameter(
        _DEFAULTS.max_spread, "The samples of an observation are stamped within this time [s]", low=0.001, high=10.0
    )
    stamp_source: str = parameter(
        _DEFAULTS.stamp_source,
        "header: samples have the time in their headers; arrival: the time of arrival, for drivers that do not stamp",
        choices=STAMP_SOURCES,
    )

    def streams(self) -> RigStreams:
        """What is sampled. Raises RigStreamsError where the values do not go together."""
        values = {f.name: getattr(self, f.name) for f in fields(RigStreams) if f.name != "cameras"}
        every = {role: getattr(self, role.value) for role in CameraRole}
        cameras = {role: CameraStream(**vars(camera)) for role, camera in every.items() if camera.topic}
        return RigStreams(cameras=cameras, **values)


@dataclass
class _Subscribed:
    """A subscription, and what is known about what came in through it."""

    source: Source
    type: type
    qos: QoSProfile
    subscription: Any = None
    received: int = 0
    latencies: deque = field(default_factory=lambda: deque(maxlen=512))
    warned: float = float("-inf")


class ObservationNode(Node):
    """Everything runs in the executor's thread.

    Raises:
        ParameterError: a parameter that is unknown or has a value that it cannot have.
        ValueError: no camera is used, or two have the same topic.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("observation", **options)
        self._streams = streams = declare(self, Parameters).streams()
        self._robot = rig.robot(streams.robot)
        self._sequence = 0
        self._epoch = Epoch()
        self._rig = RigSampler(streams, convert=self._convert_with_cv_bridge)
        self._sampler = self._rig.sampler
        self._subscribed = [_subscribed(source) for source in self._rig.sources.values()]
        self._carrier = {stream: each for each in self._subscribed for stream in each.source.streams}
        self._images: dict[str, ImageKind] = {}
        self._started = time.monotonic()
        self._reported = (0, 0, self._started)
        self._refusal: Refusal | None = None
        self._said: tuple[tuple[Reason, str] | None, float] = (None, float("-inf"))
        self._cv_bridge: Any = None

        self._publisher = self.create_publisher(Observation, OBSERVATION, NEWEST_QOS)
        self._status_publisher = self.create_publisher(ObservationStatus, OBSERVATION_STATUS, NEWEST_QOS)
        self._epoch_subscription = self.create_subscription(Epoch, EPOCH, self._on_epoch, LATCHED_QOS)
        for each in self._subscribed:
            each.subscription = subscribe_polled(self, each.type, each.source.topic, each.qos)
        self._tick_timer = self.create_timer(1.0 / streams.rate, self.tick, clock=pacing_clock(self))
        components = {"observation": self._report_observation}
        components |= {name: self._stream_reporter(name) for name in self._carrier}
        self._diagnostics = Diagnostics(self, components)
        self._watch_timer = self.create_timer(1.0, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))
        topics = ", ".join(f"{each.source.name} {self._resolved(each)}" for each in self._subscribed)
        self.get_logger().info(f"sampling a {streams.robot} at {streams.rate:g} Hz: {topics}")

    def _resolved(self, subscribed: _Subscribed) -> str:
        return self.resolve_topic_name(subscribed.source.topic)

    # Messages

    def _on_epoch(self, message: Epoch) -> None:
        if message.id < self._epoch.id:
            self.get_logger().warning(
                f"epoch {message.id} is older than the present one, {self._epoch.id}, and ignored; "
                "make sure that one executor runs; if its machine's clock was set back, start this node again"
            )
            return
        self._epoch = message

    def _take_all(self) -> None:
        """Takes every waiting message from the middleware."""
        simulated = uses_sim_time(self)
        for each in self._subscribed:
            for raw, info in take_waiting(each.subscription, each.type):
                # The middleware's time of arrival is system time, of no use beside simulated stamps.
                arrival = 0 if simulated else info["received_timestamp"]
                arrival = arrival or self.get_clock().now().nanoseconds
                each.received += 1
                stamp = self._rig.accept(each.source.topic, raw, arrival)
                if stamp:
                    each.latencies.append(arrival - stamp)

    def _convert_with_cv_bridge(self, raw: bytes, error: UnknownEncodingError) -> np.ndarray:
        # cv_bridge is optional: its binary build fails in various ways beside a NumPy that it was not built for.
        try:
            if self._cv_bridge is None:
                from cv_bridge import CvBridge

                self._cv_bridge = CvBridge()
            return np.ascontiguousarray(self._cv_bridge.imgmsg_to_cv2(deserialize_message(raw, Image), "rgb8"))
        except Exception as failure:
            reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
            raise ImageError(f"{error}; cv_bridge, which knows more, cannot help: {reason}") from failure

    # Observations

    def tick(self) -> None:
        """Takes what has arrived and publishes the observation of now, or notes why there is none."""
        reference = self.get_clock().now().nanoseconds
        self._take_all()
        result = self._sampler.sample(reference)
        self._publish_status(reference, result)
        self._say_images()
        if isinstance(result, Refusal):
            self._refusal = result
            self._say(result)
            return
        self._publish(result)
        if self._refusal is not None:
            self.get_logger().info("observations are complete")
            self._refusal, self._said = None, (None, float("-inf"))

    def _publish(self, sample: Sample) -> None:
        self._sequence += 1
        message = Observation(sequence=self._sequence, epoch=self._epoch.id, instruction=self._epoch.instruction)
        message.header.stamp = to_message(sample.reference_ns)
        size = self._streams.image_size
        for role in self._streams.cameras:
            sampled = sample.streams[role.value]
            view = Image(height=size, width=size, encoding="rgb8", step=3 * size)
            view.header.stamp = to_message(sampled.stamp_ns)
            view.header.frame_id = role.value
            # An array is taken over as it is; of any other sequence every byte would be checked.
            view.data = array.array("B", sampled.value.tobytes())
            message.views.append(view)
        message.state = state_of(sample)
        message.state_names = list(self._robot.state_names)
        message.streams, message.ages = list(sample.streams), _ages(sample)
        self._publisher.publish(message)

    def _publish_status(self, reference: int, result: Sample | Refusal) -> None:
        message = ObservationStatus(complete=isinstance(result, Sample))
        message.header.stamp = to_message(reference)
        if isinstance(result, Refusal):
            message.reason, message.stream, message.message = result.reason.value, result.stream, result.message
        else:
            message.streams, message.ages = list(result.streams), _ages(result)
        self._status_publisher.publish(message)

    def _say_images(self) -> None:
        """Says in the log what a camera's images are like, when that changes."""
        for name, kind in self._rig.images.items():
            if kind != self._images.get(name):
                self._images[name] = kind
                self.get_logger().info(f"{name}: images are {kind.width}x{kind.height} {kind.encoding}")

    def _say(self, refusal: Refusal) -> None:
        now = time.monotonic()
        # Discovery takes a moment, in which nothing is wrong.
        if refusal.reason is Reason.NEVER_RECEIVED and now - self._started < _START_UP_SECONDS:
            return
        said, when = self._said
        kind = (refusal.reason, refusal.stream)
        if now - when > (_REPEAT_SECONDS if kind == said else 1.0):
            self._said = (kind, now)
            self.get_logger().warning(f"no observation: {refusal.message}")

    # Diagnostics

    def _watch(self) -> None:
        """Says in the log when a topic has no publisher, or none that fits."""
        now = time.monotonic()
        for each in self._subscribed:
            problem = self._publisher_problem(each)
            if problem and now - each.warned > _REPEAT_SECONDS:
                each.warned = now
                self.get_logger().warning(f"{each.source.name}: {problem}")

    def _publisher_problem(self, subscribed: _Subscribed) -> str:
        """Why nothing can arrive through a subscription, as far as the graph tells; empty when something can."""
        topic, source = self._resolved(subscribed), subscribed.source
        publishers = self.get_publishers_info_by_topic(topic)
        if not publishers:
            return f"nobody publishes {topic}; start the driver, or correct {source.setting}{self._near(source, topic)}"
        types = sorted({publisher.topic_type for publisher in publishers})
        if source.type_name not in types:
            return (
                f"{topic} has messages of type {', '.join(types)}, expected {source.type_name}; "
                f"correct {source.setting}" + (" or the transport" if subscribed.type is not JointState else "")
            )
        fitting = [publisher for publisher in publishers if publisher.topic_type == source.type_name]
        checks = [qos_check_compatible(publisher.qos_profile, subscribed.qos) for publisher in fitting]
        if all(compatibility is QoSCompatibility.ERROR for compatibility, _ in checks):
            return f"the publisher of {topic} has a quality of service that does not fit: {checks[0][1]}"
        return ""

    def _near(self, source: Source, topic: str) -> str:
        """The topics of that type that somebody publishes and that sound alike, as the end of a sentence."""
        # Commands are joint states by type, but never measurements.
        unfit = {topic, self.resolve_topic_name(JOINT_COMMAND)}
        others = [
            name
            for name, types in self.get_topic_names_and_types()
            if source.type_name in types and name not in unfit and self.count_publishers(name)
        ]
        if not others:
            return ""
        near = difflib.get_close_matches(topic, others, n=3, cutoff=0.0)
        return f"; of type {source.type_name} there is {', '.join(near)}"

    def _report_observation(self) -> Report:
        # Also drains the queues while simulated time, and with it the ticks, stands still.
        self._take_all()
        sampler, refused = self._sampler, sum(self._sampler.refused.values())
        published_before, refused_before, then = self._reported
        now = time.monotonic()
        new, new_refused = sampler.sampled - published_before, refused - refused_before
        self._reported = (sampler.sampled, refused, now)
        values = {"published": sampler.sampled, "refused": refused, "rate": new / max(now - then, 1e-3)}
        for (reason, stream), count in sorted(sampler.refused.items()):
            values[f"refused_{reason.value}" + (f"_{stream}" if stream else "")] = count
        values["clock_set_back"] = sampler.clock_steps_back
        values["epoch"] = self._epoch.id
        if uses_sim_time(self) and self.get_clock().now().nanoseconds == 0:
            return Report(
                ERROR, "simulated time does not pass: nothing on /clock; start it, or set use_sim_time to false", values
            )
        if self._refusal is not None and not new:
            return Report(ERROR, self._refusal.message, values)
        if new_refused and self._refusal is not None:
            return Report(WARN, f"{new_refused} refused lately: {self._refusal.message}", values)
        if new_refused:
            return Report(WARN, f"{new_refused} refused lately, complete again", values)
        if not new:
            return Report(WARN, "no ticks: the clock stands still", values)
        return Report(OK, f"{new} published in {now - then:.1f} s", values)

    def _stream_reporter(self, name: str) -> Callable[[], Report]:
        counted = {"accepted": 0, "rejected": 0, "time": time.monotonic()}

        def report() -> Report:
            carrier, sampler = self._carrier[name], self._sampler
            accepted, rejected = sampler.accepted(name), sum(sampler.rejected(name).values())
            now = time.monotonic()
            new, new_rejected = accepted - counted["accepted"], rejected - counted["rejected"]
            rate = new / max(now - counted["time"], 1e-3)
            counted.update(accepted=accepted, rejected=rejected, time=now)
            values = {"topic": self._resolved(carrier), "received": carrier.received, "rate": rate}
            newest = sampler.newest_ns(name)
            if newest is not None:
                values["age_ms"] = (self.get_clock().now().nanoseconds - newest) / 1e6
            if carrier.latencies:
                median, high = np.percentile(carrier.latencies, (50, 99)) / 1e6
                values |= {"latency_ms_p50": float(median), "latency_ms_p99": float(high)}
            if name in self._rig.images:
                kind = self._rig.images[name]
                values |= {"encoding": kind.encoding, "resolution": f"{kind.width}x{kind.height}"}
            values |= {f"rejected_{reason.value}": n for reason, n in sampler.rejected(name).items()}
            values["source_clock_set_back"] = sampler.steps_back(name)
            return self._judge(name, carrier, new, new_rejected, values)

        return report

    def _judge(self, name: str, carrier: _Subscribed, new: int, new_rejected: int, values: dict[str, Any]) -> Report:
        if not new:
            problem = self._publisher_problem(carrier)
            if problem:
                return Report(ERROR, problem, values)
        if new_rejected:
            rejection = self._sampler.last_rejection(name)
            sentence = f"{new_rejected} messages were of no use ({rejection.reason.value}): {rejection.detail}"
            return Report(WARN if new else ERROR, sentence, values)
        if self._refusal is not None and self._refusal.stream == name:
            return Report(ERROR, self._refusal.message, values)
        if not new:
            return Report(WARN, "nothing arrived in the last second", values)
        if (ahead := -values.get("latency_ms_p50", 0.0) / 1e3) > _AHEAD_SECONDS:
            return Report(
                WARN,
                f"its messages are stamped {ahead:.3f} s after they arrive, so that samples are older than they look; "
                "synchronise the clocks of the two machines (chrony, PTP)",
                values,
            )
        return Report(OK, f"{values['rate']:.1f} Hz", values)


_TYPES = {
    "sensor_msgs/msg/Image": (Image, IMAGE_DEPTH),
    "sensor_msgs/msg/CompressedImage": (CompressedImage, IMAGE_DEPTH),
    "sensor_msgs/msg/JointState": (JointState, JOINT_DEPTH),
}


def _subscribed(source: Source) -> _Subscribed:
    kind, depth = _TYPES[source.type_name]
    qos = QoSProfile(
        history=SENSOR_QOS.history,
        depth=depth,
        reliability=SENSOR_QOS.reliability,
        durability=SENSOR_QOS.durability,
    )
    return _Subscribed(source, kind, qos)


def _ages(sample: Sample) -> array.array:
    return array.array("d", [sampled.age_ns / NANOSECONDS for sampled in sample.streams.values()])


def keep_freed_memory() -> None:
    """Makes the C library keep the memory of freed images for the next ones, instead of giving it back.

    Fresh pages for every image of some megabytes cost more than copying it. Only glibc has the setting.
    """
    trim_threshold, mmap_threshold, mebibyte = -1, -3, 1 << 20
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(mmap_threshold, 32 * mebibyte)
    mallopt(trim_threshold, 256 * mebibyte)


def main() -> None:
    """Entry point of the executable `observation`."""
    keep_freed_memory()
    # Images are converted in less time than it takes to wake other threads for them.
    cv2.setNumThreads(1)
    run(ObservationNode)


if __name__ == "__main__":
    main()
