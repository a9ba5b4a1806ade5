from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from checkpoints import (
    EMBEDDING,
    HEAD,
    PRESET,
    TOKENIZER,
    contents,
    edit_json,
    make_tensors,
    module_of,
    norm_stats,
    write_openpi,
    write_own,
)
from openpi_names import DEAD, openpi_tensors
from safetensors.torch import load_file, load_model, save_file

from ki_ros.model.checkpoint import CheckpointError
from ki_ros.model.config import KIConfig
from ki_ros.model.interchange import InterchangeError, export_checkpoint, import_checkpoint
from ki_ros.model.normalize import NormStatsError
from ki_ros.rig import ActionSpace


def test_strict_loader_takes_the_export(config, tmp_path) -> None:
    """openpi loads with `safetensors.torch.load_model` into a model with both names, tied, and the unused head."""
    own = write_own(tmp_path / "own", config)
    export_checkpoint(own, tmp_path / "theirs", layout="openpi")
    shapes = openpi_tensors(config.to_dict())
    shapes[HEAD], shapes[DEAD] = shapes[EMBEDDING], [config.language.vocab_size, config.expert.width]
    module = module_of(shapes, (HEAD, EMBEDDING))
    load_model(module, tmp_path / "theirs" / "model.safetensors", strict=True)
    trained = load_file(own / "model.safetensors")
    for name, parameter in module.named_parameters(remove_duplicate=False):
        source = HEAD if name == EMBEDDING else name
        assert torch.equal(parameter, trained[source].float() if source != DEAD else torch.zeros(shapes[DEAD])), name


def test_files_are_where_openpi_looks(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config, stats_length=32)
    export_checkpoint(own, tmp_path / "theirs", layout="openpi", asset_id="lab/droid")
    stats = tmp_path / "theirs" / "assets" / "lab" / "droid" / "norm_stats.json"
    assert stats.read_bytes() == (own / "norm_stats.json").read_bytes()
    facts = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert (facts["action_dim"], facts["action_horizon"], facts["precision"]) == (32, 7, "bfloat16")
    assert facts["paligemma_variant"] not in ("gemma_2b", "gemma_300m")


@pytest.mark.parametrize("config_file", [True, False])
def test_public_checkpoint_is_imported(config, tmp_path, config_file) -> None:
    theirs = write_openpi(tmp_path / "theirs", config)
    if not config_file:
        (theirs / "config.json").unlink()
    (theirs / "optimizer.pt").write_bytes(b"")
    (theirs / "assets" / "droid" / "notes.txt").write_text("")
    back = tmp_path / "back"
    report = import_checkpoint(theirs, back, preset=PRESET, action_space="joint_position", tokenizer=TOKENIZER)
    assert load_file(back / "model.safetensors").keys() == make_tensors(config).keys()
    held = contents(theirs / "model.safetensors")
    del held[DEAD]
    assert contents(back / "model.safetensors") == held
    horizon = 7 if config_file else 15
    expected = replace(
        KIConfig.from_preset(PRESET),
        action_dim=32,
        action_horizon=horizon,
        action_space=ActionSpace.JOINT_POSITION,
    )
    assert KIConfig.from_json(back / "config.json") == expected
    original = (theirs / "assets" / "droid" / "norm_stats.json").read_bytes()
    assert (back / "norm_stats.json").read_bytes() == original
    assert report.layout == "openpi"
    assert report.missing == []
    assert report.not_carried == ["assets/droid/notes.txt", "optimizer.pt", f"{DEAD} (no computation reads it)"]
    assumed = {entry.split()[0] for entry in report.assumed}
    assert {"max_token_len", "knowledge_insulation", "knowledge_insulation_lambda", "sizes"} <= assumed
    assert assumed.isdisjoint({"action_dim", "action_space"})
    assert ("action_horizon" in assumed) is not config_file


def test_what_a_policy_needs_and_nobody_gave_is_listed(config, tmp_path) -> None:
    theirs = write_openpi(tmp_path / "theirs", config)
    (theirs / "assets" / "droid" / "norm_stats.json").unlink()
    report = import_checkpoint(theirs, tmp_path / "back", preset=PRESET)
    assert [entry.split(":")[0] for entry in report.missing] == ["norm_stats.json", "tokenizer.model"]
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["config.json", "model.safetensors"]


def test_several_statistics_want_a_choice(config, tmp_path) -> None:
    theirs = write_openpi(tmp_path / "theirs", config)
    other = theirs / "assets" / "other"
    other.mkdir()
    (other / "norm_stats.json").write_text(json.dumps(norm_stats(16)))
    with pytest.raises(InterchangeError, match=r"several: .*droid/norm_stats.*other/norm_stats.*give norm_stats"):
        import_checkpoint(theirs, tmp_path / "back", preset=PRESET)
    report = import_checkpoint(theirs, tmp_path / "back", preset=PRESET, norm_stats=other / "norm_stats.json")
    assert len(json.loads((tmp_path / "back" / "norm_stats.json").read_text())["norm_stats"]["state"]["q01"]) == 16
    assert "assets/droid/norm_stats.json" in report.not_carried


def test_wrong_preset_is_refused_by_shape(config, tmp_path) -> None:
    theirs = write_openpi(tmp_path / "theirs", config)
    with pytest.raises(CheckpointError, match=r"does not fit the model"):
        import_checkpoint(theirs, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_config_that_contradicts_the_weights_is_refused(config, tmp_path) -> None:
    theirs = write_openpi(tmp_path / "theirs", config)
    edit_json(theirs / "config.json", action_dim=24)
    with pytest.raises(InterchangeError, match=r"action_dim 24, the weights have 32"):
        import_checkpoint(theirs, tmp_path / "back", preset=PRESET)
    edit_json(theirs / "config.json", action_dim="many")
    with pytest.raises(InterchangeError, match=r"action_dim is 'many'"):
        import_checkpoint(theirs, tmp_path / "back", preset=PRESET)


@pytest.mark.parametrize(("statistic", "error"), [("mean", InterchangeError), ("q99", NormStatsError)])
def test_statistics_that_openpi_needs_are_named(config, tmp_path, statistic, error) -> None:
    own = write_own(tmp_path / "own", config)
    document = norm_stats()
    del document["norm_stats"]["actions"][statistic]
    (own / "norm_stats.json").write_text(json.dumps(document))
    with pytest.raises(error, match=rf"actions\.{statistic} is missing"):
        export_checkpoint(own, tmp_path / "theirs", layout="openpi")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("asset_id", ["", "/droid", "../droid"])
def test_asset_id_stays_inside(config, tmp_path, asset_id) -> None:
    own = write_own(tmp_path / "own", config)
    with pytest.raises(InterchangeError, match="asset_id is"):
        export_checkpoint(own, tmp_path / "theirs", layout="openpi", asset_id=asset_id)


def test_tensors_left_over_and_missing_are_named(config, tmp_path) -> None:
    theirs = write_openpi(tmp_path / "theirs", config)
    tensors = make_tensors(config, dead=True)
    tensors["state_proj.weight"] = tensors.pop("time_mlp_in.bias")
    save_file(tensors, theirs / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(theirs, tmp_path / "back", preset=PRESET)
    assert "missing: time_mlp_in.bias" in str(caught.value)
    assert "unexpected: state_proj.weight" in str(caught.value)
