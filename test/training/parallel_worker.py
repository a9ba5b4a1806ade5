"""What one of several processes holds of a sharded model; run under torchrun, prints one line of JSON."""

from __future__ import annotations

import json

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
        line = {
            "rank": processes.rank,
            "names_kept": list(held) == list(whole),
            "sharded": all(isinstance(parameter, DTensor) for parameter in held.values()),
            "held": sum(p.to_local().numel() for p in held.values()),
            "whole": sum(tensor.numel() for tensor in whole.values()),
            "equal": all(torch.equal(p.full_tensor(), whole[name]) for name, p in held.items()),
            "groups": sum(type(m).__name__.startswith("FSDP") for m in model.paligemma_with_expert.pairs),
            "layers": len(model.paligemma_with_expert.pairs),
        }
        print("HELD " + json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
