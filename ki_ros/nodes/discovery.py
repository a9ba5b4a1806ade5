"""What a node may not know of others yet."""

from __future__ import annotations

LOOK_SECONDS = 5.0
"""How long after its start a node may not know of all others: Fast DDS repeats what was lost of discovery after 3 s."""

UNNAMED = "a node of unknown name"
"""The name of a node may become known later than its publishers and services do."""


def full_name(name: str, namespace: str) -> str:
    """Of a node; `UNNAMED` where its name is not known yet."""
    return UNNAMED if "UNKNOWN" in name else f"{namespace.rstrip('/')}/{name}"
