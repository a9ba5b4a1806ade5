"""Import from and export to the layouts of openpi and LeRobot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ki_ros.files import assembled
from ki_ros.model.checkpoint import (
    CONFIG_FILE,
    FAST_DIRECTORY,
    NORM_STATS_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    read_config,
    stored_action_dim,
)
from ki_ros.model.config import KIConfig
from ki_ros.model.interchange import lerobot, openpi
from ki_ros.model.interchange.directory import require_apart, require_free, require_space
from ki_ros.model.interchange.documents import encode, read_object
from ki_ros.model.interchange.errors import InterchangeError
from ki_ros.model.interchange.foreign import Foreign
from ki_ros.model.interchange.norm_stats import read_norm_stats
from ki_ros.model.interchange.report import Report
from ki_ros.model.interchange.sidecar import SIDE_FILE, Sidecar
from ki_ros.model.interchange.stream import StreamedTensor, write_safetensors
from ki_ros.model.interchange.variants import is_standard
from ki_ros.model.interchange.weights import DEAD_HEAD, Weights, first_name, weight_entries
from ki_ros.model.normalize import NormStats, NormStatsError
from ki_ros.model.tokenizer import PromptTokenizer
from ki_ros.rig import ActionSpace

LAYOUTS = ("openpi", "lerobot")
"""The layouts of others."""

AUTO = "auto"
"""Recognise the layout of a source by its files."""


_IMPORTED = (WEIGHTS_FILE, CONFIG_FILE, NORM_STATS_FILE, TOKENIZER_FILE, FAST_DIRECTORY)
_EXPORTED = (*_IMPORTED, SIDE_FILE, openpi.ASSETS, "policy_p*processor*.json", "policy_p*processor_*.safetensors")

Progress = Callable[[int, int], None]
"""Hears how many bytes of how many have been written."""


def import_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    layout: str = AUTO,
    preset: str = "pi05_droid_ki",
    action_space: str | ActionSpace | None = None,
    norm_stats: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Report:
    """Writes a checkpoint of this package from one of openpi or LeRobot. Every tensor comes along bit by bit.

    Args:
        source: the other checkpoint's directory.
        output: a new or empty directory.
        layout: "openpi", "lerobot" or "auto".
        preset: says what the source does not. A source that this package exported says everything.
        action_space: of a source that does not name its own; the preset's when left out.
        norm_stats: path of `norm_stats.json`, instead of the source's statistics.
        tokenizer: path of a sentencepiece model, instead of the source's.
        dtype: "float32" or "bfloat16"; None keeps each tensor's. See `Weights`.
        overwrite: whether an output that a conversion wrote may be replaced.
        progress: hears of every piece.

    Raises:
        ValueError: InterchangeError or the error of the part that is wrong (CheckpointError, ConfigError,
            NormStatsError, TokenizerError). Nothing is left at `output` then.
    """
    source, output = _directory(source), Path(output)
    layout = _layout(source, layout)
    require_apart(source, output)
    require_free(output, is_ours=_is_own, known=_IMPORTED, overwrite=overwrite)
    sidecar = Sidecar.read(source)
    if layout == "lerobot":
        foreign = lerobot.read(source, with_norm_stats=norm_stats is None, sidecar=sidecar)
    else:
        foreign = openpi.read(source, with_norm_stats=norm_stats is None)
    if norm_stats is not None:
        foreign.norm_stats_file = Path(norm_stats)
        foreign.norm_stats, _ = read_norm_stats(foreign.norm_stats_file)
    report = Report(source=source, output=output, layout=layout, assumed=foreign.assumed)
    config = _config(source, foreign, sidecar, preset, action_space, report)
    with Weights(source, config, dtype) as weights, assembled(output, overwrite=overwrite) as directory:
        (directory / CONFIG_FILE).write_bytes(encode(config.to_dict()))
        _write_norm_stats(directory, foreign, report)
        _write_tokenizer(source, directory, config, tokenizer, report)
        _copy_fast(source, directory)
        entries = foreign.entries | weight_entries(source) | {SIDE_FILE, TOKENIZER_FILE, FAST_DIRECTORY}
        report.not_carried += foreign.not_carried + _others(source, entries)
        if weights.has_dead_head:
            report.not_carried.append(f"{DEAD_HEAD} (no computation reads it)")
        _write_weights(output, directory, weights.tensors(), report, progress)
    return report


def export_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    layout: str,
    dtype: str | None = None,
    asset_id: str = "droid",
    overwrite: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Report:
    """Writes a checkpoint of this package in the layout of openpi or LeRobot. Every tensor goes along bit by bit.

    What that layout has no place for goes into `ki_ros.json` beside it, so that an import gives the same again.

    Args:
        source: directory with `model.safetensors`, `config.json` and `norm_stats.json`.
        output: a new or empty directory.
        layout: "openpi" or "lerobot".
        dtype: "float32" or "bfloat16"; None keeps each tensor's. See `Weights`.
        asset_id: under which openpi's training configuration looks for the statistics; LeRobot has none.
        overwrite: whether an output that a conversion wrote may be replaced.
        progress: hears of every piece.

    Raises:
        ValueError: InterchangeError or the error of the part that is wrong (CheckpointError, ConfigError,
            NormStatsError). Nothing is left at `output` then.
    """
    source, output = _directory(source), Path(output)
    if layout not in LAYOUTS:
        raise InterchangeError(f"layout is {layout!r}; use one of {', '.join(LAYOUTS)}")
    require_apart(source, output)
    require_free(output, is_ours=_is_exported, known=_EXPORTED, overwrite=overwrite)
    config = read_config(source)
    stats = source / NORM_STATS_FILE
    if not stats.is_file():
        raise InterchangeError(f"{stats} does not exist; put the statistics there that the weights were trained with")
    report = Report(source=source, output=output, layout=layout)
    with Weights(source, config, dtype) as weights, assembled(output, overwrite=overwrite) as directory:
        if layout == "lerobot":
            lerobot.write(directory, config, stats, weights.precision)
            prefix = lerobot.PREFIX
        else:
            openpi.write(directory, config, stats, weights.precision, asset_id=asset_id)
            prefix = openpi.PREFIX
        if (source / TOKENIZER_FILE).is_file():
            shutil.copyfile(source / TOKENIZER_FILE, directory / TOKENIZER_FILE)
        _copy_fast(source, directory)
        report.not_carried += _others(source, weight_entries(source) | set(_IMPORTED))
        report.notes.append(f"{prefix}{DEAD_HEAD} is added as zeros: the other loader insists on it, nothing reads it")
        if not is_standard(config):
            report.notes.append(
                f"these are not the sizes of pi0.5, so only this software can build the model; {SIDE_FILE} has them"
            )
        _write_weights(output, directory, weights.tensors(prefix=prefix, dead_head=True), report, progress)
    return report


def _directory(source: str | Path) -> Path:
    source = Path(source)
    if not source.is_dir():
        raise InterchangeError(f"source is {source}, which is no directory; give the directory of a checkpoint")
    return source


def _is_own(directory: Path) -> bool:
    """Whether a directory has a `config.json` of this package."""
    file = directory / CONFIG_FILE
    return file.is_file() and not {"vision", "language", "expert"}.isdisjoint(read_object(file))


def _is_exported(directory: Path) -> bool:
    return (directory / SIDE_FILE).is_file()


def _layout(source: Path, layout: str) -> str:
    """The source's layout, refused where its files contradict the one that is asked for."""
    if layout not in (AUTO, *LAYOUTS):
        raise InterchangeError(f"layout is {layout!r}; use one of {', '.join((AUTO, *LAYOUTS))}")
    file = source / CONFIG_FILE
    values = read_object(file) if file.is_file() else {}
    if _is_own(source):
        raise InterchangeError(f"{source} is a checkpoint of this package already; load it as it is, or export it")
    prefixed = first_name(source).startswith(lerobot.PREFIX)
    if layout == AUTO:
        layout = "lerobot" if "type" in values or prefixed else "openpi"
    if layout == "lerobot" and not file.is_file():
        raise InterchangeError(f"{file} does not exist; LeRobot's checkpoints have one, so copy the whole checkpoint")
    if layout == "openpi" and "type" in values:
        raise InterchangeError(f"{file}: type is {values['type']!r}, as LeRobot writes; use the layout 'lerobot'")
    return layout


