"""Who else records: of two recorders each would record every episode, so there must be one alone."""

from __future__ import annotations

from collections import Counter

from rclpy.node import Node, NodeNameNonExistentError

from ki_ros.nodes.discovery import UNNAMED, full_name


def other_recorders(node: Node, service: str, own: str) -> list[str]:
    """Full names of the nodes that answer a recorder's service beside one of them: a name twice where it has two.

    Args:
        node: to look from.
        service: resolved name of start_episode.
        own: full name of the node that is not meant.
    """
    if node.count_services(service) < 2:
        return []
    found: Counter[str] = Counter()
    for name, namespace in node.get_node_names_and_namespaces():
        try:
            answered = {service for service, _ in node.get_service_names_and_types_by_node(name, namespace)}
        except NodeNameNonExistentError:
            continue
        if service in answered:
            found[full_name(name, namespace)] += 1
    # One of these is the recorder itself; of those that are left another may have its name.
    found -= Counter([own])
    return sorted(found.elements()) or [UNNAMED]


def company(node: Node, service: str, own: str) -> str | None:
    """What is wrong where there are other recorders, and the remedy; None where there are none. Arguments as above."""
    others = other_recorders(node, service, own)
    if not others:
        return None
    return (
        f"another recorder ({', '.join(others)}) answers {service}, and both would record the episode; end all but one "
        "(`record` of `ki-ros up` and of the launch file starts one, `ki-ros record` does). One that was killed counts "
        "until its DDS lease ends (20 s)"
    )
