"""Recordings in rosbag2's formats, written and read without ROS.

encode       serialised messages, made from numbers and text
definitions  the definition of a message type, as a recording carries it
qos          a publisher's quality of service, as a recording carries it
writer       a recording in the making: nothing older than a second is lost to a kill
"""

from ki_ros.data.bag.definitions import Definition, DefinitionError, message_definition
from ki_ros.data.bag.qos import qos_profile
from ki_ros.data.bag.writer import BagWriteError, BagWriter

__all__ = [
    "BagWriteError",
    "BagWriter",
    "Definition",
    "DefinitionError",
    "message_definition",
    "qos_profile",
]
