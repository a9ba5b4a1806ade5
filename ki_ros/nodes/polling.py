"""Subscriptions that a node takes messages from when it wants them, instead of being woken by each one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription


class _PolledGroup(CallbackGroup):
    """Keeps the executor away from its entities: nothing of them is in the wait set, no message wakes the process.

    That holds for the subscriptions' events too: while a message is waiting to be taken, an event handler in the wait
    set would wake it again and again.
    """

    def can_execute(self, entity: Any) -> bool:  # noqa: ARG002
        return False

    def beginning_execution(self, entity: Any) -> bool:  # noqa: ARG002
        return False

    def ending_execution(self, entity: Any) -> None:
        pass


def subscribe_polled(node: Node, kind: type, topic: str, qos: QoSProfile) -> Subscription:
    """A subscription whose messages wait in the middleware's queue, `qos.depth` at most, for `take_waiting`."""
    return node.create_subscription(kind, topic, _never_called, qos, callback_group=_PolledGroup(), raw=True)


def take_waiting(subscription: Subscription, kind: type) -> Iterator[tuple[bytes, dict[str, int]]]:
    """The messages that wait, oldest first: serialised, with the middleware's information (`received_timestamp` [ns]).

    At most twice the queue's depth, so that a publisher that is faster than the caller's loop cannot keep it forever.
    """
    for _ in range(2 * subscription.qos_profile.depth):
        with subscription.handle:
            taken = subscription.handle.take_message(kind, True)
        if taken is None:
            return
        yield taken


def _never_called(_message: bytes) -> None:
    raise AssertionError("a polled subscription has no callback")
