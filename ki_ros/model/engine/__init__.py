"""Engines: one interface to sample action chunks, and several ways to do it as fast as the device allows."""

from __future__ import annotations

from ki_ros.model.engine.check import BOUNDS, Deviation, compare, random_input, verify
from ki_ros.model.engine.compiled import CompiledEngine
from ki_ros.model.engine.engine import Engine, EngineError, ReferenceEngine
from ki_ros.model.engine.fused import FusedEngine
from ki_ros.model.engine.graph import GraphEngine
from ki_ros.model.model import KIModel

_KINDS = {kind.name: kind for kind in (ReferenceEngine, FusedEngine, CompiledEngine, GraphEngine)}

ENGINES = tuple(_KINDS)

__all__ = [
    "BOUNDS",
    "ENGINES",
    "CompiledEngine",
    "Deviation",
    "Engine",
    "EngineError",
    "FusedEngine",
    "GraphEngine",
    "ReferenceEngine",
    "compare",
    "make_engine",
    "random_input",
    "verify",
]


def make_engine(name: str, model: KIModel, num_steps: int) -> Engine:
    """An engine for a model in evaluation mode.

    Args:
        name: one of `ENGINES`; "auto" for the fastest on the model's device.
        model: its parameters may be repacked, see `packed`.
        num_steps: of the integration.

    Raises:
        EngineError: an unknown name, or an engine that the model's device cannot run.
    """
    if name == "auto":
        name = "graph" if model.device.type == "cuda" else "fused"
    if name not in _KINDS:
        raise EngineError(f"engine {name!r} is not known; use auto or one of {', '.join(ENGINES)}")
    return _KINDS[name](model, num_steps)
