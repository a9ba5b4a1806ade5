"""The fused engine with layers that torch compiles."""

from __future__ import annotations

import torch

from ki_ros.model.engine import layers
from ki_ros.model.engine.fused import FusedEngine
from ki_ros.model.model import KIModel


class CompiledEngine(FusedEngine):
    """Each kind of layer is compiled once, for any length; weights are its arguments.

    Args:
        model, num_steps, bucket: see `FusedEngine`.
    """

    name = "compiled"

    def __init__(self, model: KIModel, num_steps: int, *, bucket: int = 1) -> None:
        # The compiler does not know the blocked layout.
        super().__init__(model, num_steps, bucket=bucket, blocked=False)
        self._vision_layer = torch.compile(layers.vision_layer, fullgraph=True)
        self._backbone_layer = torch.compile(layers.backbone_layer, fullgraph=True, dynamic=True)
        self._expert_layer = torch.compile(layers.expert_layer, fullgraph=True, dynamic=True)
