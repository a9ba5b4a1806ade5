"""From streams of serialised messages to an observation at a reference time, or the reason there is none. No ROS here.

    cdr          fields of serialised messages, without the message classes
    joints       joint states matched by joint name
    buffer       the messages of one stream, in order of their stamps
    sampler      every stream sampled at one time
    rig_streams  which streams a rig has, and the sampler of them

A live graph and a recording are sampled by the same code. Nothing here is safe to use from several threads at once.
"""

from ki_ros.observation.buffer import StreamBuffer
from ki_ros.observation.cdr import CdrError
from ki_ros.observation.joints import JointError, JointRouter, gripper_state, joint_positions
from ki_ros.observation.rig_streams import CameraStream, RigSampler, RigStreams, RigStreamsError
from ki_ros.observation.sampler import ObservationSampler, Reason, Refusal, Rejection, Sample, Sampled, StreamSpec

__all__ = [
    "CameraStream",
    "CdrError",
    "JointError",
    "JointRouter",
    "ObservationSampler",
    "Reason",
    "Refusal",
    "Rejection",
    "RigSampler",
    "RigStreams",
    "RigStreamsError",
    "Sample",
    "Sampled",
    "StreamBuffer",
    "StreamSpec",
    "gripper_state",
    "joint_positions",
]
