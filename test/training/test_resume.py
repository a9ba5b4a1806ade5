"""What may be set otherwise where a run goes on, what is refused, and that nothing is lost by a refusal."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console
from tiny_model import TINY_MODEL

from ki_ros.model.config import KIConfig
from ki_ros.training import config as configuration
from ki_ros.training.state import ResumeError, checkpoints
from ki_ros.training.trainer import Outcome, train

STEPS = 3


def run(directory: Path, *, console: Console | None = None, **changes: Any) -> Outcome:
    config = configuration.parse(tiny.settings(directory / "out", **{"steps": STEPS} | changes))
    return train(config, resume=True, console=console)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, and what it consists of."""
    directory = tmp_path_factory.mktemp("begun")
    torch.set_num_threads(1)
    run(directory)
    return directory


@pytest.fixture
def again(begun: Path, tmp_path: Path) -> Path:
    """A copy of the run, to go on with."""
    shutil.copytree(begun / "out", tmp_path / "out")
    return tmp_path


def model(**changes: Any) -> dict[str, Any]:
    values = copy.deepcopy(TINY_MODEL)
    for name, value in changes.items():
        at = values["changes"]
        at[name] = at[name] | value if isinstance(value, dict) else value
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, "batch_size is 4, but the run was begun with 8; set batch_size to 8, or begin a new run"),
        ({"seed": 7}, "seed is 7, but the run was begun with 0"),
        ({"overfit": 4}, "overfit is 4, but the run was begun with null"),
        ({"norm_stats": "/nowhere"}, 'norm_stats is "/nowhere", but the run was begun with "data"'),
        ({"norm_minimum_range": 0.1}, r"norm_minimum_range is 0\.1, but the run was begun with 0\.0"),
        ({"tokenizer": "/nowhere"}, 'tokenizer is "/nowhere", but the run was begun with null'),
        ({"fast_tokenizer": "/nowhere"}, 'fast_tokenizer is "/nowhere", but the run was begun with "fit"'),
        ({"fast_vocab_size": 320}, "fast_vocab_size is 320, but the run was begun with 300"),
        ({"ema_decay": None}, r"ema_decay is null, but the run was begun with 0\.9; set ema_decay to 0\.9"),
        ({"ema_decay": 0.99}, r"ema_decay is 0\.99, but the run was begun with 0\.9"),
        ({"freeze": ["vision"]}, r'freeze is \["vision"\], but the run was begun with \[\]'),
        ({"lora": {"rank": 2}}, r'lora is \{"rank": 2, .*\}, but the run was begun with null; set lora to null'),
        (
            {"model": model(knowledge_insulation=False)},
            r"model\.changes\.knowledge_insulation is false, but the run was begun with true",
        ),
        ({"model": model(fast_skip_tokens=5)}, r"model\.changes\.fast_skip_tokens is 5, .* begun with 128"),
        ({"model": model(expert={"mlp": 32})}, r"model\.changes\.expert\.mlp is 32, but the run was begun with 28"),
        ({"steps": 2, "optimizer": {"warmup_steps": 1}}, "steps is 2, but the run has made 3; give as many, or more"),
    ],
)
def test_what_would_make_another_run_is_refused_by_name(begun: Path, changes: dict, message: str) -> None:
    before = (begun / "out" / "train.json").read_text()
    with pytest.raises(ResumeError, match=message):
        run(begun, **{"steps": 5} | changes)
    assert list(checkpoints(begun / "out")) == [STEPS]
    assert (begun / "out" / "train.json").read_text() == before


def test_all_that_is_refused_is_named_at_once(begun: Path) -> None:
    with pytest.raises(ResumeError, match=r"(?s)seed is 7.*batch_size is 4.*knowledge_insulation is false"):
        run(begun, seed=7, batch_size=4, model=model(knowledge_insulation=False))


