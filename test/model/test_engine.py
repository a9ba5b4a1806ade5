"""Engines say what the model says, which says what the public implementation says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import make_model

from ki_ros.data.droid import Episode
from ki_ros.model.checkpoint import load_checkpoint
from ki_ros.model.config import KIConfig
from ki_ros.model.engine import (
    BOUNDS,
    ENGINES,
    EngineError,
    FusedEngine,
    GraphEngine,
    ReferenceEngine,
    compare,
    layers,
    make_engine,
    verify,
)
from ki_ros.model.engine.check import random_input
from ki_ros.model.observation import Observation, ObservationError
from ki_ros.model.reference import recorded_observation
from ki_ros.model.rtc import Guidance, soft_mask
from ki_ros.policy import Policy
from ki_ros.rig import POLICY_SLOTS, CameraRole
from ki_ros.share import find_share

STEPS = 10
FLOAT32 = 2e-5
"""What is found to differ in float32 is some 1e-6; actions of the small models reach 4."""


@pytest.fixture(scope="module", params=[1, 2], ids=["one key head", "two key heads"])
def model(request, small_config):
    language = dataclasses.replace(small_config.language, kv_heads=request.param)
    return make_model(dataclasses.replace(small_config, language=language, committed_rows=3))


@pytest.fixture(scope="module")
def trained() -> Policy:
    """The policy that ships, as it is written down."""
    return Policy.load(checkpoint=find_share("models", "ki_tiny"), engine="reference", seed=0, threads=1)


@pytest.mark.parametrize("bucket", [1, 4])
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 6, 10])
def test_a_chunk_is_the_models(model, bucket, views, tokens):
    observation, noise = random_input(model.config, tokens, views, seed=tokens + views)
    fused = FusedEngine(model, STEPS, bucket=bucket)
    expected = model.sample_actions(observation, noise=noise, num_steps=STEPS)
    torch.testing.assert_close(fused.sample(observation, noise), expected, atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("bucket", [1, 4])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_it_goes_on_from_committed_rows(model, bucket, rows):
    observation, noise = random_input(model.config, 7, 2)
    committed = torch.randn(1, rows, 8, generator=torch.Generator().manual_seed(1))
    actions = FusedEngine(model, STEPS, bucket=bucket).sample(observation, noise, committed=committed)
    assert torch.equal(actions[:, :rows], committed)
    expected = model.sample_actions(observation, noise=noise, num_steps=STEPS, committed=committed)
    torch.testing.assert_close(actions, expected, atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("bucket", [1, 4])
def test_it_is_guided(model, bucket):
    observation, noise = random_input(model.config, 7, 2)
    guidance = Guidance(torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1)), soft_mask(5, 2, 4))
    engine = FusedEngine(model, STEPS, bucket=bucket)
    expected = model.sample_actions(observation, noise=noise, num_steps=STEPS, guidance=guidance)
    torch.testing.assert_close(engine.sample(observation, noise, guidance=guidance), expected, atol=FLOAT32, rtol=0)
    # Nothing of the guided call is left behind.
    free = model.sample_actions(observation, noise=noise, num_steps=STEPS)
    torch.testing.assert_close(engine.sample(observation, noise), free, atol=FLOAT32, rtol=0)


def test_views_that_are_masked_and_prompts_with_holes(model):
    observation, noise = random_input(model.config, 8, 3)
    masks = {slot: torch.tensor([slot != POLICY_SLOTS[1]]) for slot in POLICY_SLOTS}
    holes = observation.tokenized_prompt_mask & (torch.arange(10) != 3)
    observation = dataclasses.replace(observation, image_masks=masks, tokenized_prompt_mask=holes)
    expected = model.sample_actions(observation, noise=noise, num_steps=STEPS)
    torch.testing.assert_close(FusedEngine(model, STEPS).sample(observation, noise), expected, atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("name", ["A", "B"])
def test_the_public_implementations_samples(test_data, name):
    directory = test_data / "pi05_reference" / name
    model = load_checkpoint(directory / "weights.safetensors", KIConfig.from_json(directory / "config.json"))
    record = load_file(directory / "vectors.safetensors")
    observation = recorded_observation(record)
    for steps, key in ((10, "sampled_actions"), (1, "sampled_actions_1steps")):
        engine = FusedEngine(model, steps)
        for row in range(len(record["noise"])):
            actions = engine.sample(_row(observation, row), record["noise"][row : row + 1])
            torch.testing.assert_close(actions[0], record[key][row], atol=1e-5, rtol=0)


def test_real_inputs(test_data, trained):
    """The policy that ships, on two real episodes of DROID and as many random inputs."""
    real = []
    for number in (0, 1):
        episode = Episode.load(test_data / "droid_100", number)
        for step in range(0, len(episode), len(episode) // 8):
            views = {role: episode.image(role, step) for role in (CameraRole.EXTERIOR_1, CameraRole.WRIST)}
            observation = trained.observe(views, episode.states[step], episode.instruction)
            real.append((observation, random_input(trained.config, 1, 1, seed=step)[1]))
    made = [random_input(trained.config, 20 + n, 2, seed=n) for n in range(len(real))]
    reference, engine = trained.engine, make_engine("fused", trained.model, STEPS)
    for inputs in (real, made):
        found = compare(engine, reference, inputs)
        assert found.rms <= found.largest <= FLOAT32 < BOUNDS[torch.float32]


def test_half_precision(trained):
    """bfloat16 differs from float32 by its rounding, the engine no more than the model itself."""
    inputs = [random_input(trained.config, 20 + n, 2, seed=n) for n in range(10)]
    halved = Policy.load(checkpoint=find_share("models", "ki_tiny"), dtype="bfloat16", engine="fused", threads=1)
    exact = trained.engine
    ours = compare(halved.engine, exact, inputs)
    written = compare(ReferenceEngine(halved.model, STEPS), exact, inputs)
    assert ours.largest <= 2 * written.largest <= BOUNDS[torch.bfloat16]
    assert ours.rms <= 1.5 * written.rms


def test_packed_weights_are_the_models_own(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    FusedEngine(model, STEPS)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    storages = {parameter.untyped_storage().data_ptr(): parameter.untyped_storage() for parameter in model.parameters()}
    used = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert sum(len(storage) for storage in storages.values()) == used
    # A second engine finds them packed.
    FusedEngine(model, STEPS)
    assert {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} == set(storages)


def test_an_engine_that_says_something_else_is_refused(model):
    assert verify(FusedEngine(model, STEPS), model).largest <= FLOAT32
    other = make_model(model.config, seed=1)
    with pytest.raises(EngineError, match=r"engine 'fused' is .* from the reference, more than 0\.0001"):
        verify(FusedEngine(other, STEPS), model)
    with torch.no_grad():
        other.action_out_proj.bias.fill_(float("nan"))
    with pytest.raises(EngineError, match="is inf from"):
        verify(FusedEngine(other, STEPS), model)


def test_what_it_refuses(model):
    engine = FusedEngine(model, STEPS)
    observation, noise = random_input(model.config, 4, 2)
    double = Observation(
        **{
            field.name: _map(getattr(observation, field.name), lambda tensor: torch.cat((tensor, tensor)))
            for field in dataclasses.fields(observation)
        }
    )
    with pytest.raises(ObservationError, match="2 rows; this engine acts on one"):
        engine.sample(double, torch.cat((noise, noise)))
    blind = {slot: torch.tensor([False]) for slot in observation.image_masks}
    with pytest.raises(ObservationError, match="give it a view"):
        engine.sample(dataclasses.replace(observation, image_masks=blind), noise)
    with pytest.raises(ValueError, match="noise has shape"):
        engine.sample(observation, noise[:, :2])
    with pytest.raises(ValueError, match="committed has 4 rows"):
        engine.sample(observation, noise, committed=torch.zeros(1, 4, 8))


def test_names(model):
    assert make_engine("auto", model, STEPS).name == "fused"
    for name in set(ENGINES) - {"graph"}:
        assert make_engine(name, model, STEPS).name == name
    with pytest.raises(EngineError, match="engine 'tensorrt' is not known; use auto or one of reference, fused"):
        make_engine("tensorrt", model, STEPS)
    with pytest.raises(EngineError, match="'graph' needs a CUDA device, and the model is on cpu"):
        make_engine("graph", model, STEPS)


class Rerun(GraphEngine):
    """A graph engine without a GPU: what would be captured is run again, on the same tensors."""

    def __init__(self, model, num_steps):
        super().__init__(model, num_steps)
        self._vision_layer, self._backbone_layer = layers.vision_layer, layers.backbone_layer
        self._expert_layer = layers.expert_layer

    @staticmethod
    def _require_device(device):
        pass

    def _record(self, run):
        with torch.no_grad():
            actions = run()

        def replay():
            actions.copy_(run())

        return replay, actions


def test_what_a_graph_reads_and_writes(small_config):
    """All but the capture itself: buckets, their tensors, and that nothing is left of the call before."""
    model = make_model(dataclasses.replace(small_config, committed_rows=3, max_token_len=40))
    engine = Rerun(model, STEPS)
    engine.prepare()
    captures = engine.captures
    assert captures == 2 * (2 * 2 + 1), "of one and two views: to 32 and to 40 tokens, free and committed; guided"
    generator = torch.Generator().manual_seed(3)
    for n, tokens in enumerate((40, 1, 33, 32, 12, 40)):
        observation, noise = random_input(model.config, tokens, 2, seed=n)
        committed = torch.randn(1, n % 4, 8, generator=generator)
        guidance = Guidance(torch.randn(1, 5, 8, generator=generator), soft_mask(5, 2, 4))
        for how in ({}, {"committed": committed}, {"guidance": guidance}):
            expected = model.sample_actions(observation, noise=noise, num_steps=STEPS, **how)
            torch.testing.assert_close(engine.sample(observation, noise, **how), expected, atol=FLOAT32, rtol=0)
    assert engine.captures == captures
    engine.sample(*random_input(model.config, 5, 3))
    assert engine.captures == captures + 1, "another number of views"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
def test_graphs_are_captured_once():
    policy = Policy.load(checkpoint=find_share("models", "ki_tiny"), device="cuda", seed=0)
    policy.warm_up()
    captures = policy.engine.captures
    for n in range(1000):
        views = 2 if n % 7 else 1
        policy.engine.sample(*random_input(policy.config, 1 + n % policy.config.max_token_len, views, "cuda", n))
        if n == 100:
            captures, memory = policy.engine.captures, torch.cuda.memory_allocated()
    assert policy.engine.captures == captures
    assert torch.cuda.memory_allocated() == memory


def test_a_policy_says_which_engine_acts(trained):
    fused = Policy.load(checkpoint=find_share("models", "ki_tiny"), seed=0, threads=1)
    assert (trained.engine.name, fused.engine.name) == ("reference", "fused")
    views = {role: np.full((224, 224, 3), 90, np.uint8) for role in fused.required_views}
    state = (fused.norm_stats.state.q01 + fused.norm_stats.state.q99) / 2
    trained.reseed(3)
    fused.reseed(3)
    fused.warm_up()
    chunks = [policy.infer(views, state, "reach the red block") for policy in (trained, fused)]
    np.testing.assert_allclose(*chunks, atol=1e-5)


def _row(observation: Observation, row: int) -> Observation:
    return Observation(
        **{
            field.name: _map(getattr(observation, field.name), lambda tensor: tensor[row : row + 1])
            for field in dataclasses.fields(observation)
        }
    )


def _map(value, function):
    if isinstance(value, dict):
        return {name: function(tensor) for name, tensor in value.items()}
    return value if value is None else function(value)
