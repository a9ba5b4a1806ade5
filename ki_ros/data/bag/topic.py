"""A topic of a recording."""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """A topic as the recording declares it.

    `type_name` is such as "sensor_msgs/msg/Image", `serialization_format` "cdr" or another middleware's, `qos` the
    publishers' profiles as YAML and `definition` the type's definition as text, or "" where they are not known.
    """

    name: str
    type_name: str
    serialization_format: str
    qos: str = ""
    definition: str = ""
