"""The average against its closed form, and that what is exchanged comes back."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing
from torch import nn

from ki_ros.training.ema import EMA


def make_parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (5, 3), "bias": (5,), "scalar": ()}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def set_to(parameters: dict[str, nn.Parameter], value: float) -> None:
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(value)


def test_average_of_a_constant_follows_the_closed_form() -> None:
    parameters = make_parameters()
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    ema = EMA(parameters, 0.9)
    set_to(parameters, 2.0)
    for _ in range(12):
        ema.update(parameters)
    share = 0.9**12
    for name, average in ema.state_dict().items():
        torch.testing.assert_close(average, share * start[name] + (1 - share) * 2.0, atol=1e-5, rtol=0)


def test_average_does_not_depend_on_the_order_of_names() -> None:
    parameters = make_parameters()
    ema, other = EMA(parameters, 0.5), EMA(dict(reversed(parameters.items())), 0.5)
    set_to(parameters, 1.0)
    ema.update(dict(reversed(parameters.items())))
    other.update(parameters)
    for name, average in ema.state_dict().items():
        assert torch.equal(average, other.state_dict()[name])


def test_a_small_step_is_not_lost() -> None:
    """1e-4 of a difference of 1e-2 is below what half of float32's digits could hold."""
    parameters = {"p": nn.Parameter(torch.ones(4))}
    ema = EMA(parameters, 0.9999)
    set_to(parameters, 1.01)
    for _ in range(1000):
        ema.update(parameters)
    expected = 1.01 - 0.01 * 0.9999**1000
    torch.testing.assert_close(ema.state_dict()["p"], torch.full((4,), expected), atol=2e-5, rtol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_exchanged_values_come_back_to_the_bit(fails) -> None:
    parameters = make_parameters()
    ema = EMA(parameters, 0.7)
    for parameter in parameters.values():
        parameter.data = torch.randn_like(parameter) * 1e-3
    parameters["bias"].data[0] = float("nan")
    ema.update({**parameters, "bias": nn.Parameter(torch.ones(5))})
    live = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    average = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    memory = {name: parameter.data_ptr() for name, parameter in parameters.items()}

    def evaluate() -> None:
        with ema.swapped(parameters):
            for name, parameter in parameters.items():
                assert torch.equal(parameter, average[name])
                assert parameter.requires_grad
            if fails:
                raise KeyError("evaluation")

    if fails:
        with pytest.raises(KeyError, match="evaluation"):
            evaluate()
    else:
        evaluate()
    for name, parameter in parameters.items():
        assert torch.equal(parameter.view(-1).view(torch.int32), live[name].view(-1).view(torch.int32))
        assert torch.equal(ema.state_dict()[name], average[name])
        assert parameter.data_ptr() == memory[name]


def test_inside_the_block_the_average_is_out_of_reach() -> None:
    parameters = make_parameters()
    ema = EMA(parameters, 0.5)
    with ema.swapped(parameters):
        with pytest.raises(RuntimeError, match="update was called inside swapped"):
            ema.update(parameters)
        with pytest.raises(RuntimeError, match="state_dict was called inside swapped"):
            ema.state_dict()
        with pytest.raises(RuntimeError, match="swapped was called inside swapped"), ema.swapped(parameters):
            pass
    ema.update(parameters)


def test_state_goes_on_where_it_was() -> None:
    parameters = make_parameters()
    ema, resumed = EMA(parameters, 0.8), EMA(make_parameters(seed=1), 0.8)
    set_to(parameters, 3.0)
    ema.update(parameters)
    resumed.load_state_dict(ema.state_dict())
    ema.update(parameters)
    resumed.update(parameters)
    for name, average in ema.state_dict().items():
        assert torch.equal(average, resumed.state_dict()[name])


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    parameters = make_parameters()
    ema = EMA(parameters, 0.8)
    before = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing \['bias'\], unknown \['extra'\]"):
        ema.load_state_dict({"weight": torch.ones(5, 3), "scalar": torch.ones(()), "extra": torch.ones(5)})
    with pytest.raises(ValueError, match=r"scalar has shape \(1,\); its average has \(\)"):
        ema.load_state_dict({"weight": torch.ones(5, 3), "bias": torch.ones(5), "scalar": torch.ones(1)})
    for name, average in ema.state_dict().items():
        assert torch.equal(average, before[name])
    for decay in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"decay is {decay}"):
            EMA(parameters, decay)
    with pytest.raises(ValueError, match="parameters is empty"):
        EMA({}, 0.5)
    with pytest.raises(TypeError, match=r"parameter p is torch\.bfloat16"):
        EMA({"p": torch.ones(2, dtype=torch.bfloat16)}, 0.5)


def _sharded(rank: int, address: str) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
        whole = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in model.named_parameters()}
        fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))
        shards = dict(model.named_parameters())
        ema, reference = EMA(shards, 0.75), EMA(whole, 0.75)
        for factor in (3.0, -0.5):
            with torch.no_grad():
                for name, parameter in whole.items():
                    parameter.mul_(factor)
                    shards[name].mul_(factor)
            ema.update(shards)
            reference.update(whole)
        for name, average in ema.state_dict().items():
            assert isinstance(average, DTensor)
            assert torch.equal(average.full_tensor(), reference.state_dict()[name])
        inputs = torch.ones(2, 3)
        live = model(inputs)
        model.reshard()
        with ema.swapped(shards):
            with reference.swapped(whole):
                expected = torch.func.functional_call(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)), whole, inputs)
            torch.testing.assert_close(model(inputs), expected)
            model.reshard()
        assert torch.equal(model(inputs), live)
        model.reshard()
        if rank == 0:
            values = {name: average.to_local() for name, average in ema.state_dict().items()}
            shapes = {name: torch.zeros(average.shape) for name, average in ema.state_dict().items()}
            assert values.keys() == shapes.keys()
            with pytest.raises(ValueError, match="is a plain tensor, its average is sharded as"):
                ema.load_state_dict(shapes)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_shards_are_averaged_as_the_whole(tmp_path) -> None:
    """Uneven shards, one of them empty, in two processes."""
    torch.multiprocessing.spawn(_sharded, args=(str(tmp_path / "meeting"),), nprocs=2)