def _config(
    source: Path,
    foreign: Foreign,
    sidecar: Sidecar | None,
    preset: str,
    action_space: str | ActionSpace | None,
    report: Report,
) -> KIConfig:
    """The configuration: the side file's, or the preset's with what the source says."""
    space = None if action_space is None else ActionSpace.parse(action_space)
    said: dict[str, Any] = {
        name: value
        for name in ("action_dim", "action_horizon", "max_token_len")
        if (value := getattr(foreign, name)) is not None
    }
    if sidecar is not None:
        config = sidecar.config
        if space is not None and space is not config.action_space:
            raise InterchangeError(
                f"action_space is {space.value!r}, but {source / SIDE_FILE} says {config.action_space.value!r}; "
                "leave action_space out"
            )
        for name, value in said.items():
            if value != getattr(config, name):
                raise InterchangeError(
                    f"{source / CONFIG_FILE} says {name} {value}, {source / SIDE_FILE} {getattr(config, name)}; "
                    f"remove {SIDE_FILE} if the checkpoint was changed since it was exported"
                )
    else:
        base = KIConfig.from_preset(preset)
        stored = stored_action_dim(source)
        if said.setdefault("action_dim", stored) != stored:
            raise InterchangeError(
                f"{source / CONFIG_FILE} says action_dim {said['action_dim']}, the weights have {stored}; "
                "correct the file"
            )
        if space is not None:
            said["action_space"] = space
        config = replace(base, **said)
        values = config.to_dict()
        report.assumed += [
            f"{name} {values[name]} (preset {preset})"
            for name in values
            if name not in said and name not in ("vision", "language", "expert")
        ]
        report.assumed.append(f"sizes of preset {preset}, which the tensors' shapes agree with")
    if foreign.image_size not in (None, config.vision.image_size):
        raise InterchangeError(
            f"{source / CONFIG_FILE}: image_resolution is {foreign.image_size}, the model's is "
            f"{config.vision.image_size}; use the preset that the checkpoint belongs to"
        )
    return config


