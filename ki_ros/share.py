"""Where the files that ship with the package lie: in a clone, or in an installation."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def share_roots() -> list[Path]:
    """Directories that may hold `config`, `launch` and `models`, in the order in which to look."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    roots = [Path(prefix, "share", "ki_ros") for prefix in prefixes if prefix]
    clone = Path(__file__).resolve().parents[1]
    if (clone / "package.xml").is_file():
        # Else it is site-packages, where a directory called launch or models is somebody else's.
        roots.insert(0, clone)
    return roots


PACKAGE = "package://ki_ros/"
"""What the path of a file that ships begins with, as ROS has it for any package."""


def locate(path: str | Path) -> Path:
    """The path itself; of one such as `package://ki_ros/models/ki_tiny`, the directory that ships.

    Raises:
        FileNotFoundError: as `find_share`.
    """
    text = str(path)
    return find_share(*text.removeprefix(PACKAGE).split("/")) if text.startswith(PACKAGE) else Path(path)


def find_share(*parts: str) -> Path:
    """The directory `parts` of the package, such as ("models", "ki_tiny").

    Raises:
        FileNotFoundError: it is nowhere; the message lists the places.
    """
    places = [root.joinpath(*parts) for root in share_roots()]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"ki_ros has no {'/'.join(parts)} at {', '.join(map(str, places))}; build or install the package"
    )
