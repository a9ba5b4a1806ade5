from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from checkpoints import (
    EMBEDDING,
    HEAD,
    PRESET,
    TOKENIZER,
    contents,
    edit_json,
    module_of,
    norm_stats,
    write_lerobot,
    write_own,
)
from openpi_names import DEAD, openpi_tensors
from safetensors.torch import load_file, save_file

from ki_ros.model.config import KIConfig
from ki_ros.model.interchange import InterchangeError, export_checkpoint, import_checkpoint
from ki_ros.model.normalize import NormStats, NormStatsError

PRE_STATE = "policy_preprocessor_step_3_normalizer_processor.safetensors"
POST_STATE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


def test_strict_loader_takes_the_export(config, tmp_path) -> None:
    """LeRobot gives the head's tensor the embedding's name too, then loads strictly into a model with both."""
    own = write_own(tmp_path / "own", config)
    export_checkpoint(own, tmp_path / "theirs", layout="lerobot")
    loaded = load_file(tmp_path / "theirs" / "model.safetensors")
    loaded[f"model.{EMBEDDING}"] = loaded[f"model.{HEAD}"].clone()
    shapes = openpi_tensors(config.to_dict())
    shapes[HEAD], shapes[DEAD] = shapes[EMBEDDING], [config.language.vocab_size, config.expert.width]
    shapes = {f"model.{name}": shape for name, shape in shapes.items()}
    module = module_of(shapes, (f"model.{HEAD}", f"model.{EMBEDDING}"))
    module.load_state_dict(loaded, strict=True)
    trained = load_file(own / "model.safetensors")
    parameters = dict(module.named_parameters(remove_duplicate=False))
    assert all(torch.equal(parameters[f"model.{name}"], tensor.float()) for name, tensor in trained.items())


def test_config_has_what_pi05_reads(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config, stats_length=32)
    export_checkpoint(own, tmp_path / "theirs", layout="lerobot")
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert values["type"] == "pi05"
    assert (values["chunk_size"], values["n_action_steps"], values["tokenizer_max_length"]) == (7, 7, 150)
    assert (values["max_action_dim"], values["dtype"], values["image_resolution"]) == (32, "bfloat16", [224, 224])
    assert values["normalization_mapping"] == {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
    assert list(values["input_features"]) == [
        "observation.images.base_0_rgb",
        "observation.images.left_wrist_0_rgb",
        "observation.state",
    ]
    assert values["output_features"] == {"action": {"type": "ACTION", "shape": [8]}}


@pytest.mark.parametrize(
    ("processor", "step", "feature", "quantity"),
    [
        ("policy_preprocessor", "normalizer_processor", "observation.state", "state"),
        ("policy_postprocessor", "unnormalizer_processor", "action", "actions"),
    ],
)
def test_processors_normalise_as_the_policy_does(config, tmp_path, processor, step, feature, quantity) -> None:
    own = write_own(tmp_path / "own", config, stats_length=32)
    export_checkpoint(own, tmp_path / "theirs", layout="lerobot")
    steps = json.loads((tmp_path / "theirs" / f"{processor}.json").read_text())["steps"]
    index = [entry["registry_name"] for entry in steps].index(step)
    assert steps[index]["config"]["features"][feature]["shape"] == [8]
    file = f"{processor}_step_{index}_{step}.safetensors"
    assert steps[index]["state_file"] == file
    assert [name for name in (entry.get("state_file") for entry in steps) if name] == [file]
    state = load_file(tmp_path / "theirs" / file)
    truth = norm_stats()["norm_stats"]
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        f"{key}.{name}": values
        for key, entry in zip(("observation.state", "action"), truth.values(), strict=True)
        for name, values in entry.items()
    }
    # LeRobot's formula for QUANTILES, which lacks openpi's 1e-6.
    x = np.linspace(-0.4, 0.4, 8)
    q01, q99 = (state[f"{feature}.{name}"].numpy() for name in ("q01", "q99"))
    own_values = getattr(NormStats.load(own / "norm_stats.json"), quantity).normalize(x)
    assert np.allclose(2 * (x - q01) / (q99 - q01) - 1, own_values, atol=2e-5)


def test_public_checkpoint_is_imported(config, tmp_path) -> None:
    theirs = write_lerobot(tmp_path / "theirs", config)
    (theirs / "train_config.json").write_text("{}")
    back = tmp_path / "back"
    report = import_checkpoint(theirs, back, preset=PRESET, tokenizer=TOKENIZER)
    held = {name.removeprefix("model."): value for name, value in contents(theirs / "model.safetensors").items()}
    del held[DEAD]
    assert contents(back / "model.safetensors") == held
    imported, preset = KIConfig.from_json(back / "config.json"), KIConfig.from_preset(PRESET)
    assert (imported.action_dim, imported.action_horizon, imported.max_token_len) == (32, 12, 180)
    assert (imported.vision, imported.language, imported.expert) == (preset.vision, preset.language, preset.expert)
    single = {
        quantity: {name: np.array(values, np.float32).tolist() for name, values in entry.items()}
        for quantity, entry in norm_stats()["norm_stats"].items()
    }
    assert json.loads((back / "norm_stats.json").read_text()) == {"norm_stats": single}
    assert report.layout == "lerobot"
    assert "cameras in the order of input_features: observation.images.scene as base_0_rgb" in report.assumed[0]
    listed = " ".join(report.not_carried)
    for name in ("optimizer_lr", "observation.state.count", "action.min", "train_config.json", DEAD):
        assert name in listed
    assert "policy_" not in " ".join(name for name in report.not_carried if ":" not in name)


