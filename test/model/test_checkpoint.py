from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from openpi_names import DEAD, TIED, openpi_tensors
from safetensors.torch import load_file, save_file
from small import make_model

from ki_ros.model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, stored_action_dim
from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel

NOISE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(5))
HEAD, EMBEDDING = TIED
QUERY = "paligemma_with_expert.gemma_expert.model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def tensors(small_config: KIConfig) -> dict[str, torch.Tensor]:
    """A file as openpi writes it: the embedding under the head's name, and the dead head of the expert."""
    generator = torch.Generator().manual_seed(2)
    named = {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in openpi_tensors(small_config.to_dict()).items()
    }
    named[HEAD] = named.pop(EMBEDDING)
    named[DEAD] = torch.zeros(small_config.language.vocab_size, small_config.expert.width)
    return named


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def sample(model: KIModel, make_observation) -> torch.Tensor:
    return model.sample_actions(make_observation(), noise=NOISE)


def test_save_and_load_give_the_same_model(small_model, make_observation, tmp_path) -> None:
    save_checkpoint(small_model, tmp_path / "new" / "step_1")
    loaded = load_checkpoint(tmp_path / "new" / "step_1")
    assert loaded.config == small_model.config
    assert not loaded.training
    assert torch.equal(sample(loaded, make_observation), sample(small_model, make_observation))


