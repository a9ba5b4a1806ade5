"""What is missing is named, with the remedy."""

import ctypes.util
import importlib.util
from types import SimpleNamespace

import pytest

from ki_ros.sim import SimulatedRig, SimulationUnavailableError
from ki_ros.sim.render import resolve_backend


def without(monkeypatch, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))


def test_a_missing_mujoco_is_named(monkeypatch):
    without(monkeypatch, "mujoco")
    with pytest.raises(SimulationUnavailableError, match="'mujoco' is not installed; run scripts/setup"):
        SimulatedRig()


@pytest.mark.usefixtures("physics")
def test_a_missing_model_is_named(monkeypatch, tmp_path):
    without(monkeypatch, "gym_hil")
    with pytest.raises(SimulationUnavailableError, match="'gym-hil', which is not installed; run scripts/setup"):
        SimulatedRig()
    empty = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: empty)
    with pytest.raises(SimulationUnavailableError, match=r"has no .*panda\.xml; install it again"):
        SimulatedRig()


@pytest.mark.parametrize(("backend", "package"), [("osmesa", "libosmesa6"), ("egl", "libegl1")])
def test_a_missing_graphics_library_is_named(monkeypatch, backend, package):
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    with pytest.raises(SimulationUnavailableError, match=f"apt-get install {package}"):
        resolve_backend(backend)
