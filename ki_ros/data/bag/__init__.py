"""Recordings in rosbag2's formats, written and read without ROS.

    encode       serialised messages, made from numbers and text
    definitions  the definition of a message type, as a recording carries it
    qos          a publisher's quality of service, as a recording carries it
    writer       a recording in the making: nothing older than a second is lost to a kill
    reader       a recording, whatever its storage and state, in order of time
    damage       what is wrong with it and what is lost by that

Below the reader are one file's records (`mcap_file`, `sqlite_file`), `metadata` and `schema`, which notice
contradictions, `compression`, and `blocks`, which keep the order of time with little in memory.
"""

from ki_ros.data.bag.damage import BagError, Damage
from ki_ros.data.bag.definitions import Definition, DefinitionError, message_definition
from ki_ros.data.bag.qos import qos_profile
from ki_ros.data.bag.reader import Bag, Message, bag_name, find_bags, open_bag
from ki_ros.data.bag.topic import Topic
from ki_ros.data.bag.writer import BagWriteError, BagWriter

__all__ = [
    "Bag",
    "BagError",
    "BagWriteError",
    "BagWriter",
    "Damage",
    "Definition",
    "DefinitionError",
    "Message",
    "Topic",
    "bag_name",
    "find_bags",
    "message_definition",
    "open_bag",
    "qos_profile",
]
