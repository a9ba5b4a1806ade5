from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import EMBEDDING, HEAD, PRESET, contents, edit_json, read_header, write_openpi, write_own
from openpi_names import DEAD, openpi_tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ki_ros.commands import checkpoint as command
from ki_ros.model.checkpoint import CheckpointError
from ki_ros.model.config import KIConfig
from ki_ros.model.interchange import InterchangeError, export_checkpoint, import_checkpoint
from ki_ros.model.interchange.stream import StreamedTensor, write_safetensors
from ki_ros.model.interchange.weights import Weights
from ki_ros.model.tokenizer import TokenizerError

LAYOUTS = ("openpi", "lerobot")


def interrupt_half_way(done: int, total: int) -> None:
    if done > total / 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("layout", LAYOUTS)
def test_interrupted_leaves_nothing(config, layout, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(own, tmp_path / "theirs", layout=layout, progress=interrupt_half_way)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_interrupted_overwriting_leaves_the_older_one_whole(config, tmp_path) -> None:
    own, other = write_own(tmp_path / "own", config), write_own(tmp_path / "other", config, seed=1)
    export_checkpoint(own, tmp_path / "theirs", layout="openpi")
    before = contents(tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(other, tmp_path / "theirs", layout="openpi", overwrite=True, progress=interrupt_half_way)
    assert contents(tmp_path / "theirs" / "model.safetensors") == before
    export_checkpoint(other, tmp_path / "theirs", layout="lerobot", overwrite=True)
    assert all(name.startswith("model.") for name in load_file(tmp_path / "theirs" / "model.safetensors"))
    assert not (tmp_path / "theirs" / "assets").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "own", "theirs"]


def test_progress_reaches_the_total(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    heard: list[tuple[int, int]] = []
    report = export_checkpoint(own, tmp_path / "theirs", layout="openpi", progress=lambda *now: heard.append(now))
    assert heard[-1] == (report.size, report.size)
    assert heard == sorted(set(heard))
    header = len((tmp_path / "theirs" / "model.safetensors").read_bytes()) - report.size
    assert 8 < header < 200_000


def test_only_what_a_conversion_wrote_is_overwritten(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    public = write_openpi(tmp_path / "public", config)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    export_checkpoint(own, theirs, layout="openpi")
    with pytest.raises(InterchangeError, match="not empty; give another path, or overwrite"):
        export_checkpoint(own, theirs, layout="openpi")
    (theirs / "notes.txt").write_text("mine")
    with pytest.raises(InterchangeError, match=r"no conversion wrote \(notes\.txt\)"):
        export_checkpoint(own, theirs, layout="openpi", overwrite=True)
    with pytest.raises(InterchangeError, match="no conversion wrote"):
        export_checkpoint(own, public, layout="openpi", overwrite=True)
    with pytest.raises(InterchangeError, match="no conversion wrote"):
        import_checkpoint(public, theirs, preset=PRESET, overwrite=True)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InterchangeError, match="no directory"):
        export_checkpoint(own, file, layout="openpi", overwrite=True)
    assert file.read_text() == (theirs / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["own", "own/below", "."])
def test_output_is_apart_from_the_source(config, tmp_path, place) -> None:
    own = write_own(tmp_path / "own", config)
    with pytest.raises(InterchangeError, match="overlaps the source"):
        export_checkpoint(own, tmp_path / place, layout="openpi", overwrite=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [4, 300, -10])
def test_truncated_weights_are_named(config, layout, size, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    export_checkpoint(own, tmp_path / "theirs", layout=layout)
    file = tmp_path / "theirs" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=re.escape(f"{file} is not a whole safetensors file")):
        import_checkpoint(tmp_path / "theirs", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_tampered_side_file_is_named(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    theirs = tmp_path / "theirs"
    export_checkpoint(own, theirs, layout="openpi")
    side = theirs / "ki_ros.json"
    whole = side.read_text()
    for change, message in (
        ({"version": 2}, "version is 2"),
        ({"extra": 1}, r"ki_ros\.json has the fields"),
        ({"config": config.to_dict() | {"action_horizon": 0}}, r"ki_ros\.json: action_horizon is 0"),
        ({"config": config.to_dict() | {"action_dim": 8}}, r"action_dim 32, .*ki_ros\.json 8"),
    ):
        edit_json(side, **change)
        with pytest.raises(InterchangeError, match=message):
            import_checkpoint(theirs, tmp_path / "back")
        side.write_text(whole)
    side.write_text(whole[:-20])
    with pytest.raises(InterchangeError, match=r"ki_ros\.json: cannot be read as JSON"):
        import_checkpoint(theirs, tmp_path / "back")


def test_tied_names_that_differ_are_refused(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    tensors = {name: tensor.clone() for name, tensor in load_file(own / "model.safetensors").items()}
    save_file(tensors | {EMBEDDING: tensors[HEAD] + 1}, own / "model.safetensors")
    with pytest.raises(CheckpointError, match="differ"):
        export_checkpoint(own, tmp_path / "theirs", layout="openpi")


def test_values_that_a_dtype_cannot_hold_are_refused(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    tensors = {name: tensor.clone() for name, tensor in load_file(own / "model.safetensors").items()}
    tensors["time_mlp_in.weight"] = torch.full_like(tensors["time_mlp_in.weight"].double(), 1e300)
    save_file(tensors, own / "model.safetensors")
    with pytest.raises(InterchangeError, match=r"time_mlp_in\.weight holds values beyond the range"):
        export_checkpoint(own, tmp_path / "theirs", layout="openpi", dtype="float32")
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(InterchangeError, match="dtype is 'int8'"):
        export_checkpoint(own, tmp_path / "theirs", layout="openpi", dtype="int8")


def test_sources_that_are_none_are_refused(config, tmp_path) -> None:
    own = write_own(tmp_path / "own", config)
    with pytest.raises(InterchangeError, match="already"):
        import_checkpoint(own, tmp_path / "back")
    with pytest.raises(InterchangeError, match="no directory"):
        import_checkpoint(own / "model.safetensors", tmp_path / "back")
    public = write_openpi(tmp_path / "public", config)
    with pytest.raises(InterchangeError, match="type is None"):
        import_checkpoint(public, tmp_path / "back", preset=PRESET, layout="lerobot")
    with pytest.raises(InterchangeError, match="layout is 'jax'"):
        import_checkpoint(public, tmp_path / "back", preset=PRESET, layout="jax")
    with pytest.raises(CheckpointError, match=r"config\.json: .*action_dim|config\.json: precision|from_preset"):
        export_checkpoint(public, tmp_path / "theirs", layout="openpi")
    (own / "norm_stats.json").unlink()
    with pytest.raises(InterchangeError, match=r"norm_stats\.json does not exist"):
        export_checkpoint(own, tmp_path / "theirs", layout="openpi")
    with pytest.raises(TokenizerError, match="nowhere"):
        import_checkpoint(public, tmp_path / "back", preset=PRESET, tokenizer=tmp_path / "nowhere")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(("prefix", "dim"), [("", 8), ("model.", 32)])
def test_full_size_header(tmp_path, prefix: str, dim: int) -> None:
    """Every name and shape of the 3.3 billion parameter model, in files that are all hole."""
    config = replace(KIConfig.from_preset("pi05_droid_ki"), action_dim=dim)
    shapes = openpi_tensors(config.to_dict())
    shapes[HEAD] = shapes.pop(EMBEDDING)
    source = tmp_path / "own"
    source.mkdir()
    write_safetensors(
        source / "model.safetensors",
        [StreamedTensor(name, "BF16", tuple(shape)) for name, shape in shapes.items()],
    )
    tensors = Weights(source, config, None).tensors(prefix=prefix, dead_head=True)
    file = tmp_path / "model.safetensors"
    write_safetensors(file, [replace(tensor, pieces=None) for tensor in tensors])
    shapes[DEAD] = [257152, 1024]
    expected = {f"{prefix}{name}": shape for name, shape in shapes.items()}
    with safe_open(file, framework="pt") as handle:
        assert {name: handle.get_slice(name).get_shape() for name in handle.keys()} == expected  # noqa: SIM118
    assert file.stat().st_size > 7e9
    assert file.stat().st_blocks * 512 < 1e6


def test_header_is_whole_and_aligned(tmp_path: Path) -> None:
    one, two = torch.randn(3, 5).bfloat16(), torch.randn(7)

    def pieces(tensor: torch.Tensor):
        return lambda: iter(
            [memoryview(part.contiguous().view(torch.uint8).numpy()) for part in tensor.view(-1).split(4)]
        )

    file = tmp_path / "model.safetensors"
    write_safetensors(
        file,
        [
            StreamedTensor("b", "BF16", (3, 5), pieces(one)),
            StreamedTensor("zeros", "F32", (2, 2)),
            StreamedTensor("a", "F32", (7,), pieces(two)),
        ],
    )
    header = read_header(file)
    assert header["a"] == {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}
    assert all(header[name]["data_offsets"][0] % 4 == 0 for name in ("a", "zeros"))
    loaded = load_file(file)
    assert torch.equal(loaded["a"], two)
    assert torch.equal(loaded["b"], one)
    assert torch.equal(loaded["zeros"], torch.zeros(2, 2))
    with pytest.raises(ValueError, match="c: 28 bytes came, but its shape and dtype have 32"):
        write_safetensors(tmp_path / "other", [StreamedTensor("c", "F32", (8,), pieces(two))])
    with pytest.raises(FileExistsError):
        write_safetensors(file, [])


def test_commands_print_what_was_assumed_and_left(config, tmp_path, capsys) -> None:
    public = write_openpi(tmp_path / "public", config)
    (public / "optimizer.pt").write_bytes(b"")
    assert (
        command.import_checkpoint(
            source=public,
            output=tmp_path / "own",
            format="auto",
            preset=PRESET,
            action_space="",
            norm_stats=None,
            tokenizer=None,
            dtype="",
            overwrite=False,
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "assumed: action_space joint_velocity (preset ki_tiny)" in printed
    assert "not carried: optimizer.pt" in printed
    assert "missing: tokenizer.model" in printed
    assert (
        command.export_checkpoint(
            source=tmp_path / "own",
            output=tmp_path / "theirs",
            format="lerobot",
            asset_id="droid",
            dtype="",
            overwrite=False,
        )
        == 0
    )
    assert "added as zeros" in capsys.readouterr().out
    assert (tmp_path / "theirs" / "policy_preprocessor.json").is_file()
