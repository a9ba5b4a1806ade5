"""What one of several processes holds of a sharded model; run under torchrun, writes `<rank>.json` into a directory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel
from ki_ros.training.distributed import Parallel, world


def main() -> None:
    torch.set_num_threads(1)
    with world("cpu") as processes:
        torch.manual_seed(0)
        model = KIModel(KIConfig.from_preset("ki_tiny"))
        whole = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        Parallel(model, processes, "fsdp", unused_parameters=False)
        held = dict(model.named_parameters())
        report = {
            "names_kept": list(held) == list(whole),
            "sharded": all(isinstance(parameter, DTensor) for parameter in held.values()),
            "held": sum(p.to_local().numel() for p in held.values()),
            "whole": sum(tensor.numel() for tensor in whole.values()),
            "equal": all(torch.equal(p.full_tensor(), whole[name]) for name, p in held.items()),
            "groups": sum(type(m).__name__.startswith("FSDP") for m in model.paligemma_with_expert.pairs),
            "layers": len(model.paligemma_with_expert.pairs),
        }
        # A file of its own: lines that two processes print may run into each other.
        Path(sys.argv[1], f"{processes.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
