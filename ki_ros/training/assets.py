"""What a run needs beside weights: data, statistics, tokenizers. Made once, at the run's start, and kept with it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from ki_ros.data.bag_chunks import BagChunks, select_episodes, split_episodes
from ki_ros.data.cache import Cache
from ki_ros.data.chunks import DroidChunks
from ki_ros.data.pointing import Counterfactuals, Pointing
from ki_ros.data.statistics import compute_norm_stats
from ki_ros.data.subset import Subset
from ki_ros.model.checkpoint import FAST_DIRECTORY, NORM_STATS_FILE, TOKENIZER_FILE, checkpoint_directory
from ki_ros.model.config import KIConfig
from ki_ros.model.fast import FASTTokenizer, TokenizeFASTInputs
from ki_ros.model.fast_decoder import fast_vocabulary
from ki_ros.model.inputs import PolicyInputs
from ki_ros.model.normalize import NormStats
from ki_ros.model.tokenizer import PALIGEMMA_SOURCES, PromptTokenizer
from ki_ros.rig import POLICY_VIEWS, STATE_DIM, CameraRole
from ki_ros.sample import SampleSource
from ki_ros.share import find_share
from ki_ros.training.batches import SampleEncoder
from ki_ros.training.build import unchanged_model
from ki_ros.training.cached import cache_plan
from ki_ros.training.config import (
    CachedData,
    DroidData,
    PointingData,
    TrainConfig,
    TrainConfigError,
    episode_numbers,
)

_FIT_CHUNKS = 50_000


@dataclass(frozen=True)
class Sources:
    """The data of a run.

    Attributes:
        train: to train on.
        held_out: to evaluate on, if there are any.
        others: the held-out samples with another instruction and its actions, from data that have such.
        views: cameras to train with.
        whole: whether every sample has all of them.
    """

    train: DroidChunks | Pointing | BagChunks | Subset
    held_out: SampleSource | None
    others: SampleSource | None
    views: tuple[CameraRole, ...]
    whole: bool


def open_sources(config: TrainConfig, model: KIConfig) -> Sources:
    """The data of a run.

    Raises:
        ValueError: an episode that is missing or incomplete; ranges that overlap; both exterior cameras; an action
            space that is not the model's, of the data or of the checkpoint that the statistics are to be taken from.
    """
    data = config.data
    _require_own_statistics(config, model)
    if isinstance(data, DroidData):
        train = episode_numbers(data.train, "data.train")
        held_out = episode_numbers(data.held_out, "data.held_out") if data.held_out else []
        if both := sorted(set(train) & set(held_out)):
            raise TrainConfigError(f"data.held_out is {data.held_out!r}; episode {both[0]} is in data.train as well")

        def chunks(numbers: list[int]) -> DroidChunks:
            return DroidChunks(
                data.directory,
                numbers,
                horizon=model.action_horizon,
                action_space=data.action_space,
                views=data.views,
                missing_views=data.missing_views,
            )

        sources = Sources(
            chunks(train), chunks(held_out) if held_out else None, None, data.views, data.missing_views == "refuse"
        )
    elif isinstance(data, CachedData):
        sources = _cached_sources(data, model)
    else:
        views = POLICY_VIEWS
        first, other = (
            Pointing(count, seed=seed, side=data.side, horizon=model.action_horizon)
            for count, seed in ((data.train, data.seed), (data.held_out, data.seed + 1))
        )
        sources = Sources(first, other, Counterfactuals(other), views, True)
    _base_view(sources.views)
    if config.overfit is not None:
        few = Subset(sources.train, config.overfit)
        sources = replace(sources, train=few, held_out=few, others=None)
    if sources.train.action_space is not model.action_space:
        found, wanted = sources.train.action_space.value, model.action_space.value
        remedy = f"model.changes.action_space={found} and norm_stats=data"
        if not isinstance(data, PointingData):
            remedy = f"data.action_space={wanted}, or, for a model that acts as the data do, {remedy}"
        raise TrainConfigError(f"the data's action_space is {found!r}, the model's {wanted!r}; set {remedy}")
    if not len(sources.train):
        raise TrainConfigError("the training data are empty; give at least one sample")
    return sources


def _require_own_statistics(config: TrainConfig, model: KIConfig) -> None:
    """Raises TrainConfigError where actions would be normalised by the statistics of actions of another kind."""
    if config.norm_stats != "checkpoint":
        return
    own = unchanged_model(config.model).action_space
    if own is not model.action_space:
        raise TrainConfigError(
            f"norm_stats is 'checkpoint', whose statistics are of {own.value!r} actions, but the model's action_space "
            f"is {model.action_space.value!r}; give norm_stats=data, or leave model.changes.action_space out"
        )


def _cached_sources(data: CachedData, model: KIConfig) -> Sources:
    plan = cache_plan(data)
    if plan is not None:
        plan.build()
    cache = Cache(data.cache_directory)

    def chunks(episodes: Sequence[int]) -> BagChunks:
        return BagChunks(
            cache,
            horizon=model.action_horizon,
            action_space=data.action_space,
            views=data.views,
            outcomes=data.outcomes,
            drop_idle=data.drop_idle,
            hold_after_end=data.hold_after_end,
            episodes=episodes,
            missing_views=data.missing_views,
            instruction=data.instruction,
        )

    train, held_out = split_episodes(cache, select_episodes(cache, data.outcomes), data.held_out)
    whole = data.missing_views == "refuse"
    return Sources(chunks(train), chunks(held_out) if held_out else None, None, data.views, whole)


def prepare_assets(config: TrainConfig, sources: Sources, console: Console) -> Path:
    """Writes the run's statistics and tokenizers below its output; returns their directory.

    Raises:
        ValueError: a file that is missing or wrong.
    """
    directory = config.output / "assets"
    temporary = config.output / ".assets"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_norm_stats(config, sources, temporary / NORM_STATS_FILE)
    shutil.copyfile(_tokenizer_file(config), temporary / TOKENIZER_FILE)
    if config.fast_tokenizer == "fit":
        stats = NormStats.load(temporary / NORM_STATS_FILE)
        chunks = whole_chunks(sources.train, stats)
        with console.status(f"fitting a FAST tokenizer to {len(chunks)} chunks"):
            tokenizer = FASTTokenizer.fit(chunks, vocab_size=config.fast_vocab_size)
        saturated = tokenizer.encode_batch(chunks).saturated
        console.print(f"FAST tokenizer: {tokenizer.vocab_size} tokens from {len(chunks)} chunks, {saturated} saturated")
    else:
        tokenizer = FASTTokenizer.from_directory(config.fast_tokenizer)
    tokenizer.save(temporary / FAST_DIRECTORY)
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
    return directory


def make_encoder(
    config: TrainConfig, model: KIConfig, assets: Path, sources: Sources, *, training: bool
) -> SampleEncoder:
    """The encoder of a run's samples: with augmentation and `flow_samples` in training, without and one otherwise."""
    stats = NormStats.load(assets / NORM_STATS_FILE)
    prompts = PromptTokenizer(assets / TOKENIZER_FILE, model.max_token_len)
    inputs = PolicyInputs(model, stats, prompts, base_view=_base_view(sources.views))
    tokenizer = FASTTokenizer.from_directory(assets / FAST_DIRECTORY)
    vocabulary = fast_vocabulary(model, tokenizer)
    if vocabulary.lowest_id < inputs.tokenizer.vocab_size and vocabulary.backbone_vocab_size < 256_000:
        raise TrainConfigError(
            f"{tokenizer.vocab_size} FAST tokens reach down to id {vocabulary.lowest_id}, but the prompt's tokenizer "
            f"has {inputs.tokenizer.vocab_size} pieces; enlarge language.vocab_size or lower fast_vocab_size"
        )
    fast = TokenizeFASTInputs(
        tokenizer=tokenizer, vocabulary=vocabulary, action_dim=STATE_DIM, max_tokens=config.fast_max_tokens
    )
    return SampleEncoder(
        model,
        inputs,
        fast,
        views=sources.views,
        require_views=sources.whole,
        flow_samples=config.flow_samples if training else 1,
        augment=config.augment if training else None,
    )


