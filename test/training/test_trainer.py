"""Whole runs: what they leave behind, and that they can be stopped in any way and go on as if they had not been."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from training_processes import has_torch, keep_waiting, loaders, signal_all, wait_for

from ki_ros.data.chunks import DroidChunks
from ki_ros.model.fast import FASTTokenizer
from ki_ros.model.normalize import NormStats
from ki_ros.policy import Policy
from ki_ros.rig import RESET_JOINT_POSITIONS, ActionSpace, CameraRole
from ki_ros.training import config as configuration
from ki_ros.training.metrics import read_metrics
from ki_ros.training.state import ResumeError, checkpoints
from ki_ros.training.trainer import Outcome, train


def in_process(directory: Path, *, resume: bool = False, **changes: object) -> Outcome:
    return train(configuration.parse(tiny.settings(directory / "out", **changes)), resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps that nothing disturbs."""
    directory = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    in_process(directory, steps=8, save_every=4)
    return directory


def assert_same_checkpoint(one: Path, other: Path, step: int) -> None:
    first, second = tiny.saved(one, step), tiny.saved(other, step)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


def test_run_leaves_a_deployable_checkpoint(whole: Path) -> None:
    newest = checkpoints(whole / "out")[8]
    policy = Policy.load(checkpoint=newest, seed=0, num_steps=2)
    views = {role: np.full((40, 60, 3), 90, np.uint8) for role in CameraRole}
    chunk = policy.infer(views, np.array([*RESET_JOINT_POSITIONS, 0.1]), "point at the red square")
    assert chunk.shape == (15, 8)
    assert {path.name for path in newest.iterdir()} == {
        "model.safetensors", "config.json", "norm_stats.json", "tokenizer.model", "fast", "train.json", "training",
    }  # fmt: skip
    assert json.loads((newest / "train.json").read_text())["steps"] == 8
    state = json.loads((newest / "training" / "state.json").read_text())
    assert state["step"] == 8


def test_metrics_are_complete(whole: Path) -> None:
    lines = read_metrics(whole / "out" / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, 9))
    names = {"loss", "flow_loss", "fast_loss", "fast_accuracy", "grad_norm_backbone", "grad_norm_expert"}
    assert all(names | {"learning_rate", "samples_per_second", "memory_gib"} <= line.keys() for line in steps[1:])
    for line in steps:
        assert line["loss"] == pytest.approx(line["flow_loss"] + 0.5 * line["fast_loss"])
    (evaluation,) = [line for line in lines if line["kind"] == "eval"]
    assert {"flow_loss", "fast_loss", "fast_accuracy", "action_error"} <= evaluation.keys()
    assert np.isfinite([value for value in evaluation.values() if not isinstance(value, str)]).all()


def test_losses_fall(tmp_path: Path) -> None:
    in_process(tmp_path, steps=60)
    for name in ("flow_loss", "fast_loss"):
        values = tiny.curve(tmp_path, name)
        assert np.mean(values[-10:]) < 0.8 * np.mean(values[:10]), name


