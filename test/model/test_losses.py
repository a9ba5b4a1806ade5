"""Proofs about the losses: exact zeros and equalities where none but those will do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from small import make_model
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.flow import draw_times
from ki_ros.model.losses import KILoss, LossCounts, VisionLanguageBatch, token_loss, token_loss_by_head
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation, ObservationError

GENERATOR = torch.Generator().manual_seed(8)
ACTIONS = torch.rand(2, 5, 8, generator=GENERATOR) * 2 - 1
NOISE = torch.randn(2, 3, 5, 8, generator=GENERATOR)
TIME = torch.tensor([[0.3, 0.9, 0.05], [0.6, 0.2, 0.999]])
FAST = torch.tensor([[41, 7, 23, 1], [30, 1, 0, 0]])
FAST_MASK = FAST != 0
ONE = {"noise": NOISE[:, 0], "time": TIME[:, 0]}


@pytest.fixture
def observation(make_observation: Callable[..., Observation]) -> Observation:
    return dataclasses.replace(make_observation(), fast_action_tokens=FAST, fast_action_mask=FAST_MASK)


@pytest.fixture
def model(small_config: KIConfig) -> KIModel:
    return make_model(small_config)


@pytest.fixture
def coupled(small_config: KIConfig) -> KIModel:
    return make_model(dataclasses.replace(small_config, knowledge_insulation=False))


def gradients(model: KIModel, loss: Tensor) -> dict[str, Tensor]:
    """By name; zeros where the loss does not depend on the parameter at all."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    pairs = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(p) if gradient is None else gradient for (name, p), gradient in pairs}


def test_parameters_are_split_into_two_sides(model: KIModel) -> None:
    backbone, expert = model.backbone_parameters(), model.expert_parameters()
    assert backbone.keys() | expert.keys() == dict(model.named_parameters()).keys()
    assert not backbone.keys() & expert.keys()
    assert "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight" in backbone
    assert {"action_in_proj.weight", "paligemma_with_expert.gemma_expert.model.norm.dense.bias"} <= expert.keys()


def test_insulated_flow_has_no_gradient_in_the_backbone(model: KIModel, observation: Observation) -> None:
    found = gradients(model, model.compute_loss(observation, ACTIONS, **ONE).flow_loss)
    assert all(torch.count_nonzero(found[name]) == 0 for name in model.backbone_parameters())
    assert all(torch.count_nonzero(found[name]) > 0 for name in model.expert_parameters())


def test_fast_loss_has_no_gradient_in_the_expert(model: KIModel, observation: Observation) -> None:
    found = gradients(model, model.compute_loss(observation, ACTIONS, **ONE).fast_loss)
    assert all(torch.count_nonzero(found[name]) == 0 for name in model.expert_parameters())
    # A key's bias moves all scores of a query alike, which softmax does not see.
    assert all(torch.count_nonzero(found[n]) > 0 for n in model.backbone_parameters() if not n.endswith("k_proj.bias"))


def test_without_insulation_flow_reaches_the_backbone(coupled: KIModel, observation: Observation) -> None:
    found = gradients(coupled, coupled.compute_loss(observation, ACTIONS, **ONE).flow_loss)
    reached = {name for name in coupled.backbone_parameters() if torch.count_nonzero(found[name]) > 0}
    # Of the last layer the expert reads keys and values alone.
    unread = ("layers.1.self_attn.q_proj", "layers.1.self_attn.o_proj", "layers.1.mlp", "layers.1.post_attention")
    language = "paligemma_with_expert.paligemma.model.language_model."
    expected = {
        name
        for name in coupled.backbone_parameters()
        if not name.startswith(tuple(language + part for part in (*unread, "norm")))
    }
    assert {n for n in reached if not n.endswith("k_proj.bias")} == {
        n for n in expected if not n.endswith("k_proj.bias")
    }


def test_backbone_gradient_is_lambda_times_that_of_fast_alone(model: KIModel, observation: Observation) -> None:
    """Lambda is a power of two here, so that the product is exact at every step of the backward pass."""
    assert model.config.knowledge_insulation_lambda == 0.5
    out = model.compute_loss(observation, ACTIONS, **ONE)
    both, fast, flow = (gradients(model, loss) for loss in (out.loss, out.fast_loss, out.flow_loss))
    for name in model.backbone_parameters():
        assert torch.equal(both[name], 0.5 * fast[name]), name
    for name in model.expert_parameters():
        assert torch.equal(both[name], flow[name]), name


