"""Quality of service of a recorded topic, in the form in which rosbag2 keeps it."""

from __future__ import annotations

import yaml

_INFINITE = {"sec": 9_223_372_036, "nsec": 854_775_807}


def qos_profile(*, reliable: bool = True, latched: bool = False, depth: int = 10) -> str:
    """The YAML text of one publisher's profile. `latched`: late subscribers get the last messages (transient local)."""
    profile = {
        "history": "keep_last",
        "depth": depth,
        "reliability": "reliable" if reliable else "best_effort",
        "durability": "transient_local" if latched else "volatile",
        "deadline": _INFINITE.copy(),
        "lifespan": _INFINITE.copy(),
        "liveliness": "automatic",
        "liveliness_lease_duration": _INFINITE.copy(),
        "avoid_ros_namespace_conventions": False,
    }
    return yaml.safe_dump([profile], sort_keys=False).strip()