def test_saving_over_a_loaded_checkpoint_keeps_both_whole(
    small_config, small_model, make_observation, tmp_path
) -> None:
    save_checkpoint(small_model, tmp_path)
    loaded, expected = load_checkpoint(tmp_path), sample(small_model, make_observation)
    save_checkpoint(make_model(small_config, seed=9), tmp_path)
    assert torch.equal(sample(loaded, make_observation), expected)
    assert not torch.equal(sample(load_checkpoint(tmp_path), make_observation), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_saved_names_are_openpi_s(small_config, small_model, tmp_path) -> None:
    save_checkpoint(small_model, tmp_path)
    expected = openpi_tensors(small_config.to_dict())
    expected[HEAD] = expected.pop(EMBEDDING)
    saved = load_file(tmp_path / "model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in saved.items()} == expected


def test_every_public_naming_loads_the_same(small_config, make_observation, tensors, file) -> None:
    save_file(tensors, file)
    expected = sample(load_checkpoint(file, small_config), make_observation)
    body = {name: tensor for name, tensor in tensors.items() if name not in (HEAD, DEAD)}
    namings = {
        "embedding's own name": body | {EMBEDDING: tensors[HEAD]},
        "both names": body | {EMBEDDING: tensors[HEAD].clone(), HEAD: tensors[HEAD]},
        "LeRobot": {f"model.{name}": tensor for name, tensor in tensors.items()},
    }
    for name, renamed in namings.items():
        save_file(renamed, file)
        assert torch.equal(sample(load_checkpoint(file, small_config), make_observation), expected), name


def test_shards_load_as_one(small_config, make_observation, tensors, file) -> None:
    save_file(tensors, file)
    expected = sample(load_checkpoint(file, small_config), make_observation)
    file.unlink()
    names = sorted(tensors)
    weight_map = {}
    for index, part in enumerate((names[::2], names[1::2])):
        shard = f"model-{index + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, file.parent / shard)
        weight_map |= dict.fromkeys(part, shard)
    (file.parent / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(sample(load_checkpoint(file.parent, small_config), make_observation), expected)
    (file.parent / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shards model-00002-of-00002\.safetensors"):
        load_checkpoint(file.parent, small_config)


@pytest.mark.parametrize("target", ["../other.safetensors", "/etc/passwd", 3])
def test_shards_are_of_the_same_directory(small_config, tmp_path, target) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))
    with pytest.raises(CheckpointError, match="same directory"):
        load_checkpoint(tmp_path, small_config)


def test_missing_tensor_is_named(small_config, tensors, file) -> None:
    del tensors[QUERY], tensors["time_mlp_in.bias"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"missing: .*(2)") as error:
        load_checkpoint(file, small_config)
    assert QUERY in str(error.value)
    assert "time_mlp_in.bias" in str(error.value)


def test_missing_embedding_is_named(small_config, tensors, file) -> None:
    del tensors[HEAD]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"missing: .*embed_tokens"):
        load_checkpoint(file, small_config)


def test_unexpected_tensor_is_named(small_config, tensors, file) -> None:
    tensors["state_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"unexpected: state_proj\.weight \(1\)"):
        load_checkpoint(file, small_config)


def test_wrong_shape_is_named_with_both_shapes(small_config, tensors, file) -> None:
    tensors["action_in_proj.weight"] = torch.zeros(20, 32)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"action_in_proj\.weight expected \[20, 8\], found \[20, 32\]"):
        load_checkpoint(file, small_config)


def test_wrong_tied_shape_is_named(small_config, tensors, file) -> None:
    tensors[HEAD] = torch.zeros(61, 24)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight expected \[60, 24\], found \[61, 24\]"):
        load_checkpoint(file, small_config)


def test_tied_names_that_differ_are_refused(small_config, tensors, file) -> None:
    save_file(tensors | {EMBEDDING: tensors[HEAD] + 1}, file)
    with pytest.raises(CheckpointError, match="differ"):
        load_checkpoint(file, small_config)


def test_integers_are_refused(small_config, tensors, file) -> None:
    save_file(tensors | {QUERY: tensors[QUERY].to(torch.int8)}, file)
    with pytest.raises(CheckpointError, match=r"not floating point: .*q_proj\.weight I8"):
        load_checkpoint(file, small_config)


def test_many_problems_are_counted(small_config, file) -> None:
    save_file({"a": torch.zeros(1)}, file)
    count = len(openpi_tensors(small_config.to_dict()))
    with pytest.raises(CheckpointError, match=rf"and {count - 8} more \({count}\)"):
        load_checkpoint(file, small_config)


@pytest.mark.parametrize("size", [0, 4, 300, -10])
def test_truncated_file_is_named(small_config, tensors, file, size) -> None:
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        load_checkpoint(file, small_config)


def test_paths_that_hold_nothing_are_named(small_config, tensors, tmp_path, file) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_checkpoint(tmp_path / "nowhere", small_config)
    with pytest.raises(CheckpointError, match="holds neither"):
        load_checkpoint(tmp_path, small_config)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"config\.json does not exist.*from_preset"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "pi05"}')
    with pytest.raises(CheckpointError, match=r"config\.json: type is 'pi05'.*from_preset"):
        load_checkpoint(tmp_path)


def test_dtype_is_chosen_on_load(small_config, tensors, file) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, file)
    assert {p.dtype for p in load_checkpoint(file, small_config).parameters()} == {torch.float32}
    mixed = load_checkpoint(file, small_config, dtype=torch.bfloat16)
    assert mixed.action_in_proj.weight.dtype == torch.float32
    assert mixed.get_parameter(QUERY).dtype == torch.bfloat16


def test_file_of_mixed_dtypes_runs(small_config, make_observation, tensors, file) -> None:
    """As openpi stores them: bfloat16 but for norms and patch embeddings."""
    keep = ("norm", "patch_embedding", "position_embedding")
    mixed = {n: tensor if any(k in n for k in keep) else tensor.bfloat16() for n, tensor in tensors.items()}
    save_file(mixed, file)
    exact = sample(load_checkpoint(file, small_config), make_observation)
    for dtype in (torch.float16, torch.bfloat16):
        got = sample(load_checkpoint(file, small_config, dtype=dtype), make_observation)
        assert (got - exact).abs().max() < 0.2


def test_action_dim_is_read_from_the_weights(tensors, file) -> None:
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, file)
    assert stored_action_dim(file.parent) == 8
