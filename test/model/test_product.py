"""Products with weights in the processor's own layout."""

from __future__ import annotations

import logging

import pytest
import torch

from ki_ros.model.engine import product as products
from ki_ros.model.engine.product import can_block, product


def made(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    shapes = ((rows, 512), (640, 512), (640,))
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x.to(dtype), (weight / 512**0.5).to(dtype), bias.to(dtype)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 15, 576])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
def test_the_blocked_product_is_the_product(dtype, tolerance, rows, with_bias):
    """For any number of rows, whichever the layout was made for, and for views in a batch."""
    x, weight, bias = made(rows, dtype)
    expected = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
    blocked = product(weight, 15, bias if with_bias else None, blocked=True)
    assert blocked.blocked is not None
    with torch.no_grad():
        assert torch.equal(blocked(x[None])[0], blocked(x))
        assert (blocked(x).double() - expected).abs().max() <= tolerance


def test_a_derivative_is_that_of_the_plain_product():
    x, weight, bias = made(15, torch.float32)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(product(weight, 15, bias, blocked=True)(x).sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0).expand_as(x))


def test_small_weights_stay_plain():
    _, weight, _ = made(1, torch.float32)
    assert product(weight[:100], 15, blocked=True).blocked is None
    assert product(weight, 15, blocked=False).blocked is None


def test_without_memory_for_a_copy_it_is_said_and_not_made(monkeypatch, caplog):
    _, weight, _ = made(1, torch.float32)
    needed = weight.numel() * 4
    monkeypatch.setattr(products, "_available_bytes", lambda: 2.1 * needed)
    assert can_block([weight])
    monkeypatch.setattr(products, "_available_bytes", lambda: 1.9 * needed)
    with caplog.at_level(logging.WARNING):
        assert not can_block([weight])
    assert "inference will be slower" in caplog.text
    assert not can_block([weight.double()])
