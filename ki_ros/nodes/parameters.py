"""A node's parameters as a dataclass: one declaration gives name, type, default, description and range.

    @dataclass
    class Parameters:
        rate: float = parameter(15.0, "Rate of observations [Hz]", low=1.0, high=60.0)

    parameters = declare(node, Parameters)

Nested dataclasses become dotted names. A key that is not declared is refused, so a misspelt one cannot silently leave a
default in place.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

T = TypeVar("T")

_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    list[str]: Parameter.Type.STRING_ARRAY,
    list[float]: Parameter.Type.DOUBLE_ARRAY,
}

# Keys that rclpy itself reads from a parameter file.
_RCLPY_KEYS = ("use_sim_time", "start_type_description_service", "qos_overrides")


class ParameterError(ValueError):
    """A parameter that is unknown, or has a value that it cannot have. The message names node, key, value and fix."""


def parameter(
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: typing.Sequence[str] | None = None,
    read_only: bool = True,
) -> Any:
    """A field of a parameter dataclass. `low` and `high` are inclusive; `choices` are the strings that are allowed.

    One that is not `read_only` may be set while the node runs, which then has to look for it.
    """
    metadata = {"description": description, "low": low, "high": high, "choices": choices, "read_only": read_only}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declare(node: Node, cls: type[T]) -> T:
    """Declares every field of `cls` on the node and returns the values.

    Values are read once: they are read-only while the node runs, except where a field says otherwise.

    Raises:
        ParameterError: a key that `cls` does not have, a value of a wrong type, or one out of its range.
    """
    names: set[str] = set()
    values = _declare(node, cls, "", names)
    for key in node._parameter_overrides:
        if key in names or key.split(".")[0] in _RCLPY_KEYS:
            continue
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(sorted(names))}"
        raise ParameterError(f"node {node.get_name()!r} has no parameter {key!r}; {hint}")
    return values


def _declare(node: Node, cls: type[T], prefix: str, names: set[str]) -> T:
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = _declare(node, hints[field.name], name + ".", names)
            continue
        names.add(name)
        values[field.name] = _declare_one(node, name, hints[field.name], field)
    return cls(**values)


def _declare_one(node: Node, name: str, hint: type, field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        default = field.default
    else:
        default = field.default_factory()
    kind = _TYPES[hint]
    low, high, choices = (field.metadata.get(key) for key in ("low", "high", "choices"))
    description, read_only = field.metadata.get("description", ""), field.metadata.get("read_only", True)
    descriptor = ParameterDescriptor(description=description, read_only=read_only)
    if choices:
        descriptor.additional_constraints = "one of: " + ", ".join(choices)
    if hint is int and low is not None and high is not None:
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
    if hint is float and low is not None and high is not None:
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    override = node._parameter_overrides.get(name)
    if override is not None and kind is Parameter.Type.DOUBLE and override.type_ is Parameter.Type.INTEGER:
        # YAML writes 15.0 as 15; a whole number is a fine value for a real parameter.
        node._parameter_overrides[name] = Parameter(name, Parameter.Type.DOUBLE, float(override.value))
    if override is not None and kind is Parameter.Type.DOUBLE_ARRAY and override.type_ is Parameter.Type.INTEGER_ARRAY:
        node._parameter_overrides[name] = Parameter(name, kind, [float(value) for value in override.value])
    where = f"node {node.get_name()!r}, parameter {name!r}"
    try:
        value = node.declare_parameter(name, Parameter(name, kind, default).value, descriptor).value
    except InvalidParameterTypeException as error:
        raise ParameterError(f"{where}: {override.value!r} is not of type {kind.name.lower()}") from error
    except InvalidParameterValueException as error:
        given = default if override is None else override.value
        raise ParameterError(f"{where}: {given!r} is refused; it must be within [{low}, {high}]") from error
    if choices and value not in choices:
        raise ParameterError(f"{where}: {value!r} is not one of {', '.join(choices)}")
    for bound, wrong in ((low, lambda: value < low), (high, lambda: value > high)):
        if bound is not None and not isinstance(value, list) and wrong():
            raise ParameterError(f"{where}: {value!r} is out of [{low}, {high}]")
    return list(value) if hint in (list[str], list[float]) else value