def test_an_average_cannot_begin_in_the_middle(tmp_path: Path) -> None:
    run(tmp_path, ema_decay=None)
    with pytest.raises(ResumeError, match=r"ema_decay is 0\.9, .* set ema_decay to null, or begin a new run") as caught:
        run(tmp_path, steps=5, ema_decay=0.9)
    assert "remove" not in str(caught.value)
    assert run(tmp_path, steps=5, ema_decay=None).step == 5


def test_the_rest_may_change_and_is_said(again: Path) -> None:
    said = io.StringIO()
    changes = {
        "steps": 5,
        "workers": 1,
        "micro_batch_size": 2,
        "save_every": 1,
        "fast_max_tokens": 120,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "evaluation": {"every": 1, "samples": 4, "num_steps": 2},
        "augment": {"enabled": False},
    }
    assert run(again, console=Console(file=said), **changes).step == 5
    (line,) = [line for line in said.getvalue().splitlines() if line.startswith("otherwise than at step 3: ")]
    for change in (
        "steps 3 -> 5", "workers 0 -> 1", "micro_batch_size null -> 2", "save_every 0 -> 1", "evaluation.every 0 -> 1",
        "evaluation.samples 6 -> 4", "fast_max_tokens 128 -> 120", "optimizer.learning_rate 0.003 -> 0.001",
        "augment.enabled true -> false",
    ):  # fmt: skip
        assert change in line
    assert line.count("->") == 9
    said = io.StringIO()
    run(again, console=Console(file=said), **changes)
    assert "otherwise" not in said.getvalue()


def test_the_same_model_in_other_words_goes_on(again: Path) -> None:
    spelled = configuration.model_config(configuration.ModelSource(**TINY_MODEL), KIConfig.from_preset("ki_tiny"))
    assert run(again, steps=5, model={"preset": "ki_300m", "changes": spelled.to_dict()}).step == 5


@pytest.mark.parametrize("part", [{"freeze": ["vision", "projector"]}, {"lora": {"rank": 2}}])
def test_what_is_not_trained_may_have_been_moved_but_is_no_other(begun: Path, tmp_path: Path, part: dict) -> None:
    """It is in no state: it is where the model came from."""
    first = checkpoints(begun / "out")[STEPS]
    other = run(tmp_path / "other", seed=1).checkpoint
    shutil.copytree(first, tmp_path / "moved")
    for name in ("whole", "stopped"):
        run(tmp_path / name, model={"init": str(first)}, save_every=3, steps=6, **part)
    shutil.rmtree(checkpoints(tmp_path / "stopped" / "out")[6])
    with pytest.raises(
        ResumeError, match=r"model\.init is .*: weights that are not trained are not those of .*step_00"
    ):
        run(tmp_path / "stopped", model={"init": str(other)}, save_every=3, steps=6, **part)
    run(tmp_path / "stopped", model={"init": str(tmp_path / "moved")}, save_every=3, steps=6, **part)
    one, same = tiny.saved(tmp_path / "whole", 6), tiny.saved(tmp_path / "stopped", 6)
    assert [name for name in one if not torch.equal(one[name], same[name])] == []


@pytest.mark.parametrize("damage", ["{", "[]", None])
def test_a_checkpoint_that_does_not_say_what_it_is_of_is_refused(again: Path, damage: str | None) -> None:
    checkpoint = checkpoints(again / "out")[STEPS]
    file = checkpoint / "train.json"
    file.unlink() if damage is None else file.write_text(damage)
    with pytest.raises(ResumeError, match=rf"train\.json .*; remove {checkpoint}"):
        run(again, steps=5)


def test_state_of_other_weights_is_refused_whatever_the_settings_say(again: Path) -> None:
    file = checkpoints(again / "out")[STEPS] / "train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"freeze": ["vision"]}))
    with pytest.raises(ResumeError, match=r"holds other weights than the run trains: .*freeze"):
        run(again, steps=5, freeze=["vision"])