@pytest.mark.parametrize(("stated", "padded"), [(32, 32), (None, 32), (14, 14), (8, None)])
def test_states_that_lerobot_pads_in_prompts_are_told_of(config, tmp_path, stated, padded) -> None:
    """LeRobot trains with prompts of `max_state_dim` values, and this package reads prompts of eight."""
    theirs = write_lerobot(tmp_path / "theirs", config)
    edit_json(theirs / "config.json", max_state_dim=stated)
    report = import_checkpoint(theirs, tmp_path / "back", preset=PRESET, tokenizer=TOKENIZER)
    told = [entry for entry in report.assumed if "prompts of the 8 state values alone" in entry]
    assert len(told) == (padded is not None)
    assert all(f"max_state_dim {padded} " in entry for entry in told)


def test_prompts_of_an_own_export_are_no_assumption(config, tmp_path) -> None:
    export_checkpoint(write_own(tmp_path / "own", config), tmp_path / "theirs", layout="lerobot")
    assert not import_checkpoint(tmp_path / "theirs", tmp_path / "back").assumed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "act"}, "type is 'act'"),
        ({"use_relative_actions": True}, "use_relative_actions is True"),
        ({"use_peft": True}, "use_peft is True"),
        ({"max_period": 8.0}, r"max_period is 8\.0"),
        ({"normalization_mapping": {"STATE": "MEAN_STD", "ACTION": "QUANTILES"}}, "STATE is 'MEAN_STD'"),
        ({"image_resolution": [224, 448]}, "only square images"),
        ({"image_resolution": [448, 448]}, "image_resolution is 448, the model's is 224"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_another_policy_is_refused(config, tmp_path, changes, message) -> None:
    theirs = write_lerobot(tmp_path / "theirs", config)
    edit_json(theirs / "config.json", **changes)
    with pytest.raises(InterchangeError, match=message):
        import_checkpoint(theirs, tmp_path / "back", preset=PRESET)
    assert not (tmp_path / "back").exists()


def test_relative_actions_of_a_processor_are_refused(config, tmp_path) -> None:
    theirs = write_lerobot(tmp_path / "theirs", config)
    file = theirs / "policy_preprocessor.json"
    file.write_text(file.read_text().replace('"enabled": false', '"enabled": true'))
    with pytest.raises(InterchangeError, match="relative_actions_processor is enabled"):
        import_checkpoint(theirs, tmp_path / "back", preset=PRESET)


@pytest.mark.parametrize("damage", ["truncated", "missing", "outside"])
def test_damaged_statistics_are_named(config, tmp_path, damage) -> None:
    theirs = write_lerobot(tmp_path / "theirs", config)
    file = theirs / PRE_STATE
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "missing":
        file.unlink()
    else:
        processor = theirs / "policy_preprocessor.json"
        processor.write_text(processor.read_text().replace(PRE_STATE, f"../theirs/{PRE_STATE}"))
    with pytest.raises(InterchangeError, match="same directory" if damage == "outside" else PRE_STATE):
        import_checkpoint(theirs, tmp_path / "back", preset=PRESET)


def test_statistics_that_contradict_each_other_are_refused(config, tmp_path) -> None:
    theirs = write_lerobot(tmp_path / "theirs", config)
    state = load_file(theirs / POST_STATE)
    save_file(state | {"action.q99": state["action.q99"] + 1}, theirs / POST_STATE)
    with pytest.raises(InterchangeError, match=r"action\.q99 differs"):
        import_checkpoint(theirs, tmp_path / "back", preset=PRESET)


def test_statistics_without_quantiles_are_refused(config, tmp_path) -> None:
    theirs = write_lerobot(tmp_path / "theirs", config)
    state = load_file(theirs / PRE_STATE)
    del state["action.q01"]
    save_file(state, theirs / PRE_STATE)
    with pytest.raises(NormStatsError, match=rf"{PRE_STATE}: norm_stats\.actions\.q01 is missing"):
        import_checkpoint(theirs, tmp_path / "back", preset=PRESET)
    assert not (tmp_path / "back").exists()


def test_export_that_was_saved_again_in_float32_comes_back_exactly(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config, stats_length=32)
    theirs = tmp_path / "theirs"
    export_checkpoint(own, theirs, layout="lerobot")
    for file in theirs.glob("policy_*.safetensors"):
        save_file({name: tensor.clone().float() for name, tensor in load_file(file).items()}, file)
    import_checkpoint(theirs, tmp_path / "back")
    stats = [json.loads((directory / "norm_stats.json").read_text()) for directory in (own, tmp_path / "back")]
    assert stats[0] == stats[1]


def test_export_that_was_changed_since_is_refused(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    theirs = tmp_path / "theirs"
    export_checkpoint(own, theirs, layout="lerobot")
    for file in theirs.glob("policy_*.safetensors"):
        state = {name: tensor.clone() for name, tensor in load_file(file).items()}
        save_file(state | {"action.q99": state["action.q99"] * 1.5}, file)
    with pytest.raises(InterchangeError, match=r"actions\.q99 differs between .*ki_ros\.json"):
        import_checkpoint(theirs, tmp_path / "back")
    edit_json(theirs / "config.json", chunk_size=9)
    with pytest.raises(InterchangeError, match=r"action_horizon 9, .*ki_ros\.json 7"):
        import_checkpoint(theirs, tmp_path / "back", norm_stats=own / "norm_stats.json")
