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
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState

from ki_ros import rig
from ki_ros.images import ImageError, UnknownEncodingError, decompress, to_rgb
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
from ki_ros.observation import (
    CdrError,
    JointRouter,
    ObservationSampler,
    Reason,
    Refusal,
    Sample,
    StreamSpec,
    cdr,
    gripper_state,
    joint_positions,
)
from ki_ros.resize import resize_with_pad
from ki_ros.rig import CameraRole

JOINT_STATES = "joint_states"
GRIPPER = "gripper"

# Messages that wait for a tick. Cameras of 60 Hz send four between two ticks at 15 Hz, robot drivers of 1 kHz 67.
_IMAGE_DEPTH = 8
_JOINT_DEPTH = 256

_START_UP_SECONDS = 2.0
_REPEAT_SECONDS = 5.0


@dataclass
class Exterior1Parameters:
    """The camera over the robot's left shoulder."""

    topic: str = parameter(
        "/camera/exterior_1/image_raw",
        "Topic of its images, empty: not used. Compressed images are on this topic with /compressed behind it",
    )
    transport: str = parameter(
        "raw", "raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage", choices=("raw", "compressed")
    )
    max_age: float = parameter(0.15, "Its image is at most this old [s]", low=0.001, high=10.0)


@dataclass
class Exterior2Parameters(Exterior1Parameters):
    """The camera over the robot's right shoulder."""

    topic: str = parameter("", "Topic of its images, empty: not used")


@dataclass
class WristParameters(Exterior1Parameters):
    """The camera on the gripper."""

    topic: str = parameter("/camera/wrist/image_raw", "Topic of its images, empty: not used")


@dataclass
class Parameters:
    """Parameters of the node."""

    exterior_1: Exterior1Parameters
    exterior_2: Exterior2Parameters
    wrist: WristParameters
    robot: str = parameter("panda", "Whose joint names hold", choices=tuple(rig.ROBOTS))
    rate: float = parameter(rig.CONTROL_HZ, "Observations a second", low=0.1, high=200.0)
    image_size: int = parameter(224, "Side of the square views [pixels]", low=14, high=1024)
    joint_states_topic: str = parameter("/joint_states", "Topic of the arm's joint states")
    joint_states_max_age: float = parameter(0.1, "The arm's state is at most this old [s]", low=0.001, high=10.0)
    gripper_topic: str = parameter(
        "/gripper/joint_states", "Topic of the gripper's joint state; it may be the same as the arm's"
    )
    gripper_max_age: float = parameter(0.25, "The gripper's state is at most this old [s]", low=0.001, high=10.0)
    max_spread: float = parameter(
        0.15, "The samples of an observation are stamped within this time [s]", low=0.001, high=10.0
    )
    stamp_source: str = parameter(
        "header",
        "header: samples have the time in their headers; arrival: the time of arrival, for drivers that do not stamp",
        choices=("header", "arrival"),
    )

    def cameras(self) -> dict[CameraRole, Exterior1Parameters]:
        """The cameras that are used, by role."""
        every = {role: getattr(self, role.value) for role in CameraRole}
        return {role: camera for role, camera in every.items() if camera.topic}


@dataclass
class _Source:
    """A subscription, and what is known about what came in through it.

    Attributes:
        name: of the stream, or of the first of its streams.
        setting: the parameter that holds the topic.
        accept: called with every serialised message, its stamp and the time of its arrival [ns].
    """

    name: str
    topic: str
    setting: str
    type: type
    qos: QoSProfile
    accept: Callable[[bytes, int], None]
    subscription: Any = None
    received: int = 0
    latencies: deque = field(default_factory=lambda: deque(maxlen=512))
    describe: dict[str, Any] = field(default_factory=dict)
    counted: tuple[int, float] = (0, 0.0)
    warned: float = float("-inf")

    @property
    def type_name(self) -> str:
        package, _, rest = self.type.__module__.partition(".")
        return f"{package}/{rest.split('.')[0]}/{self.type.__name__}"


