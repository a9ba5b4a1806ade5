"""What a graph reads is what was set, and nothing of before."""

from __future__ import annotations

import torch

from ki_ros.model.engine.inputs import Inputs

LAYOUT = {
    "images": ((2, 4, 4, 3), torch.uint8),
    "tokens": ((6,), torch.int64),
    "count": ((), torch.int64),
    "weights": ((3, 5), torch.float32),
}


def test_one_piece_holds_all() -> None:
    inputs = Inputs(LAYOUT, torch.device("cpu"))
    inputs.transpose("images", (0, 3, 1, 2))
    generator = torch.Generator().manual_seed(0)
    views = [
        torch.randint(0, 256, (1, 4, 4, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
        for _ in range(2)
    ]
    inputs.set({"images": views, "tokens": torch.arange(1, 7), "count": torch.tensor(6), "weights": torch.ones(3, 5)})
    assert not any(tensor.any() for tensor in inputs.there.values()), "nothing is there before the upload"
    inputs.upload()
    assert torch.equal(inputs.there["images"], torch.cat(views))
    assert (inputs.there["tokens"].tolist(), inputs.there["count"].item()) == ([1, 2, 3, 4, 5, 6], 6)
    assert inputs.there["weights"].sum() == 15
    # Less of it the next time, of another dtype.
    inputs.set({"tokens": torch.tensor([9, 8]), "weights": torch.full((3, 2), 2.0, dtype=torch.float64)})
    inputs.upload()
    assert inputs.there["tokens"].tolist() == [9, 8, 0, 0, 0, 0]
    assert inputs.there["weights"].tolist() == [[2.0, 2.0, 0.0, 0.0, 0.0]] * 3
    assert torch.equal(inputs.there["images"], torch.cat(views)), "what is not set stays"
