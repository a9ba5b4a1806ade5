"""Views and prompt by the kernels of `prefix.cu`, and the products of torch's library.

Shapes: V views, P tokens of a view, T prefix tokens, W width, N heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.engine.cuda.memory import Memory
from ki_ros.model.engine.cuda.module import Argument, Compiler, Launch, Launcher
from ki_ros.model.engine.packed import LayerWeights, VisionWeights
from ki_ros.model.model import KIModel
from ki_ros.model.observation import pixel_values

ROW_THREADS, MOST_WIDTH, THREADS, ROTATED_ROWS, ROTATED_PARTS = 128, 3072, 256, 8, 6
"""As in `prefix.cu`."""


def prefix_unsupported(config: KIConfig) -> str | None:
    """Why the kernels cannot compute this backbone; None where they can."""
    for name, value in (("vision.width", config.vision.width), ("language.width", config.language.width)):
        if value % 8 or value > MOST_WIDTH:
            return f"{name} is {value}, not a multiple of 8 up to {MOST_WIDTH}"
    for name, value, multiple in (
        ("vision.mlp", config.vision.mlp, 8),
        ("language.mlp", config.language.mlp, 8),
        ("language.head_dim", config.language.head_dim, 16),
        ("width of a vision head", config.vision.width // config.vision.heads, 8),
    ):
        if value % multiple:
            return f"{name} is {value}, not a multiple of {multiple}"
    return None


def compile_prefix(config: KIConfig, compile: Compiler) -> Launcher:
    """`prefix.cu` for that configuration."""
    return compile("prefix.cu", {"KV_HEADS": config.language.kv_heads, "HEAD_DIM": config.language.head_dim})


class PrefixKernels:
    """Keys and values of an observation.

    Args:
        model: whose configuration is not `prefix_unsupported`, in bfloat16.
        vision, language: its packed weights.
        memory: where keys and values go.
        kernels: see `compile_prefix`.
    """

    def __init__(
        self,
        model: KIModel,
        vision: Sequence[VisionWeights],
        language: Sequence[LayerWeights],
        memory: Memory,
        kernels: Launcher,
    ) -> None:
        self._config, self._vision, self._language = model.config, vision, language
        self._memory, self._kernels = memory, kernels
        self._backbone = model.paligemma_with_expert.backbone
        tower = self._backbone.vision_tower.vision_model
        embedding = tower.embeddings.patch_embedding
        patches = embedding.weight.detach().flatten(1)
        # A product wants rows of whole 16 bytes.
        self._patches = F.pad(patches, (0, -patches.shape[1] % 8))
        self._positions = (tower.embeddings.position_embedding.weight + embedding.bias).detach()
        self._norm = tower.post_layernorm.weight.detach(), tower.post_layernorm.bias.detach()

    def encode(self, images: Tensor, tokens: Tensor, count: Tensor, *, kept: bool) -> Iterator[int]:
        """Writes keys and values; gives each layer's number as soon as its own are written.

        Args:
            images: (V, 3, S, S), see `Observation`.
            tokens: (n,) int64, of which the first `count` count; the keys and values of the others mean nothing.
            count: int64, no dimension.
            kept: see `Memory.cache`.
        """
        x = torch.cat((self.encode_views(images), self._backbone.language_model.embed(tokens)))
        seen = F.pad((count + len(x) - len(tokens)).to(torch.int32)[None], (1, 0))
        language, rows = self._config.language, ctypes.c_int(len(x))
        every = torch.arange(0, len(x) + 1, len(x), dtype=torch.int32, device=x.device)
        width, last = ctypes.c_int(language.width), len(self._language) - 1
        for layer, weights in enumerate(self._language):
            normed = torch.empty_like(x)
            self._start("rms_norm", x, weights.gains[0], normed, width, grid=(len(x), 1))
            projected = F.linear(normed, weights.qkv.weight)
            self._start(
                "rotate_prefix",
                projected,
                self._memory.cosines,
                self._memory.sines,
                self._memory.cache(layer, kept=kept),
                rows,
                ctypes.c_int(0 if layer == last else language.heads),
                grid=(-(-len(x) // ROTATED_ROWS), ROTATED_PARTS),
                block=THREADS,
            )
            yield layer
            if layer == last:
                return
            x.addmm_(self._attend(projected, every, seen), weights.out.weight.t())
            self._start("rms_norm", x, weights.gains[1], normed, width, grid=(len(x), 1))
            both = F.linear(normed, weights.gate_up.weight)
            hidden = both.new_empty(len(x), language.mlp)
            grid = -(-language.mlp // (8 * THREADS)), len(x)
            self._start("gated_gelu", both, hidden, ctypes.c_int(language.mlp), grid=grid, block=THREADS)
            x.addmm_(hidden, weights.down.weight.t())

    def encode_views(self, images: Tensor) -> Tensor:
        """Views (V, 3, S, S) as tokens of the backbone (V * P, W)."""
        config, views = self._config.vision, len(images)
        side, grid = config.patch_size, config.image_size // config.patch_size
        patches = images.new_zeros((views * config.tokens, self._patches.shape[1]), dtype=torch.bfloat16)
        split = pixel_values(images).reshape(views, 3, grid, side, grid, side).permute(0, 2, 4, 1, 3, 5)
        patches[:, : 3 * side**2].view(split.shape).copy_(split)
        x = F.linear(patches, self._patches)
        x.view(views, config.tokens, -1).add_(self._positions)
        normed = torch.empty_like(x)
        for weights in self._vision:
            self._layer_norm(x, weights.norm1, weights.out.bias, normed)
            projected = F.linear(normed, weights.qkv.weight, weights.qkv.bias)
            heads = projected.view(views, config.tokens, 3, config.heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).reshape(x.shape)
            x.addmm_(attended, weights.out.weight.t())
            self._layer_norm(x, weights.norm2, weights.down.bias, normed)
            hidden = _gelu_product(normed, weights.up.weight, weights.up.bias)
            x.addmm_(hidden, weights.down.weight.t())
        self._layer_norm(x, self._norm, None, normed)
        return self._backbone.multi_modal_projector(normed)

    def _layer_norm(self, x: Tensor, norm: tuple[Tensor, Tensor], bias: Tensor | None, normed: Tensor) -> None:
        self._start("layer_norm", x, *norm, bias, normed, ctypes.c_int(x.shape[1]), grid=(len(x), 1))

    def _attend(self, projected: Tensor, every: Tensor, seen: Tensor) -> Tensor:
        """Queries up to `every` (0, T), keys up to `seen` (0, tokens): (T, N * H), of projected (T, (N + 2 K) * H)."""
        language, length = self._config.language, len(projected)
        split = projected.view(length, -1, language.head_dim)
        q, k, v = split.split((language.heads, language.kv_heads, language.kv_heads), dim=1)
        scale = language.head_dim**-0.5
        if projected.is_cuda:
            flash = torch.ops.aten._flash_attention_forward
            return flash(q, k, v, every, seen, length, length, 0.0, False, False, scale=scale)[0].flatten(1)
        mask = torch.arange(length)[None] < seen[1]
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        k, v = (t.repeat_interleave(language.heads // language.kv_heads, 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[0].transpose(0, 1).flatten(1)

    def _start(self, name: str, *arguments: Argument, grid: tuple[int, int], block: int = ROW_THREADS) -> None:
        self._kernels.launch(Launch(name, grid, block, arguments))


def _gelu_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu in its tanh form of `x @ weight.T + bias`."""
    if x.is_cuda:
        # cuBLAS does it in the product's epilogue.
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")