def test_insulation_changes_no_loss(model: KIModel, coupled: KIModel, observation: Observation) -> None:
    ours, other = (m.compute_loss(observation, ACTIONS, **ONE) for m in (model, coupled))
    assert ours[:4] == other[:4]


@pytest.mark.parametrize("name", ["flow_loss", "fast_loss"])
@pytest.mark.parametrize("insulated", [True, False])
def test_gradient_is_that_of_finite_differences(
    small_config: KIConfig, observation: Observation, name: str, insulated: bool
) -> None:
    """Along a random direction, in float64. The stop-gradient is invisible to a difference of losses, so with it the
    direction moves only the side that the loss is meant to train."""
    model = make_model(dataclasses.replace(small_config, knowledge_insulation=insulated)).double()
    observation = observation.to(dtype=torch.float64)

    def loss() -> Tensor:
        return getattr(model.compute_loss(observation, ACTIONS.double(), **ONE), name)

    side = model.expert_parameters() if name == "flow_loss" else model.backbone_parameters()
    moved = side if insulated else dict(model.named_parameters())
    generator = torch.Generator().manual_seed(2)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in moved.items()}
    found = gradients(model, loss())
    slope = sum((found[n] * direction[n]).sum() for n in moved).item()

    # Norms, softmax and both losses compute in float32, so the step is where rounding and curvature balance.
    step = 1e-3
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for n, p in moved.items():
                p.add_(sign * step * direction[n])
        values.append(loss().item())
        with torch.no_grad():
            for n, p in moved.items():
                p.sub_(sign * step * direction[n])
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=2e-3)
    assert abs(slope) > 1e-2


def test_flow_loss_is_that_of_inference(model: KIModel, observation: Observation) -> None:
    """v_t of the training pass, FAST tokens present, is v_t of the cached path, which has never seen one."""
    out = model.compute_loss(observation, ACTIONS, noise=NOISE, time=TIME, flow_samples=3)
    expected = []
    for draw in range(3):
        noise, time = NOISE[:, draw], TIME[:, draw]
        x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * ACTIONS
        velocity = model.velocity(observation, x_t, time, cached=True)
        expected.append((velocity - (noise - ACTIONS)).square().mean())
    assert out.flow_loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)


def velocity_of_training(model: KIModel, observation: Observation) -> Tensor:
    """v_t (B, H, D) of the training pass, read where the model computes it."""
    seen: list[Tensor] = []
    handle = model.action_out_proj.register_forward_hook(lambda _m, _i, output: seen.append(output.detach()))
    try:
        model.compute_loss(observation, ACTIONS, **ONE)
    finally:
        handle.remove()
    return seen[0]


def test_velocity_of_training_is_that_of_the_cache(model: KIModel, observation: Observation) -> None:
    x_t = TIME[:, 0, None, None] * NOISE[:, 0] + (1 - TIME[:, 0, None, None]) * ACTIONS
    expected = model.velocity(observation, x_t, TIME[:, 0], cached=True)
    torch.testing.assert_close(velocity_of_training(model, observation), expected, atol=1e-5, rtol=0)


def test_flow_loss_does_not_see_fast_tokens(model: KIModel, observation: Observation) -> None:
    expected = model.compute_loss(observation, ACTIONS, **ONE)
    other = dataclasses.replace(observation, fast_action_tokens=torch.where(FAST_MASK, 59 - FAST, 0))
    found = model.compute_loss(other, ACTIONS, **ONE)
    assert torch.equal(found.flow_loss, expected.flow_loss)
    assert not torch.equal(found.fast_loss, expected.fast_loss)
    assert torch.equal(velocity_of_training(model, other), velocity_of_training(model, observation))


def test_fast_loss_sees_neither_noise_nor_time_nor_actions(model: KIModel, observation: Observation) -> None:
    expected = model.compute_loss(observation, ACTIONS, **ONE)
    for changed in ({"noise": -NOISE[:, 0]}, {"time": TIME[:, 1]}):
        found = model.compute_loss(observation, ACTIONS, **ONE | changed)
        assert torch.equal(found.fast_loss, expected.fast_loss)
        assert not torch.equal(found.flow_loss, expected.flow_loss)
    assert torch.equal(model.compute_loss(observation, -ACTIONS, **ONE).fast_loss, expected.fast_loss)


