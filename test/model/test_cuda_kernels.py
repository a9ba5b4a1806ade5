"""The kernels on a CPU, thread by thread; where there is a GPU, as a graph on it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from emulated import COMPILER, Emulated
from small import make_model

from ki_ros.model.config import ExpertConfig, KIConfig, LanguageConfig, VisionConfig
from ki_ros.model.engine import FusedEngine, GraphEngine, ReferenceEngine, compare, random_input
from ki_ros.model.engine.cuda.gradient import Guide
from ki_ros.model.engine.cuda.sampler import KernelSampler, unsupported
from ki_ros.model.observation import pixel_values
from ki_ros.model.rtc import Guidance, soft_mask

STEPS = 2
LARGE, SMALL = 200_000, 50_000
"""Bytes of shared memory of a block, for either size of blocks."""

CONFIG = KIConfig(
    vision=VisionConfig(width=64, depth=1, heads=2, mlp=136, image_size=28, patch_size=14),
    language=LanguageConfig(width=72, mlp=128, depth=2, heads=2, kv_heads=1, head_dim=128, vocab_size=300),
    expert=ExpertConfig(width=256, mlp=512),
    action_dim=12,
    action_horizon=15,
    max_token_len=150,
    fast_skip_tokens=10,
    committed_rows=3,
)

emulation = pytest.mark.skipif(COMPILER is None, reason="needs g++, to compile the kernels for this processor")


def made(config: KIConfig, device: str = "cpu"):
    """A model of random weights, the same in float32, and a sampler's arguments."""
    exact = make_model(config).to(device)
    model = copy.deepcopy(exact).cast_(torch.bfloat16)
    return model, ReferenceEngine(exact, STEPS)


@pytest.fixture(scope="module", params=[(1, LARGE), (2, SMALL)], ids=["one key head", "two key heads, small blocks"])
def kernels(request, tmp_path_factory):
    """The model, the reference in float32, and a sampler whose kernels run here."""
    kv_heads, most_shared = request.param
    language = dataclasses.replace(CONFIG.language, kv_heads=kv_heads)
    model, exact = made(dataclasses.replace(CONFIG, language=language))
    engine = FusedEngine(model, STEPS)

    def compiled(source: str, macros: dict[str, int]) -> Emulated:
        return Emulated(source, macros, tmp_path_factory.mktemp(Path(source).stem), most_shared)

    parts = engine._vision, engine._language, engine._expert, engine._modulations, engine._given
    return model, exact, KernelSampler(model, *parts, compiled)


def sampled(sampler: KernelSampler, observation, noise, bucket: int, given=None, free=None, guide=None) -> torch.Tensor:
    """A chunk (1, L, D) with the prompt padded to `bucket` tokens."""
    images = torch.cat(list(observation.images.values()))
    words = observation.tokenized_prompt[observation.tokenized_prompt_mask]
    x = noise[0].clone() if given is None else torch.where(free[:, None], noise[0], given)
    # What padding holds means nothing.
    tokens = torch.full((bucket,), 7)
    tokens[: len(words)] = words
    with torch.no_grad():
        return sampler.sample(images, tokens, torch.tensor(len(words)), x, free, guide)[None]


@emulation
@pytest.mark.parametrize(("tokens", "bucket", "views"), [(3, 8, 1), (140, 150, 2)])
def test_chunks_are_the_models(kernels, tokens, bucket, views):
    model, exact, sampler = kernels
    observation, noise = random_input(model.config, tokens, views, seed=tokens)
    expected = exact.sample(observation, noise)
    ours = (sampled(sampler, observation, noise, bucket) - expected).abs()
    written = (ReferenceEngine(model, STEPS).sample(observation, noise) - expected).abs()
    # Both differ from float32 by their rounding, and the kernels round less often.
    assert ours.max() <= 1.5 * written.max() < 0.2
    assert ours.square().mean() <= 1.5 * written.square().mean()


@emulation
def test_rows_that_are_given(kernels):
    model, exact, sampler = kernels
    observation, noise = random_input(model.config, 20, 2)
    committed = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(1))
    given = torch.zeros(15, 12)
    given[:2, :8] = committed[0]
    free = torch.arange(15) >= 2
    actions = sampled(sampler, observation, noise, 32, given, free)
    assert torch.equal(actions[0, :2], given[:2])
    expected = exact.sample(observation, noise, committed=committed)
    written = ReferenceEngine(model, STEPS).sample(observation, noise, committed=committed)
    assert (actions - expected).abs().max() <= 1.5 * (written - expected).abs().max()
    # Nothing of that call is left behind.
    alone = sampled(sampler, observation, noise, 32)
    sampled(sampler, observation, noise, 32, given, free)
    assert torch.equal(sampled(sampler, observation, noise, 32), alone)


