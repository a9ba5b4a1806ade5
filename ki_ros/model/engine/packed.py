"""The model's weights as the engines read them: projections of the same input are one matrix.

The model's own parameters become views of the packed ones, so that both cost the memory of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ki_ros.model.backbone import BackboneLayer
from ki_ros.model.engine.product import Product, product
from ki_ros.model.expert import ExpertLayer
from ki_ros.model.layers import AttentionProjections, GatedMLP
from ki_ros.model.model import KIModel


@dataclass(frozen=True)
class VisionWeights:
    """A layer of SigLIP: gain and bias of both norms; query, key and value as one."""

    norm1: tuple[Tensor, Tensor]
    qkv: Product
    out: Product
    norm2: tuple[Tensor, Tensor]
    up: Product
    down: Product


@dataclass(frozen=True)
class LayerWeights:
    """A layer of backbone or expert.

    Attributes:
        qkv: query, key and value, W to (N + 2 K) * H; key and value alone where nothing else is read.
        out, gate_up, down: the other projections; None where nothing else is read.
        gains: of the two norms, 1 + weight, (W,) float32; None where they are modulated.
    """

    qkv: Product
    out: Product | None
    gate_up: Product | None
    down: Product | None
    gains: tuple[Tensor, Tensor] | None = None


def vision_layers(model: KIModel, blocked: bool) -> list[VisionWeights]:
    """Of SigLIP. `blocked`: see `product`."""
    layers = []
    rows = 2 * model.config.vision.tokens
    for layer in model.paligemma_with_expert.backbone.vision_tower.vision_model.encoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        layers.append(
            VisionWeights(
                norm1=_affine(layer.layer_norm1),
                qkv=product(
                    pack([p.weight for p in projections]), rows, pack([p.bias for p in projections]), blocked=blocked
                ),
                out=product(attention.out_proj.weight.data, rows, attention.out_proj.bias.data, blocked=blocked),
                norm2=_affine(layer.layer_norm2),
                up=product(mlp.fc1.weight.data, rows, mlp.fc1.bias.data, blocked=blocked),
                down=product(mlp.fc2.weight.data, rows, mlp.fc2.bias.data, blocked=blocked),
            )
        )
    return layers


def backbone_layers(model: KIModel, blocked: bool) -> list[LayerWeights]:
    """Of the language backbone; of the last layer, what makes keys and values. `blocked`: see `product`."""
    *layers, last = model.paligemma_with_expert.backbone.language_model.layers
    rows = 2 * model.config.vision.tokens + 64
    # Packed as all the others, so that a layer's parameters lie alike whichever it is.
    kv = _qkv(last.self_attn)[len(last.self_attn.q_proj.weight) :]
    gains = (1 + last.input_layernorm.weight.data.float(),) * 2
    only = LayerWeights(product(kv, rows, blocked=blocked), None, None, None, gains)
    return [*(_layer(layer, rows, blocked) for layer in layers), only]


def expert_layers(model: KIModel, blocked: bool) -> list[LayerWeights]:
    """Of the action expert. `blocked`: see `product`."""
    rows = model.config.action_horizon
    return [_layer(layer, rows, blocked) for layer in model.paligemma_with_expert.expert.layers]


def pack(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The parameters, one below the other; each becomes a view of its part. Packed before, they are only found."""
    whole = _whole(parameters)
    if whole is not None:
        return whole
    packed = torch.cat([parameter.data for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = packed[start : start + len(parameter)]
        start += len(parameter)
    return packed


def _whole(parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """What these are the parts of, in this order; None where they are not of one piece."""
    first = parameters[0].data
    pointer, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for parameter in parameters:
        data = parameter.data
        if data.data_ptr() != pointer or not data.is_contiguous() or data.untyped_storage().data_ptr() != storage:
            return None
        pointer += data.numel() * data.element_size()
    shape = (sum(len(parameter) for parameter in parameters), *first.shape[1:])
    return first.as_strided(shape, first.stride())


def _layer(layer: BackboneLayer | ExpertLayer, rows: int, blocked: bool) -> LayerWeights:
    attention: AttentionProjections = layer.self_attn
    mlp: GatedMLP = layer.mlp
    plain = isinstance(layer, BackboneLayer)
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return LayerWeights(
        qkv=product(_qkv(attention), rows, blocked=blocked),
        out=product(attention.o_proj.weight.data, rows, blocked=blocked),
        gate_up=product(pack([mlp.gate_proj.weight, mlp.up_proj.weight]), rows, blocked=blocked),
        down=product(mlp.down_proj.weight.data, rows, blocked=blocked),
        gains=tuple(1 + norm.weight.data.float() for norm in norms) if plain else None,
    )


def _qkv(attention: AttentionProjections) -> Tensor:
    return pack([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])


def _affine(module: nn.Module) -> tuple[Tensor, Tensor]:
    return module.weight.data, module.bias.data