def _write_norm_stats(directory: Path, foreign: Foreign, report: Report) -> None:
    if foreign.norm_stats is None:
        report.missing.append(f"{NORM_STATS_FILE}: the source has none; a policy needs the statistics of its data")
        return
    file = directory / NORM_STATS_FILE
    file.write_bytes(foreign.norm_stats)
    try:
        NormStats.load(file)
    except NormStatsError as error:
        raise NormStatsError(str(error).replace(str(file), str(foreign.norm_stats_file))) from error
    report.notes.append(f"{NORM_STATS_FILE} from {foreign.norm_stats_file}")


def _write_tokenizer(
    source: Path, directory: Path, config: KIConfig, tokenizer: str | Path | None, report: Report
) -> None:
    file = Path(tokenizer) if tokenizer is not None else source / TOKENIZER_FILE
    if tokenizer is None and not file.is_file():
        report.missing.append(f"{TOKENIZER_FILE}: the source has none; a policy needs PaliGemma's")
        return
    pieces = PromptTokenizer(file, config.max_token_len).vocab_size
    if pieces > config.language.vocab_size:
        raise InterchangeError(
            f"{file} has {pieces} pieces, the model only {config.language.vocab_size} embeddings; give the tokenizer "
            "that the model was trained with"
        )
    shutil.copyfile(file, directory / TOKENIZER_FILE)


def _copy_fast(source: Path, directory: Path) -> None:
    if (source / FAST_DIRECTORY).is_dir():
        shutil.copytree(source / FAST_DIRECTORY, directory / FAST_DIRECTORY, copy_function=shutil.copyfile)


def _others(source: Path, entries: set[str]) -> list[str]:
    return sorted(f"{entry.name}{'/' * entry.is_dir()}" for entry in source.iterdir() if entry.name not in entries)


def _write_weights(
    output: Path, directory: Path, tensors: list[StreamedTensor], report: Report, progress: Progress
) -> None:
    report.tensors, report.size = len(tensors), sum(tensor.size for tensor in tensors)
    require_space(output, report.size)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress(done, report.size)

    write_safetensors(directory / WEIGHTS_FILE, tensors, on_bytes=on_bytes)
