"""Where the robot's MJCF and meshes come from, and what to do when they are missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path


class SimulationUnavailableError(RuntimeError):
    """Something that the simulator needs is not installed; the message names it and the remedy."""


def require_mujoco() -> None:
    """Raises SimulationUnavailableError when the `mujoco` wheel is not installed."""
    if importlib.util.find_spec("mujoco") is None:
        raise SimulationUnavailableError(
            "the Python package 'mujoco' is not installed; run scripts/setup, or: pip install 'mujoco>=3.2,<3.9'"
        )


def asset_directory() -> Path:
    """Directory with the Panda's and the Robotiq 2F-85's MJCF and meshes (`panda.xml`).

    They are read as files from the gym-hil wheel, whose Python modules are never imported: those need keyboard and
    gamepad packages that have nothing to do with the model.

    Raises SimulationUnavailableError when the wheel, or the model in it, is missing.
    """
    spec = importlib.util.find_spec("gym_hil")
    if spec is None or not spec.submodule_search_locations:
        raise SimulationUnavailableError(
            "the robot's model comes with the wheel 'gym-hil', which is not installed; run scripts/setup, or: "
            "pip install --no-deps gym-hil"
        )
    directory = Path(spec.submodule_search_locations[0]) / "assets"
    if not (directory / "panda.xml").is_file():
        raise SimulationUnavailableError(
            f"the installed 'gym-hil' has no {directory / 'panda.xml'}; "
            "install it again: pip install --no-deps --force-reinstall gym-hil"
        )
    return directory
