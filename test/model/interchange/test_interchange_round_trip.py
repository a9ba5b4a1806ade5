from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import EMBEDDING, HEAD, contents, write_own
from openpi_names import DEAD
from safetensors.torch import load_file, save_file

from ki_ros.model.config import KIConfig
from ki_ros.model.interchange import export_checkpoint, import_checkpoint
from ki_ros.policy import Policy
from ki_ros.rig import CameraRole

LAYOUTS = ("openpi", "lerobot")


def there_and_back(own: Path, layout: str, tmp_path: Path) -> Path:
    export_checkpoint(own, tmp_path / "theirs", layout=layout)
    # The preset must not matter: the export says everything itself.
    import_checkpoint(tmp_path / "theirs", tmp_path / "back", preset="pi05_droid_ki")
    return tmp_path / "back"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stats_length", [8, 32])
def test_everything_comes_back(config, layout, stats_length, tmp_path) -> None:
    own = write_own(tmp_path / "own", config, stats_length=stats_length)
    back = there_and_back(own, layout, tmp_path)
    assert contents(back / "model.safetensors") == contents(own / "model.safetensors")
    assert KIConfig.from_json(back / "config.json") == config
    assert json.loads((back / "norm_stats.json").read_text()) == json.loads((own / "norm_stats.json").read_text())
    for name in ("tokenizer.model", "fast/tokenizer.json"):
        assert (back / name).read_bytes() == (own / name).read_bytes()
    everything = ["config.json", "fast", "model.safetensors", "norm_stats.json", "tokenizer.model"]
    assert sorted(path.name for path in back.iterdir()) == everything


@pytest.mark.parametrize("layout", LAYOUTS)
def test_policy_acts_the_same(config, layout, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    rng = np.random.default_rng(0)
    views = {
        role: rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for role in (CameraRole.EXTERIOR_1, CameraRole.WRIST)
    }
    state = np.array([0.1, -0.7, 0.0, -2.4, 0.1, 1.6, 0.2, 0.3])
    actions = [
        Policy.load(checkpoint=directory, seed=4, num_steps=2, threads=1).infer(views, state, "fold the cloth")
        for directory in (own, there_and_back(own, layout, tmp_path))
    ]
    assert actions[0].shape == (7, 8)
    assert np.array_equal(*actions)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("naming", ["own name", "both names", "shards", "weights.safetensors"])
def test_every_source_gives_the_same_file(config, layout, naming, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    export_checkpoint(own, tmp_path / "expected", layout=layout)
    file = own / "model.safetensors"
    tensors = load_file(file)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    file.unlink()
    if naming == "own name":
        tensors[EMBEDDING] = tensors.pop(HEAD)
        save_file(tensors, file)
    elif naming == "both names":
        save_file(tensors | {EMBEDDING: tensors[HEAD].clone()}, file)
    elif naming == "shards":
        names, weight_map = sorted(tensors), {}
        for index, part in enumerate((names[::2], names[1::2])):
            shard = f"model-{index + 1:05}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, own / shard)
            weight_map |= dict.fromkeys(part, shard)
        (own / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(tensors, own / naming)
    report = export_checkpoint(own, tmp_path / "theirs", layout=layout)
    written = (tmp_path / "theirs" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "expected" / "model.safetensors").read_bytes()
    assert report.not_carried == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_is_exact(config, layout, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    export_checkpoint(own, tmp_path / "theirs", layout=layout, dtype="float32")
    import_checkpoint(tmp_path / "theirs", tmp_path / "back")
    before, after = load_file(own / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name].float()) for name in before)


def test_bfloat16_rounds_to_nearest_and_spares_what_computes_in_float32(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    before = {name: torch.randn_like(tensor.float()) for name, tensor in load_file(own / "model.safetensors").items()}
    save_file(before, own / "model.safetensors")
    export_checkpoint(own, tmp_path / "theirs", layout="openpi", dtype="bfloat16")
    after = load_file(tmp_path / "theirs" / "model.safetensors")
    for name, tensor in before.items():
        spared = name.startswith(("action_", "time_")) or ("norm" in name and "vision_tower" not in name)
        assert torch.equal(after[name], tensor if spared else tensor.to(torch.bfloat16)), name
        assert after[name].dtype == (torch.float32 if spared else torch.bfloat16), name
    assert after[DEAD].count_nonzero() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_stays_behind_is_listed(config, layout, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    (own / "optimizer").mkdir()
    (own / "train.log").write_text("")
    assert export_checkpoint(own, tmp_path / "theirs", layout=layout).not_carried == ["optimizer/", "train.log"]
    (tmp_path / "theirs" / "README.md").write_text("")
    not_carried = import_checkpoint(tmp_path / "theirs", tmp_path / "back").not_carried
    assert not_carried == ["README.md", f"{DEAD} (no computation reads it)"]
