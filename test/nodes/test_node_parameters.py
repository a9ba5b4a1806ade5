"""Parameters from dataclasses: types, ranges, and no misspelt key without an error."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node

from ki_ros.nodes.parameters import ParameterError, declare, parameter


@dataclass
class Camera:
    topic: str = parameter("", "Image topic")


@dataclass
class Parameters:
    wrist: Camera
    rate: float = parameter(15.0, "Rate [Hz]", low=1.0, high=60.0)
    count: int = parameter(2, "How many", low=0)
    mode: str = parameter("a", "Mode", choices=("a", "b"))
    names: list[str] = parameter(["x"], "Names")


@pytest.fixture
def declared():
    contexts, nodes = [], []

    def create(*arguments: str) -> Parameters:
        context = Context()
        rclpy.init(args=["--ros-args", *(part for a in arguments for part in ("-p", a))], context=context)
        contexts.append(context)
        node = Node("camera_node", context=context)
        nodes.append(node)
        return declare(node, Parameters)

    yield create
    for node in nodes:
        node.destroy_node()
    for context in contexts:
        context.shutdown()


def test_defaults(declared):
    assert declared() == Parameters(wrist=Camera(""), rate=15.0, count=2, mode="a", names=["x"])


def test_values_and_nested_names(declared):
    values = declared("rate:=20", "wrist.topic:=/w", "mode:=b", "names:=[p, q]")
    assert values == Parameters(wrist=Camera("/w"), rate=20.0, count=2, mode="b", names=["p", "q"])
    assert isinstance(values.rate, float)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rte:=3", r"'camera_node' has no parameter 'rte'; did you mean 'rate'"),
        ("wrist.topc:=/w", r"did you mean 'wrist.topic'"),
        ("zebra:=1", r"the keys are count, mode, names, rate, wrist.topic"),
        ("rate:=200.0", r"'rate'.*200.*\[1.0, 60.0\]"),
        ("rate:=fast", r"'rate'.*'fast'.*double"),
        ("count:=-1", r"'count'.*-1"),
        ("mode:=c", r"'mode'.*'c'.*a, b"),
    ],
)
def test_a_wrong_key_or_value_is_named(declared, argument, message):
    with pytest.raises(ParameterError, match=message):
        declared(argument)
