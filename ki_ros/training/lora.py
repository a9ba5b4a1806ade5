"""Low-rank adapters (arXiv 2106.09685) in the linear layers of either side, by peft."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ki_ros.model.model import KIModel
from ki_ros.training.config import LoRAConfig

_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."
_LAYERS = {
    "language": r".*paligemma\.model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    "expert": r".*gemma_expert\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
}


def add_adapters(model: KIModel, config: LoRAConfig) -> None:
    """Puts adapters into the model; of the parts that have them, nothing else is trained from then on.

    Raises:
        ValueError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora is given, but peft is not installed; pip install 'peft>=0.15,<1'") from error
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    pattern = "|".join(f"(?:{_LAYERS[part]})" for part in config.parts)
    inject_adapter_in_model(
        LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=pattern), model
    )
    parts = tuple(part_prefix(part) for part in config.parts)
    for name, parameter in model.named_parameters():
        # peft freezes all that it has not made; what lies outside the parts keeps the choice that was made for it.
        adapter = _DOWN in name or _UP in name
        parameter.requires_grad_(adapter or (name in trained and not name.startswith(parts)))


def part_prefix(part: str) -> str:
    """What the names of a part's parameters begin with."""
    backbone = "paligemma_with_expert.paligemma.model."
    return {
        "vision": f"{backbone}vision_tower.",
        "projector": f"{backbone}multi_modal_projector.",
        "language": f"{backbone}language_model.",
        "expert": "paligemma_with_expert.gemma_expert.",
    }[part]


def merge(tensors: Mapping[str, Tensor], config: LoRAConfig | None) -> dict[str, Tensor]:
    """Weights by openpi's names: `W + B A * alpha / rank` where there is an adapter."""
    merged = {}
    for name, tensor in tensors.items():
        if _DOWN in name or _UP in name:
            continue
        if _BASE in name:
            assert config is not None
            down, up = (tensors[name.replace(_BASE, kind)] for kind in (_DOWN, _UP))
            tensor = tensor + (up.to(tensor.dtype) @ down.to(tensor.dtype)) * (config.alpha / config.rank)
        merged[name.replace(_BASE, ".")] = tensor
    return merged
