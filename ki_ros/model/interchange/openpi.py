"""openpi's PyTorch layout: `model.safetensors`, `config.json` and `assets/<asset_id>/norm_stats.json`.

Its loader (`safetensors.torch.load_model`, strict) takes exactly one name of the tied embedding and insists on the
expert's unused head. It looks for the statistics under the asset id of its training configuration, and never reads
`config.json`, which its converter writes for people.
"""

from __future__ import annotations

from pathlib import Path

from ki_ros.model.checkpoint import CONFIG_FILE, NORM_STATS_FILE
from ki_ros.model.config import KIConfig
from ki_ros.model.interchange.documents import encode, integer, read_object
from ki_ros.model.interchange.errors import InterchangeError
from ki_ros.model.interchange.foreign import Foreign
from ki_ros.model.interchange.norm_stats import QUANTITIES, read_norm_stats, vectors
from ki_ros.model.interchange.sidecar import Sidecar
from ki_ros.model.interchange.variants import variants

PREFIX = ""
"""What the names of tensors begin with."""

ASSETS = "assets"
_FIELDS = {"action_dim", "action_horizon", "paligemma_variant", "action_expert_variant", "precision"}


def read(directory: Path, *, with_norm_stats: bool) -> Foreign:
    """What the directory says beside its weights.

    Args:
        directory: of the checkpoint.
        with_norm_stats: whether its statistics are wanted.

    Raises:
        InterchangeError: a file that is not as openpi writes it, or several statistics.
        NormStatsError: statistics that cannot normalise.
    """
    foreign = Foreign()
    file = directory / CONFIG_FILE
    if file.is_file():
        values = read_object(file)
        foreign.entries.add(CONFIG_FILE)
        foreign.action_dim = integer(file, values, "action_dim")
        foreign.action_horizon = integer(file, values, "action_horizon")
        if others := sorted(set(values) - _FIELDS):
            foreign.not_carried.append(f"{CONFIG_FILE}: {', '.join(others)}")
    found = sorted((directory / ASSETS).rglob(NORM_STATS_FILE))
    found += [own for own in (directory / NORM_STATS_FILE,) if own.is_file()]
    if not with_norm_stats:
        foreign.not_carried += [str(stats.relative_to(directory)) for stats in found]
    elif len(found) > 1:
        raise InterchangeError(f"{directory} has several: {', '.join(map(str, found))}; give norm_stats, one of them")
    elif found:
        foreign.norm_stats, _ = read_norm_stats(found[0])
        foreign.norm_stats_file = found[0]
    foreign.entries |= {NORM_STATS_FILE}
    if (directory / ASSETS).is_dir():
        foreign.entries.add(ASSETS)
        foreign.not_carried += [
            str(path.relative_to(directory))
            for path in sorted((directory / ASSETS).rglob("*"))
            if path.is_file() and path not in found
        ]
    return foreign


def write(directory: Path, config: KIConfig, norm_stats: Path, precision: str, *, asset_id: str) -> None:
    """Writes everything but the weights.

    Args:
        directory: to write into.
        config: of the model.
        norm_stats: the file `norm_stats.json`, which is copied as it is.
        precision: "float32" or "bfloat16", which most weights are in.
        asset_id: of openpi's training configuration, "droid" in its DROID configurations.

    Raises:
        InterchangeError: an asset id that is no relative path, or statistics without mean and std, which openpi needs.
        NormStatsError: statistics that cannot normalise.
    """
    place = Path(asset_id)
    if not place.parts or place.is_absolute() or ".." in place.parts:
        raise InterchangeError(f"asset_id is {asset_id!r}; give the asset id of openpi's training configuration")
    content, document = read_norm_stats(norm_stats)
    have = vectors(norm_stats, document)
    for quantity in QUANTITIES:
        for name in ("mean", "std"):
            if name not in have[quantity]:
                raise InterchangeError(f"{norm_stats}: {quantity}.{name} is missing; openpi needs it, so add it")
    values = {
        "action_dim": config.action_dim,
        "action_horizon": config.action_horizon,
        **variants(config),
        "precision": precision,
    }
    (directory / CONFIG_FILE).write_bytes(encode(values))
    stats_directory = directory / ASSETS / place
    stats_directory.mkdir(parents=True)
    (stats_directory / NORM_STATS_FILE).write_bytes(content)
    Sidecar(config).write(directory)