@emulation
@pytest.mark.parametrize(("tokens", "views"), [(3, 1), (140, 2)])
def test_guidance_is_the_models(kernels, tokens, views):
    model, exact, sampler = kernels
    generator = torch.Generator().manual_seed(tokens)
    ours, written = [], []
    for n in range(3):
        observation, noise = random_input(model.config, tokens, views, seed=n)
        guidance = Guidance(torch.randn(1, 15, 8, generator=generator), soft_mask(15, 3, 7), max_weight=0.5)
        padding = 0, model.config.action_dim - 8
        target = torch.nn.functional.pad(guidance.target[0], padding)
        weights = torch.nn.functional.pad(guidance.weights[:, None].expand(15, 8), padding)
        guide = Guide(target, weights.contiguous(), torch.tensor(guidance.max_weight))
        actions = sampled(sampler, observation, noise, 150, guide=guide)
        expected = exact.sample(observation, noise, guidance=guidance)
        assert (expected - exact.sample(observation, noise)).abs().max() > 0.1, "it is drawn somewhere"
        ours.append((actions - expected).abs())
        written.append((ReferenceEngine(model, STEPS).sample(observation, noise, guidance=guidance) - expected).abs())
    assert torch.stack(ours).max() <= 1.5 * torch.stack(written).max()
    assert torch.stack(ours).square().mean() <= 1.5 * torch.stack(written).square().mean()


@emulation
def test_what_padding_holds_changes_nothing(kernels):
    model, _, sampler = kernels
    observation, noise = random_input(model.config, 20, 2)
    assert torch.equal(sampled(sampler, observation, noise, 32), sampled(sampler, observation, noise, 24))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"action_horizon": 17}, "action_horizon is 17, more than 16"),
        ({"max_token_len": 2000}, "prefix and chunk can have 2027 tokens, more than 1024"),
        ({"expert": ExpertConfig(width=96, mlp=256)}, "expert.width is 96, not a multiple of 256"),
    ],
)
def test_models_that_there_are_no_kernels_for(change, reason):
    assert unsupported(dataclasses.replace(CONFIG, **change), torch.bfloat16) == reason
    assert unsupported(CONFIG, torch.float32) == "dtype is torch.float32, not bfloat16"
    assert unsupported(CONFIG, torch.bfloat16) is None
    for preset in ("pi05_droid_ki", "ki_300m"):
        assert unsupported(KIConfig.from_preset(preset), torch.bfloat16) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs and kernels need a CUDA device")
def test_on_a_gpu():
    """Kernels, graphs, and that after `prepare` nothing is captured and no memory taken."""
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, width=72 * 2))
    model, exact = made(config, "cuda")
    engine = GraphEngine(model, STEPS)
    assert engine.kernels
    engine.prepare()
    captures = engine.captures
    written = ReferenceEngine(model, STEPS)
    generator = torch.Generator().manual_seed(3)
    apart: dict[str, list[list[float]]] = {"free": [], "committed": [], "guided": []}
    for n in range(30):
        observation, noise = random_input(config, 1 + n * 37 % 150, 1 + n % 2, seed=n)
        guidance = Guidance(torch.randn(1, 15, 8, generator=generator), soft_mask(15, 2, 4), max_weight=0.5)
        committed = torch.randn(1, n % 4, 8, generator=generator)
        hows = {"free": {}, "committed": {"committed": committed}, "guided": {"guidance": guidance}}
        for name, how in hows.items():
            expected = exact.sample(observation, noise.cuda(), **how)
            both = engine.sample(observation, noise, **how), written.sample(observation, noise.cuda(), **how)
            ours, rounding = ((actions - expected).abs().max().item() for actions in both)
            # Now and then guidance goes far on weights that nobody trained, and rounding with it.
            assert name == "guided" or ours <= 2 * rounding + 0.02
            apart[name].append([ours, rounding])
        if n == 10:
            memory = torch.cuda.memory_allocated()
    assert (engine.captures, torch.cuda.memory_allocated()) == (captures, memory)
    for name, pairs in apart.items():
        ours, rounding = torch.tensor(pairs).median(0).values.tolist()
        assert ours <= 1.5 * rounding < 0.3, name
    inputs = [random_input(config, 20, 2, seed=n) for n in range(3)]
    assert compare(engine, engine, inputs).largest == 0, "two calls say the same"
    floats = dataclasses.replace(
        inputs[0][0], images={slot: pixel_values(image) for slot, image in inputs[0][0].images.items()}
    )
    assert torch.equal(engine.sample(floats, inputs[0][1]), engine.sample(*inputs[0]))
