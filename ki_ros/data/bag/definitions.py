"""Definitions of message types, as a recording carries them.

A definition is the type's .msg file and those of all types in it. Where they come from: the installed packages
(share/PACKAGE/msg), so that a recording made on a robot has that robot's; else the types that the `rosbags` library
brings, so that a machine without ROS can write recordings too. The definitions of this package's own messages are
always at hand.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from ki_ros.share import share_roots

_SEPARATOR = "=" * 80
_TYPE_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*/msg/[a-zA-Z][a-zA-Z0-9_]*")
_BUILT_IN = {
    *("bool", "byte", "char", "float32", "float64", "string", "wstring"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


class DefinitionError(ValueError):
    """There is no definition of a message type; the message says which and where it was looked for."""


class Definition(NamedTuple):
    """A message type's definition in the encoding `ros2msg`, and its REP 2011 hash ("RIHS01_...")."""

    text: str
    type_hash: str


@functools.cache
def message_definition(type_name: str) -> Definition:
    """The definition of a message type such as "sensor_msgs/msg/Image".

    Raises:
        DefinitionError: no such type is installed or known.
    """
    if not _TYPE_NAME.fullmatch(type_name):
        raise DefinitionError(
            f"{type_name!r} is no message type; expected PACKAGE/msg/NAME, as in sensor_msgs/msg/Image"
        )
    text = _installed(type_name)
    if text is None:
        text = _known(type_name)
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg(text, type_name))
    return Definition(text, store.hash_rihs01(type_name))


def _installed(type_name: str) -> str | None:
    """The text from .msg files, or None where the type or one in it has no file."""
    root = _msg_file(type_name)
    if root is None:
        return None
    texts = {type_name: root}
    waiting = _types_in(root, type_name)
    while waiting:
        name = waiting.pop(0)
        if name in texts:
            continue
        text = _msg_file(name)
        if text is None:
            try:
                # The bundled definition of a part brings all of its own parts.
                text, *parts = _known(name).split(f"{_SEPARATOR}\nMSG: ")
            except DefinitionError:
                return None
            for part in parts:
                part_name, _, part_text = part.partition("\n")
                texts.setdefault(_full_name(part_name.strip(), name), part_text)
        texts[name] = text
        waiting += _types_in(text, name)
    first, *others = texts.items()
    return first[1] + "".join(f"\n{_SEPARATOR}\nMSG: {name.replace('/msg/', '/')}\n{text}" for name, text in others)


def _msg_file(type_name: str) -> str | None:
    package, _, name = type_name.split("/")
    if package == "ki_ros":
        folders = [root / "msg" for root in share_roots()]
    else:
        prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
        folders = [Path(prefix, "share", package, "msg") for prefix in prefixes if prefix]
    for folder in folders:
        path = folder / f"{name}.msg"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return None


def _known(type_name: str) -> str:
    try:
        text, _ = _bundled().generate_msgdef(type_name, ros_version=2)
    except Exception as error:  # the library names several exceptions for a type that it lacks
        raise DefinitionError(
            f"no definition of message type {type_name!r}: package {type_name.split('/')[0]!r} is in none of the "
            f"directories of AMENT_PREFIX_PATH; source the workspace that has it"
        ) from error
    return text


@functools.cache
def _bundled() -> Typestore:
    return get_typestore(Stores.ROS2_JAZZY)


def _types_in(text: str, inside: str) -> list[str]:
    """Full names of the message types that a .msg file's fields have."""
    found = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        base = re.split(r"[\[<]", words[0], maxsplit=1)[0]
        if base not in _BUILT_IN:
            found.append(_full_name(base, inside))
    return found


def _full_name(name: str, inside: str) -> str:
    """`name` as a field of a message of type `inside` has it, in the form PACKAGE/msg/NAME."""
    parts = name.split("/")
    package = parts[0] if len(parts) > 1 else inside.split("/")[0]
    return f"{package}/msg/{parts[-1]}"