def test_killed_run_resumes_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    file = tiny.write(tmp_path, steps=8, save_every=4)
    process = subprocess.Popen(tiny.command(file), env=tiny.environment(), stdout=subprocess.DEVNULL)
    wait_for(lambda: 4 in checkpoints(tmp_path / "out"), process)
    process.kill()
    process.wait()
    refused = tiny.run(file, check=False)
    assert refused.returncode == 1
    assert "--resume" in refused.stderr
    tiny.run(file, "--resume")
    assert_same_checkpoint(whole, tmp_path, 8)
    assert tiny.curve(tmp_path) == tiny.curve(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_exits(whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    file = tiny.write(tmp_path, steps=8, save_every=0)
    process = subprocess.Popen(tiny.command(file), env=tiny.environment(), stdout=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "metrics.jsonl"
    wait_for(lambda: log.is_file() and log.stat().st_size > 0, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=240)
    (step,) = checkpoints(tmp_path / "out")
    if step < 8:
        assert process.returncode == 130
        assert "interrupted at step" in output
    tiny.run(file, "--resume")
    assert_same_checkpoint(whole, tmp_path, 8)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_what_loads_the_data_too_saves_and_exits(tmp_path: Path, number: signal.Signals) -> None:
    """As a terminal and torchrun send it, and while the run waits for a batch."""
    file = tiny.write(tmp_path, steps=400, workers=1)
    process = subprocess.Popen(
        tiny.command(file),
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "out" / "metrics.jsonl"
    wait_for(lambda: log.is_file() and log.stat().st_size > 0, process)
    keep_waiting(process)
    signal_all(process, number)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130, output
    (step,) = checkpoints(tmp_path / "out")
    assert step == len(tiny.curve(tmp_path)) < 400
    assert f"interrupted at step {step}" in output
    assert in_process(tmp_path, steps=step + 2, resume=True).step == step + 2


def test_ctrl_c_before_the_first_step_saves_the_beginning(whole: Path, tmp_path: Path) -> None:
    """The process that is to load the data is starting, and cannot have been told yet to ignore it."""
    saving = {"save_every": 4, "keep": 1, "keep_every": 4}
    file = tiny.write(tmp_path, steps=8, workers=1, **saving)
    process = subprocess.Popen(
        tiny.command(file), env=tiny.environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: any(map(has_torch, loaders(process.pid))), process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "interrupted at step 0" in output
    assert list(checkpoints(tmp_path / "out")) == [0]
    Policy.load(checkpoint=checkpoints(tmp_path / "out")[0])
    in_process(tmp_path, steps=8, resume=True, **saving)
    assert list(checkpoints(tmp_path / "out")) == [4, 8]
    assert_same_checkpoint(whole, tmp_path, 8)


def test_resume_of_a_finished_run_does_nothing(tmp_path: Path) -> None:
    first = in_process(tmp_path, steps=3)
    before = tiny.saved(tmp_path, 3)
    second = in_process(tmp_path, steps=3, resume=True)
    assert second.step == first.step == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.saved(tmp_path, 3).items())


def test_resume_without_a_checkpoint_begins(tmp_path: Path) -> None:
    assert in_process(tmp_path, steps=3, resume=True).step == 3


def test_accumulation_changes_nothing(whole: Path, tmp_path: Path) -> None:
    in_process(tmp_path, steps=8, micro_batch_size=2)
    np.testing.assert_allclose(tiny.curve(tmp_path), tiny.curve(whole), atol=1e-5)


def test_activation_checkpointing_changes_nothing(whole: Path, tmp_path: Path) -> None:
    in_process(tmp_path, steps=8, activation_checkpointing=True)
    np.testing.assert_allclose(tiny.curve(tmp_path), tiny.curve(whole), atol=1e-6)


def test_loader_processes_change_nothing(whole: Path, tmp_path: Path) -> None:
    file = tiny.write(tmp_path, steps=8, workers=2)
    tiny.run(file)
    assert tiny.curve(tmp_path) == tiny.curve(whole)


def test_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails in the middle of a file."""
    in_process(tmp_path, steps=4)
    before = tiny.saved(tmp_path, 4)
    size = (checkpoints(tmp_path / "out")[4] / "training" / "optimizer.safetensors").stat().st_size
    file = tiny.write(tmp_path, steps=8)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    done = subprocess.run(
        tiny.command(file, "--resume"), env=tiny.environment(), preexec_fn=limit, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stderr
    assert list(checkpoints(tmp_path / "out")) == [4]
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step_00000004"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.saved(tmp_path, 4).items())
    assert in_process(tmp_path, steps=8, resume=True).step == 8


def test_old_checkpoints_go_and_milestones_stay(tmp_path: Path) -> None:
    in_process(tmp_path, steps=8, save_every=1, keep=2, keep_every=3)
    found = checkpoints(tmp_path / "out")
    assert list(found) == [3, 6, 7, 8]
    assert [(found[step] / "training").is_dir() for step in found] == [False, False, True, True]


def test_run_goes_on_only_with_the_data_that_it_began_with(tmp_path: Path) -> None:
    in_process(tmp_path, steps=3)
    data = {"kind": "pointing", "train": 41, "held_out": 6, "side": 32}
    with pytest.raises(ValueError, match="data has the fingerprint"):
        in_process(tmp_path, steps=5, resume=True, data=data)


@pytest.mark.parametrize("part", ["vision", "projector", "language", "expert"])
def test_frozen_part_stays(tmp_path: Path, part: str) -> None:
    prefix = {
        "vision": "paligemma_with_expert.paligemma.model.vision_tower",
        "projector": "paligemma_with_expert.paligemma.model.multi_modal_projector",
        "language": "paligemma_with_expert.paligemma",
        "expert": "paligemma_with_expert.gemma_expert",
    }[part]
    in_process(tmp_path, steps=3, freeze=[part])
    weights = tiny.saved(tmp_path, 3)
    trained = {name.partition(":")[2] for name in weights if name.startswith("training/weights")}
    if part == "language":
        assert not any("language_model" in name for name in trained)
    else:
        assert not any(name.startswith(prefix) for name in trained)
    assert any(name.startswith("action_in_proj") for name in trained)


def test_low_rank_adapters_train_and_merge(tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 4.0, "parts": ["language", "expert"]}
    in_process(tmp_path / "a", steps=8, save_every=4, lora=lora)
    weights = tiny.saved(tmp_path / "a", 8)
    trained = {name.partition(":")[2] for name in weights if name.startswith("training/weights")}
    assert any("lora_A" in name for name in trained)
    assert not any("base_layer" in name or "embed_tokens" in name for name in trained)
    # Merged: the names of a plain model, and the weights of a policy that has never heard of adapters.
    in_process(tmp_path / "plain", steps=3)
    deployed = {name for name in weights if name.startswith("model.safetensors")}
    assert deployed == {name for name in tiny.saved(tmp_path / "plain", 3) if name.startswith("model.safetensors")}
    Policy.load(checkpoint=checkpoints(tmp_path / "a" / "out")[8])
    curve = tiny.curve(tmp_path / "a")
    assert curve[-1] < curve[0]


def test_merged_weights_act_as_the_adapters_did(tmp_path: Path) -> None:
    """Held-out losses of the run, with adapters, against those of the merged checkpoint, without."""
    lora = {"rank": 2, "alpha": 4.0, "parts": ["language"]}
    trained = in_process(tmp_path / "a", steps=8, lora=lora, ema_decay=None)
    merged = {
        "model": {"init": str(trained.checkpoint)},
        "norm_stats": "checkpoint",
        "fast_tokenizer": str(trained.checkpoint / "fast"),
    }
    # A step at a rate of nearly nothing, to be evaluated after.
    still = {"optimizer": {"learning_rate": 1e-30, "warmup_steps": 0}, "steps": 1, "ema_decay": None}
    again = in_process(tmp_path / "b", **merged, **still)
    assert again.evaluation == pytest.approx(trained.evaluation, abs=1e-5)


def test_starting_from_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    newest = checkpoints(whole / "out")[8]
    outcome = in_process(
        tmp_path, steps=3, model={"init": str(newest)}, norm_stats="checkpoint", fast_tokenizer=str(newest / "fast")
    )
    assert tiny.curve(tmp_path)[0] < tiny.curve(whole)[0]
    assert (outcome.checkpoint / "norm_stats.json").read_text() == (newest / "norm_stats.json").read_text()


def test_a_checkpoint_that_ships_is_found(tmp_path: Path) -> None:
    name = "package://ki_ros/models/ki_tiny/backbone"
    config = configuration.parse(tiny.settings(tmp_path) | {"model": {"init": name}})
    assert config.model.init is not None
    assert (config.model.init / "model.safetensors").is_file()
    with pytest.raises(configuration.TrainConfigError, match=r"model\.init.*ki_large"):
        configuration.parse(tiny.settings(tmp_path) | {"model": {"init": "package://ki_ros/models/ki_large"}})


def test_a_model_is_trained_to_go_on_from_given_actions(tmp_path: Path) -> None:
    model = tiny.settings(tmp_path)["model"]
    model["changes"] = model["changes"] | {"committed_rows": 4}
    outcome = in_process(tmp_path, model=model, steps=12)
    curve = tiny.curve(tmp_path)
    assert np.isfinite(curve).all()
    assert curve[-1] < curve[0]
    policy = Policy.load(checkpoint=outcome.checkpoint, threads=1)
    assert policy.config.committed_rows == 4


def test_states_alone(tmp_path: Path, test_data: Path) -> None:
    data = {"kind": "droid", "directory": str(test_data / "droid_100"), "train": "2-3", "held_out": "4", "views": []}
    with pytest.raises(ValueError, match="freeze:"):
        in_process(tmp_path, data=data)
    outcome = in_process(tmp_path, data=data, steps=3, freeze=["vision", "projector"])
    assert outcome.step == 3
    assert np.isfinite(outcome.evaluation["action_error"])


def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(tmp_path: Path, test_data: Path) -> None:
    """One of the held-out chunks has more tokens than any chunk of the training data."""
    run = {
        "data": {
            "kind": "droid",
            "directory": str(test_data / "droid_100"),
            "train": "2-3",
            "held_out": "4-12",
            "views": [],
        },
        "freeze": ["vision", "projector"],
        "evaluation": {"every": 4, "samples": 6, "num_steps": 2},
        "save_every": 4,
    }
    long = r"held-out sample 1006, step 528 of episode_007: row 2 has 70 FAST tokens .* more than max_tokens 64"
    for resume in (False, True):
        with pytest.raises(ValueError, match=long):
            in_process(tmp_path / "stopped", resume=resume, fast_max_tokens=64, **run)
        assert list(checkpoints(tmp_path / "stopped" / "out")) == [4]
    in_process(tmp_path / "stopped", resume=True, fast_max_tokens=70, **run)
    in_process(tmp_path / "whole", fast_max_tokens=70, **run)
    assert_same_checkpoint(tmp_path / "stopped", tmp_path / "whole", 8)
    assert tiny.curve(tmp_path / "stopped") == tiny.curve(tmp_path / "whole")
    assert evaluations(tmp_path / "stopped") == evaluations(tmp_path / "whole")
    assert [line["step"] for line in evaluations(tmp_path / "whole")] == [4, 8]

    # Of a step that was evaluated there is no second one.
    shutil.rmtree(checkpoints(tmp_path / "stopped" / "out")[8])
    in_process(tmp_path / "stopped", resume=True, fast_max_tokens=70, **run)
    assert evaluations(tmp_path / "stopped") == evaluations(tmp_path / "whole")


def evaluations(directory: Path) -> list[dict]:
    return [line for line in read_metrics(directory / "out" / "metrics.jsonl") if line["kind"] == "eval"]


def test_a_chunk_of_too_many_tokens_is_named_by_its_step_and_episode(tmp_path: Path, test_data: Path) -> None:
    data = {"kind": "droid", "directory": str(test_data / "droid_100"), "train": "2-3", "views": []}
    source = DroidChunks(test_data / "droid_100", [2, 3], action_space=ActionSpace.JOINT_VELOCITY, views=())
    with pytest.raises(ValueError, match="FAST tokens") as caught:
        in_process(tmp_path, data=data, freeze=["vision", "projector"], fast_max_tokens=40)
    named = re.match(r"sample (\d+), (step \d+ of episode_00[23]): row (\d) has (\d+) FAST tokens", str(caught.value))
    assert named
    assert source.describe(int(named[1])) == named[2]
    tokenizer = FASTTokenizer.from_directory(tmp_path / "out" / "assets" / "fast")
    stats = NormStats.load(tmp_path / "out" / "assets" / "norm_stats.json")
    tokens = tokenizer.encode(stats.actions.normalize(source[int(named[1])].actions))
    assert len(tokens) + 1 == int(named[4])


def test_real_episodes_with_images(tmp_path: Path, test_data: Path) -> None:
    data = {"kind": "droid", "directory": str(test_data / "droid_100"), "train": "0,5", "held_out": "1"}
    with pytest.raises(ValueError, match="episodes without images"):
        in_process(tmp_path, data=data)
    outcome = in_process(tmp_path, data=data | {"missing_views": "mask"}, steps=3)
    assert np.isfinite(outcome.evaluation["flow_loss"])


def test_a_run_goes_on_from_before_its_first_picture(tmp_path: Path, test_data: Path) -> None:
    """One episode of six has pictures, and the fourth step is the first with one of its samples."""
    data = {"kind": "droid", "directory": str(test_data / "droid_100"), "train": "0,2-6", "missing_views": "mask"}
    run = {"data": data, "seed": 7, "batch_size": 4, "steps": 6, "save_every": 2, "fast_max_tokens": 200}
    in_process(tmp_path / "whole", **run, keep=3)
    early, late = (
        {name for name in tiny.saved(tmp_path / "whole", step) if "optimizer" in name and "vision_tower" in name}
        for step in (2, 6)
    )
    assert not early
    assert late
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in (4, 6):
        shutil.rmtree(checkpoints(tmp_path / "resumed" / "out")[step])
    in_process(tmp_path / "resumed", resume=True, **run)
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "resumed", 6)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("action_in_proj.weight.exp", r"a part of the state of action_in_proj\.weight, without exp_avg, exp_avg_sq"),
        ("", "no state at all"),
    ],
)
def test_optimizer_state_that_no_run_leaves_is_refused(tmp_path: Path, lost: str, message: str) -> None:
    file = in_process(tmp_path, steps=3).checkpoint / "training" / "optimizer.safetensors"
    state = load_file(file)
    save_file({name: tensor for name, tensor in state.items() if not name.startswith(lost)}, file)
    with pytest.raises(ResumeError, match=message):
        in_process(tmp_path, steps=5, resume=True)
    save_file(state | {"brain.step": state["action_in_proj.weight.step"].clone()}, file)
    with pytest.raises(ResumeError, match=r"other weights than the run trains: unknown .*brain"):
        in_process(tmp_path, steps=5, resume=True)


def test_decoding_of_the_backbone_is_evaluated(tmp_path: Path) -> None:
    evaluation = {"every": 0, "samples": 3, "num_steps": 2, "decode_fast": True}
    outcome = in_process(tmp_path, steps=3, evaluation=evaluation, fast_max_tokens=40)
    assert 0 <= outcome.evaluation["fast_unfinished"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stesp": 3}, "stesp is 3, but there is no such field"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"optimizer": {"learning_rate": -1.0}}, r"optimizer\.learning_rate is -1\.0"),
        ({"optimizer": {"lr": 1.0}}, r"optimizer\.lr is 1\.0, but there is no such field"),
        ({"data": {"kind": "bags"}}, "data"),
        ({"data": {"kind": "droid", "train": "0"}}, "data.directory is missing"),
        ({"model": {}}, r"model\.preset and model\.init are both missing"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"freeze": ["brain"]}, "freeze.0 is 'brain'"),
        ({"norm_stats": "checkpoint"}, "norm_stats is 'checkpoint'"),
        ({"optimizer": {"warmup_steps": 8}}, "warmup_steps is 8, steps is 8"),
    ],
)
def test_configuration_is_strict(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configuration.parse(tiny.settings(tmp_path, **changes))


def test_configuration_survives_its_own_form(tmp_path: Path) -> None:
    settings = configuration.parse(tiny.settings(tmp_path, lora={"rank": 2}, freeze=["vision"]))
    assert configuration.parse(json.loads(json.dumps(settings.to_dict()))) == settings


def test_overrides_are_typed() -> None:
    values = configuration.apply_overrides({"a": {"b": 1}}, ["a.b=1e-4", "a.c=true", "d=text", "e=[1, 2]", "f.g=null"])
    assert values == {"a": {"b": 1e-4, "c": True}, "d": "text", "e": [1, 2], "f": {"g": None}}
    with pytest.raises(ValueError, match="give it as field=value"):
        configuration.apply_overrides({}, ["steps"])
    with pytest.raises(ValueError, match="not a mapping"):
        configuration.apply_overrides({"a": 1}, ["a.b=2"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6, "micro_batch_size": 4}, "batch_size is 6"),
        ({"distributed": "fsdp"}, "torchrun"),
        ({"tokenizer": __file__}, "not a sentencepiece model"),
        ({"device": "toaster"}, "device 'toaster'"),
        ({"fast_max_tokens": 3}, "fast_max_tokens"),
        ({"fast_tokenizer": "/nowhere"}, "/nowhere"),
        ({"tokenizer": "/nowhere"}, "/nowhere"),
        ({"model": {"preset": "ki_tiny", "changes": {"action_horizon": 0}}}, "action_horizon is 0"),
    ],
)
def test_what_cannot_be_trained_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        in_process(tmp_path, **changes)


def test_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"step \d+: loss"):
        in_process(tmp_path, steps=8, optimizer={"learning_rate": 1e20, "warmup_steps": 0, "clip_norm": 1e30})
    assert not checkpoints(tmp_path / "out")


def test_output_of_another_run_is_not_overwritten(whole: Path) -> None:
    before = os.stat(whole / "out" / "train.json").st_mtime_ns
    with pytest.raises(ValueError, match="holds the checkpoints of a run"):
        in_process(whole)
    assert os.stat(whole / "out" / "train.json").st_mtime_ns == before