def _base_view(views: Sequence[CameraRole]) -> CameraRole:
    """The exterior camera among those to train with: the model has a slot for one, and would never see another."""
    exteriors = [view for view in views if view is not CameraRole.WRIST]
    if len(exteriors) > 1:
        raise TrainConfigError(
            f"data.views has {' and '.join(view.value for view in exteriors)}, but the model sees one exterior camera; "
            "name that one"
        )
    return exteriors[0] if exteriors else CameraRole.EXTERIOR_1


def _write_norm_stats(config: TrainConfig, sources: Sources, file: Path) -> None:
    if config.norm_stats == "data":
        states, actions = sources.train.states_and_actions()
        computed = compute_norm_stats(states, actions, minimum_range=config.norm_minimum_range)
        file.write_text(json.dumps(computed, indent=1) + "\n", encoding="utf-8")
        return
    if config.norm_stats == "checkpoint":
        assert config.model.init is not None
        beside = checkpoint_directory(config.model.init)
        found = [*beside.glob(NORM_STATS_FILE), *beside.glob(f"assets/*/{NORM_STATS_FILE}")]
        if len(found) != 1:
            raise TrainConfigError(
                f"norm_stats is 'checkpoint', but {beside} has {len(found)} of them; give the path of one, or 'data'"
            )
        given = found[0]
    else:
        given = Path(config.norm_stats)
    NormStats.load(given)
    shutil.copyfile(given, file)


def _tokenizer_file(config: TrainConfig) -> Path:
    if config.tokenizer is not None:
        return config.tokenizer
    places = []
    if config.model.init is not None:
        places.append(checkpoint_directory(config.model.init))
    if config.model.preset is not None:
        with contextlib.suppress(FileNotFoundError):
            places.append(find_share("models", config.model.preset))
    for place in places:
        if (place / TOKENIZER_FILE).is_file():
            return place / TOKENIZER_FILE
    raise TrainConfigError(
        f"tokenizer is missing, and there is no {TOKENIZER_FILE} in {', '.join(map(str, places)) or 'any place'}; "
        f"give its path. {PALIGEMMA_SOURCES}"
    )


def whole_chunks(
    source: DroidChunks | Pointing | BagChunks | Subset, stats: NormStats, most: int = _FIT_CHUNKS
) -> np.ndarray:
    """Normalised chunks (N, H, 8) without a step past the end; of a source with many, every so many.

    Only these are made: all chunks of a source take H times the memory of its actions.

    Args:
        source: of the chunks.
        stats: to normalise by.
        most: about how many; N is less than twice that.

    Raises:
        TrainConfigError: there are none.
    """
    whole = np.flatnonzero(source.whole())
    if not len(whole):
        raise TrainConfigError("no chunk of the training data lies within its episode; give longer episodes")
    actions, _ = source.chunks(whole[:: max(1, len(whole) // most)])
    return stats.actions.normalize(actions)