def test_fast_loss_is_the_chain_of_next_tokens(model: KIModel, observation: Observation) -> None:
    """Brute force: each token predicted from the sequence before it, one row and one token at a time."""
    language = model.paligemma_with_expert.backbone.language_model
    per_row, right = [], []
    with torch.no_grad():
        prefix = model.embed_prefix(observation)
        for row in range(2):
            valid = prefix.embeddings[row, prefix.mask[row]][None]
            tokens = FAST[row, FAST_MASK[row]]
            losses, hits = [], []
            for count, token in enumerate(tokens):
                sequence = torch.cat((valid, language.embed(tokens[None, :count])), dim=1)
                hidden = causal_after(model, sequence, valid.shape[1])[0, -1]
                logits = language.embed_tokens.weight @ hidden
                losses.append(-torch.log_softmax(logits, 0)[token])
                hits.append(float(logits.argmax() == token))
            per_row.append(torch.stack(losses).mean())
            right.append(sum(hits) / len(hits))
    out = model.compute_loss(observation, ACTIONS, **ONE)
    assert out.fast_loss.item() == pytest.approx(torch.stack(per_row).mean().item(), abs=1e-5)
    assert out.fast_accuracy.item() == pytest.approx(sum(right) / 2)


def causal_after(model: KIModel, sequence: Tensor, prefix: int) -> Tensor:
    """The backbone over a sequence without padding, written down from its definition: (1, T, W), normed."""
    language = model.paligemma_with_expert.backbone.language_model
    length, head_dim = sequence.shape[1], model.config.language.head_dim
    inverse = 1e4 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angle = torch.arange(length)[:, None] * inverse

    def turn(x: Tensor) -> Tensor:
        a, b = x[..., : head_dim // 2], x[..., head_dim // 2 :]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weight)

    x = sequence
    for layer in language.layers:
        h, attention = norm(x, layer.input_layernorm.weight), layer.self_attn
        queries, keys, values = (
            (h @ projection.weight.T).reshape(1, length, -1, head_dim).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        group = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        score = turn(queries) @ turn(keys).transpose(2, 3) / math.sqrt(head_dim)
        seen = torch.ones(length, length).tril().bool()
        seen[:, :prefix] = True
        out = score.masked_fill(~seen, float("-inf")).softmax(-1) @ values
        x = x + out.transpose(1, 2).reshape(1, length, -1) @ attention.o_proj.weight.T
        h, mlp = norm(x, layer.post_attention_layernorm.weight), layer.mlp
        gate = torch.nn.functional.gelu(h @ mlp.gate_proj.weight.T, approximate="tanh")
        x = x + (gate * (h @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
    return norm(x, language.norm.weight)


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_logits_in_parts_give_the_same(rows: int) -> None:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(60, 24, generator=generator, requires_grad=True)
    hidden = torch.randn(int(FAST_MASK.sum()), 24, generator=generator, requires_grad=True)
    whole = token_loss(hidden @ weight.T, FAST, FAST_MASK)
    parts = token_loss_by_head(lambda h: h @ weight.T, hidden, FAST, FAST_MASK, rows=rows)
    torch.testing.assert_close(parts, whole)
    expected = torch.autograd.grad(whole.cross_entropy, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(parts.cross_entropy, (hidden, weight)), expected)


def test_draws_are_independent_of_each_other(model: KIModel, observation: Observation) -> None:
    together = model.compute_loss(observation, ACTIONS, noise=NOISE, time=TIME, flow_samples=3)
    apart = [
        model.compute_loss(observation, ACTIONS, noise=NOISE[:, draw], time=TIME[:, draw]).flow_loss
        for draw in range(3)
    ]
    assert together.flow_loss.item() == pytest.approx(torch.stack(apart).mean().item(), abs=1e-5)
    assert together.fast_loss.item() == pytest.approx(
        model.compute_loss(observation, ACTIONS, **ONE).fast_loss.item(), abs=1e-5
    )


@pytest.mark.parametrize("fill", [0.0, 7.0, float("nan")])
def test_padding_carries_no_loss(small_config: KIConfig, observation: Observation, fill: float) -> None:
    """Steps past an episode's end, and dimensions past the rig's eight."""
    wide = make_model(dataclasses.replace(small_config, action_dim=11))
    action_mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    generator = torch.Generator().manual_seed(3)
    actions, noise = (torch.randn(2, 5, 11, generator=generator) for _ in range(2))
    actions[..., 8:] = 0.0
    options = {"action_mask": action_mask, "noise": noise, "time": TIME[:, 0]}
    base = actions.clone()
    base[1, 2:] = 0.0
    expected = wide.compute_loss(observation, base, **options)
    changed = actions.clone()
    changed[1, 2:] = fill
    found = wide.compute_loss(observation, changed, **options)
    assert torch.equal(found.flow_loss, expected.flow_loss)
    assert all(g.isfinite().all() for g in gradients(wide, found.loss).values())
    rows = gradients(wide, found.flow_loss)["action_out_proj.weight"]
    assert torch.count_nonzero(rows[:8]) == rows[:8].numel()
    assert torch.count_nonzero(rows[8:]) == 0


def test_padding_is_learnt_where_the_model_says_so(small_config: KIConfig, observation: Observation) -> None:
    wide = make_model(dataclasses.replace(small_config, action_dim=11, padding_loss=True))
    actions = torch.nn.functional.pad(torch.rand(2, 5, 8), (0, 3))
    found = wide.compute_loss(observation, actions)
    rows = gradients(wide, found.flow_loss)["action_out_proj.weight"]
    assert torch.count_nonzero(rows) == rows.numel()


def test_masked_steps_do_not_weigh(model: KIModel, observation: Observation) -> None:
    """The loss of a row is the mean over its own steps, and each row weighs the same."""
    action_mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    found = model.compute_loss(observation, ACTIONS, action_mask=action_mask, **ONE).flow_loss
    clean = torch.where(action_mask[:, :, None], ACTIONS, 0.0)
    x_t = TIME[:, 0, None, None] * NOISE[:, 0] + (1 - TIME[:, 0, None, None]) * clean
    error = (model.velocity(observation, x_t, TIME[:, 0]) - (NOISE[:, 0] - clean)).square()
    assert found.item() == pytest.approx((error[0].mean() + error[1, :2].mean()).item() / 2, abs=1e-5)


def test_row_without_fast_tokens_has_no_fast_loss(model: KIModel, observation: Observation) -> None:
    mask = FAST_MASK.clone()
    mask[1] = False
    partly = model.compute_loss(dataclasses.replace(observation, fast_action_mask=mask), ACTIONS, **ONE)
    alone = model.compute_loss(row(observation, 0), ACTIONS[:1], noise=NOISE[:1, 0], time=TIME[:1, 0])
    assert partly.fast_loss.item() == pytest.approx(alone.fast_loss.item(), abs=1e-5)
    none = model.compute_loss(dataclasses.replace(observation, fast_action_mask=torch.zeros_like(mask)), ACTIONS, **ONE)
    assert none.fast_loss.item() == 0.0
    assert none.loss.item() == none.flow_loss.item()


def row(observation: Observation, index: int) -> Observation:
    pick = slice(index, index + 1)

    def cut(value: object) -> object:
        if isinstance(value, Mapping):
            return {name: tensor[pick] for name, tensor in value.items()}
        return None if value is None else value[pick]

    return Observation(**{f.name: cut(getattr(observation, f.name)) for f in dataclasses.fields(observation)})


def test_parts_of_a_batch_add_up(model: KIModel, observation: Observation) -> None:
    """With the whole batch's counts, losses of its parts sum to the whole's, and so do their gradients."""
    mask = FAST_MASK.clone()
    mask[1] = False
    observation = dataclasses.replace(observation, fast_action_mask=mask)
    whole = model.compute_loss(observation, ACTIONS, **ONE)
    parts = [
        model.compute_loss(
            row(observation, index),
            ACTIONS[index : index + 1],
            noise=NOISE[index : index + 1, 0],
            time=TIME[index : index + 1, 0],
            counts=LossCounts(flow=2, fast=1),
        )
        for index in range(2)
    ]
    for name in ("loss", "flow_loss", "fast_loss", "fast_accuracy"):
        assert sum(getattr(p, name) for p in parts).item() == pytest.approx(getattr(whole, name).item(), abs=1e-6)
    summed, expected = gradients(model, parts[0].loss + parts[1].loss), gradients(model, whole.loss)
    for name in expected:
        torch.testing.assert_close(summed[name], expected[name], atol=2e-5, rtol=1e-4)


def vision_language(observation: Observation, **changes: object) -> VisionLanguageBatch:
    return VisionLanguageBatch(
        **{
            "images": observation.images,
            "image_masks": observation.image_masks,
            "question": observation.tokenized_prompt,
            "question_mask": observation.tokenized_prompt_mask,
            "answer": FAST,
            "answer_mask": FAST_MASK,
        }
        | changes
    )


def test_vision_language_data_goes_through_the_same_cross_entropy(model: KIModel, observation: Observation) -> None:
    out: KILoss = model.compute_loss(observation, ACTIONS, **ONE, vision_language=vision_language(observation))
    assert out.vision_language_loss.item() == pytest.approx(out.fast_loss.item(), abs=1e-6)
    assert out.loss.item() == pytest.approx((out.flow_loss + 0.5 * 2 * out.fast_loss).item(), abs=1e-6)
    found = gradients(model, out.vision_language_loss)
    assert all(torch.count_nonzero(found[name]) == 0 for name in model.expert_parameters())


def test_text_alone_can_be_co_trained(model: KIModel, observation: Observation) -> None:
    data = vision_language(observation, images={}, image_masks={})
    out = model.compute_loss(observation, ACTIONS, **ONE, vision_language=data)
    assert out.vision_language_loss.isfinite()
    with pytest.raises(ObservationError, match="answer_mask has shape"):
        model.compute_loss(
            observation, ACTIONS, vision_language=vision_language(observation, answer_mask=FAST_MASK[:1])
        )


def test_training_on_states_alone_is_possible(model: KIModel, observation: Observation) -> None:
    blind = dataclasses.replace(observation, images={}, image_masks={})
    out = model.compute_loss(blind, ACTIONS, **ONE)
    assert out.loss.isfinite()
    with pytest.raises(ObservationError, match="row 0 has none of base_0_rgb"):
        model.sample_actions(blind, noise=NOISE[:, 0])
    empty = dataclasses.replace(blind, tokenized_prompt_mask=torch.zeros_like(blind.tokenized_prompt_mask))
    with pytest.raises(ObservationError, match="row 0 has neither a view nor a prompt"):
        model.compute_loss(empty, ACTIONS, **ONE)


def test_activation_checkpointing_changes_nothing(small_config: KIConfig, observation: Observation) -> None:
    plain, saving = make_model(small_config), make_model(small_config)
    for pair in saving.paligemma_with_expert.pairs:
        pair.activation_checkpointing = True
    first, second = (
        m.compute_loss(observation, ACTIONS, noise=NOISE, time=TIME, flow_samples=3) for m in (plain, saving)
    )
    assert torch.equal(first.loss, second.loss)
    expected, found = gradients(plain, first.loss), gradients(saving, second.loss)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_losses_in_bfloat16_are_near(model: KIModel, observation: Observation) -> None:
    expected = model.compute_loss(observation, ACTIONS, **ONE)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.compute_loss(observation, ACTIONS, **ONE)
    assert found.loss.dtype == torch.float32
    assert found.flow_loss.item() == pytest.approx(expected.flow_loss.item(), rel=0.05)
    assert found.fast_loss.item() == pytest.approx(expected.fast_loss.item(), rel=0.05)


def test_times_have_their_distribution() -> None:
    times = draw_times((200_000,), generator=torch.Generator().manual_seed(1))
    assert times.min() >= 0.001
    assert times.max() <= 1.0
    reference = torch.distributions.Beta(1.5, 1.0)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        unit = (times.sort().values[int(quantile * len(times))] - 0.001) / 0.999
        # P(x < u) by the distribution's own density, integrated.
        grid = torch.linspace(1e-6, unit.item(), 20_000, dtype=torch.float64)
        below = torch.trapezoid(reference.log_prob(grid).exp(), grid).item()
        assert below == pytest.approx(quantile, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow_samples": 0}, "flow_samples is 0"),
        ({"noise": NOISE}, r"noise has shape \(2, 3, 5, 8\); expected \(2, 1, 5, 8\)"),
        ({"time": TIME}, r"time has shape \(2, 3\); expected \(2, 1\)"),
        ({"action_mask": torch.ones(2, 4, dtype=torch.bool)}, r"action_mask has shape \(2, 4\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(model, observation, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.compute_loss(observation, ACTIONS, **options)


def test_fast_tokens_are_required(model: KIModel, make_observation: Callable[..., Observation]) -> None:
    with pytest.raises(ObservationError, match="fast_action_tokens is None; let TokenizeFASTInputs"):
        model.compute_loss(make_observation(), ACTIONS)
