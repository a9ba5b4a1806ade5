"""The tensors of an openpi pi0.5 file, written down from its published naming; knows nothing of the model's code."""

from __future__ import annotations

TIED = (
    "paligemma_with_expert.paligemma.lm_head.weight",
    "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight",
)
DEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"


def openpi_tensors(config: dict) -> dict[str, list[int]]:
    """Name -> shape for sizes as in `config.json`, with the embedding under its own name and without the dead head."""
    v, g, e, d = config["vision"], config["language"], config["expert"], config["action_dim"]
    tower = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
    language = "paligemma_with_expert.paligemma.model.language_model."
    expert = "paligemma_with_expert.gemma_expert.model."
    q, kv = g["heads"] * g["head_dim"], g["kv_heads"] * g["head_dim"]
    tensors: dict[str, list[int]] = {}

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = [rows, columns]
        if bias:
            tensors[f"{name}.bias"] = [rows]

    def block(name: str, width: int, mlp: int) -> None:
        linear(f"{name}.self_attn.q_proj", q, width, False)
        linear(f"{name}.self_attn.k_proj", kv, width, False)
        linear(f"{name}.self_attn.v_proj", kv, width, False)
        linear(f"{name}.self_attn.o_proj", width, q, False)
        linear(f"{name}.mlp.gate_proj", mlp, width, False)
        linear(f"{name}.mlp.up_proj", mlp, width, False)
        linear(f"{name}.mlp.down_proj", width, mlp, False)

    tensors[f"{tower}embeddings.patch_embedding.weight"] = [v["width"], 3, v["patch_size"], v["patch_size"]]
    tensors[f"{tower}embeddings.patch_embedding.bias"] = [v["width"]]
    tensors[f"{tower}embeddings.position_embedding.weight"] = [(v["image_size"] // v["patch_size"]) ** 2, v["width"]]
    for n in range(v["depth"]):
        layer = f"{tower}encoder.layers.{n}"
        for norm in ("layer_norm1", "layer_norm2"):
            tensors[f"{layer}.{norm}.weight"] = tensors[f"{layer}.{norm}.bias"] = [v["width"]]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{name}", v["width"], v["width"])
        linear(f"{layer}.mlp.fc1", v["mlp"], v["width"])
        linear(f"{layer}.mlp.fc2", v["width"], v["mlp"])
    tensors[f"{tower}post_layernorm.weight"] = tensors[f"{tower}post_layernorm.bias"] = [v["width"]]
    linear("paligemma_with_expert.paligemma.model.multi_modal_projector.linear", g["width"], v["width"])

    tensors[TIED[1]] = [g["vocab_size"], g["width"]]
    for n in range(g["depth"]):
        block(f"{language}layers.{n}", g["width"], g["mlp"])
        block(f"{expert}layers.{n}", e["width"], e["mlp"])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{language}layers.{n}.{norm}.weight"] = [g["width"]]
            linear(f"{expert}layers.{n}.{norm}.dense", 3 * e["width"], e["width"])
    tensors[f"{language}norm.weight"] = [g["width"]]
    linear(f"{expert}norm.dense", 3 * e["width"], e["width"])

    linear("action_in_proj", e["width"], d)
    linear("action_out_proj", d, e["width"])
    linear("time_mlp_in", e["width"], e["width"])
    linear("time_mlp_out", e["width"], e["width"])
    return tensors