class ObservationNode(Node):
    """Everything runs in the executor's thread.

    Raises:
        ParameterError: a parameter that is unknown or has a value that it cannot have.
        ValueError: no camera is used, or two have the same topic.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("observation", **options)
        self._p = p = declare(self, Parameters)
        self._robot = rig.robot(p.robot)
        if not p.cameras():
            raise ValueError("no camera is used: set exterior_1.topic, exterior_2.topic or wrist.topic")
        self._sequence = 0
        self._epoch = Epoch()
        self._sources: dict[str, _Source] = {}
        self._source_of: dict[str, _Source] = {}
        specs = [self._create_camera(role) for role in p.cameras()]
        specs += self._create_joints()
        self._sampler = ObservationSampler(specs, _ns(p.max_spread))
        self._started = time.monotonic()
        self._reported = (0, 0, self._started)
        self._refusal: Refusal | None = None
        self._said: tuple[tuple[Reason, str] | None, float] = (None, float("-inf"))
        self._cv_bridge: Any = None

        self._publisher = self.create_publisher(Observation, OBSERVATION, NEWEST_QOS)
        self._status_publisher = self.create_publisher(ObservationStatus, OBSERVATION_STATUS, NEWEST_QOS)
        self._epoch_subscription = self.create_subscription(Epoch, EPOCH, self._on_epoch, LATCHED_QOS)
        for source in self._sources.values():
            source.subscription = subscribe_polled(self, source.type, source.topic, source.qos)
        self._tick_timer = self.create_timer(1.0 / p.rate, self.tick, clock=pacing_clock(self))
        components = {"observation": self._report_observation}
        components |= {name: self._stream_reporter(name) for name in self._source_of}
        self._diagnostics = Diagnostics(self, components)
        self._watch_timer = self.create_timer(1.0, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))
        topics = ", ".join(f"{source.name} {self._resolved(source)}" for source in self._sources.values())
        self.get_logger().info(f"sampling a {p.robot} at {p.rate:g} Hz: {topics}")

    # Set-up

    def _create_camera(self, role: CameraRole) -> StreamSpec:
        camera = self._p.cameras()[role]
        name, compressed = role.value, camera.transport == "compressed"
        topic = camera.topic
        if compressed and not topic.endswith("/compressed"):
            topic += "/compressed"
        source = _Source(
            name,
            topic,
            f"{name}.topic",
            CompressedImage if compressed else Image,
            _queue(_IMAGE_DEPTH),
            lambda raw, stamp: self._sampler.add(name, stamp, raw),
        )
        if topic in self._sources:
            raise ValueError(
                f"{self._sources[topic].setting} and {name}.topic are both {topic}; give each its own topic"
            )
        self._sources[topic] = source
        self._source_of[name] = source
        decode = self._decode_compressed if compressed else self._decode_raw
        return StreamSpec(
            name,
            _ns(camera.max_age),
            lambda raw: decode(source, raw),
            capacity=_IMAGE_DEPTH,
            topic=topic,
            age_setting=f"{name}.max_age",
        )

    def _create_joints(self) -> list[StreamSpec]:
        p, joints = self._p, self._robot.joint_names
        needs: dict[str, dict[str, tuple[str, ...]]] = {}
        needs.setdefault(p.joint_states_topic, {})[JOINT_STATES] = joints
        needs.setdefault(p.gripper_topic, {})[GRIPPER] = (rig.GRIPPER_JOINT,)
        for topic, streams in needs.items():
            router = JointRouter(streams)
            first = next(iter(streams))
            accept = self._joint_accepter(router)
            setting = "joint_states_topic" if first == JOINT_STATES else "gripper_topic"
            source = _Source(first, topic, setting, JointState, _queue(_JOINT_DEPTH), accept)
            self._sources[topic] = source
            self._source_of |= dict.fromkeys(streams, source)
        return [
            StreamSpec(
                JOINT_STATES,
                _ns(p.joint_states_max_age),
                lambda raw: joint_positions(raw, joints),
                capacity=_JOINT_DEPTH,
                topic=p.joint_states_topic,
                age_setting="joint_states_max_age",
            ),
            StreamSpec(
                GRIPPER,
                _ns(p.gripper_max_age),
                gripper_state,
                capacity=_JOINT_DEPTH,
                topic=p.gripper_topic,
                age_setting="gripper_max_age",
            ),
        ]

    def _joint_accepter(self, router: JointRouter) -> Callable[[bytes, int], None]:
        def accept(raw: bytes, stamp: int) -> None:
            for stream, reason, detail in router.route(raw):
                if reason is None:
                    self._sampler.add(stream, stamp, raw)
                else:
                    self._sampler.reject(stream, reason, detail)

        return accept

    def _resolved(self, source: _Source) -> str:
        return self.resolve_topic_name(source.topic)

    # Messages

    def _on_epoch(self, message: Epoch) -> None:
        if message.id < self._epoch.id:
            self.get_logger().warning(
                f"epoch {message.id} is older than the present one, {self._epoch.id}, and ignored; "
                "make sure that one executor runs"
            )
            return
        self._epoch = message

    def _take_all(self) -> None:
        """Takes every waiting message from the middleware."""
        by_header = self._p.stamp_source == "header"
        simulated = uses_sim_time(self)
        for source in self._sources.values():
            for raw, info in take_waiting(source.subscription, source.type):
                # The middleware's time of arrival is system time, of no use beside simulated stamps.
                arrival = 0 if simulated else info["received_timestamp"]
                arrival = arrival or self.get_clock().now().nanoseconds
                self._accept(source, raw, arrival, by_header)

    def _accept(self, source: _Source, raw: bytes, arrival: int, by_header: bool) -> None:
        source.received += 1
        try:
            stamp = cdr.stamp_ns(raw)
            if stamp:
                source.latencies.append(arrival - stamp)
            source.accept(raw, stamp if by_header else arrival)
        except CdrError as error:
            for name, other in self._source_of.items():
                if other is source:
                    self._sampler.reject(name, Reason.UNDECODABLE, str(error))

    def _decode_raw(self, source: _Source, raw: bytes) -> np.ndarray:
        image = cdr.read_image(raw)
        try:
            pixels = to_rgb(
                encoding=image.encoding, height=image.height, width=image.width, step=image.step, data=image.data
            )
        except UnknownEncodingError as error:
            pixels = self._convert_with_cv_bridge(raw, error)
        return self._view(source, pixels, image.encoding)

    def _decode_compressed(self, source: _Source, raw: bytes) -> np.ndarray:
        image = cdr.read_compressed_image(raw)
        return self._view(source, decompress(image.data, image.format), image.format)

    def _view(self, source: _Source, pixels: np.ndarray, encoding: str) -> np.ndarray:
        height, width, _ = pixels.shape
        described = {"encoding": encoding, "resolution": f"{width}x{height}"}
        if described != source.describe:
            self.get_logger().info(f"{source.name}: images are {width}x{height} {encoding}")
            source.describe = described
        return resize_with_pad(pixels, self._p.image_size)

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
        size = self._p.image_size
        for role in self._p.cameras():
            sampled = sample.streams[role.value]
            view = Image(height=size, width=size, encoding="rgb8", step=3 * size)
            view.header.stamp = to_message(sampled.stamp_ns)
            view.header.frame_id = role.value
            # An array is taken over as it is; of any other sequence every byte would be checked.
            view.data = array.array("B", sampled.value.tobytes())
            message.views.append(view)
        positions, closedness = sample.streams[JOINT_STATES].value, sample.streams[GRIPPER].value
        message.state = np.append(positions, closedness)
        message.state_names = list(self._robot.state_names)
        message.streams = list(sample.streams)
        message.ages = array.array("d", [sampled.age_ns / NANOSECONDS for sampled in sample.streams.values()])
        self._publisher.publish(message)

    def _publish_status(self, reference: int, result: Sample | Refusal) -> None:
        message = ObservationStatus(complete=isinstance(result, Sample))
        message.header.stamp = to_message(reference)
        if isinstance(result, Refusal):
            message.reason, message.stream, message.message = result.reason.value, result.stream, result.message
        self._status_publisher.publish(message)

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
        for source in self._sources.values():
            problem = self._publisher_problem(source)
            if problem and now - source.warned > _REPEAT_SECONDS:
                source.warned = now
                self.get_logger().warning(f"{source.name}: {problem}")

    def _publisher_problem(self, source: _Source) -> str:
        """Why nothing can arrive through a subscription, as far as the graph tells; empty when something can."""
        topic = self._resolved(source)
        publishers = self.get_publishers_info_by_topic(topic)
        if not publishers:
            return f"nobody publishes {topic}; start the driver, or correct {source.setting}{self._near(source, topic)}"
        types = sorted({publisher.topic_type for publisher in publishers})
        if source.type_name not in types:
            return (
                f"{topic} has messages of type {', '.join(types)}, expected {source.type_name}; "
                f"correct {source.setting}" + (" or the transport" if source.type is not JointState else "")
            )
        fitting = [publisher for publisher in publishers if publisher.topic_type == source.type_name]
        checks = [qos_check_compatible(publisher.qos_profile, source.qos) for publisher in fitting]
        if all(compatibility is QoSCompatibility.ERROR for compatibility, _ in checks):
            return f"the publisher of {topic} has a quality of service that does not fit: {checks[0][1]}"
        return ""

    def _near(self, source: _Source, topic: str) -> str:
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
            source, sampler = self._source_of[name], self._sampler
            accepted, rejected = sampler.accepted(name), sum(sampler.rejected(name).values())
            now = time.monotonic()
            new, new_rejected = accepted - counted["accepted"], rejected - counted["rejected"]
            rate = new / max(now - counted["time"], 1e-3)
            counted.update(accepted=accepted, rejected=rejected, time=now)
            values = {"topic": self._resolved(source), "received": source.received, "rate": rate}
            newest = sampler.newest_ns(name)
            if newest is not None:
                values["age_ms"] = (self.get_clock().now().nanoseconds - newest) / 1e6
            if source.latencies:
                median, high = np.percentile(source.latencies, (50, 99)) / 1e6
                values |= {"latency_ms_p50": float(median), "latency_ms_p99": float(high)}
            values |= source.describe
            values |= {f"rejected_{reason.value}": n for reason, n in sampler.rejected(name).items()}
            values["source_clock_set_back"] = sampler.steps_back(name)
            return self._judge(name, source, new, new_rejected, values)

        return report

    def _judge(self, name: str, source: _Source, new: int, new_rejected: int, values: dict[str, Any]) -> Report:
        if not new:
            problem = self._publisher_problem(source)
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
        return Report(OK, f"{values['rate']:.1f} Hz", values)


def _queue(depth: int) -> QoSProfile:
    return QoSProfile(
        history=SENSOR_QOS.history,
        depth=depth,
        reliability=SENSOR_QOS.reliability,
        durability=SENSOR_QOS.durability,
    )


def _ns(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


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
