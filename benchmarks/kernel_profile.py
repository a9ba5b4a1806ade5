"""When each kernel of one call on a GPU ran, and a picture of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

KINDS = {
    "products": ("nvjet", "gemm", "cutlass", "splitK"),
    "attention": ("sdpa", "flash", "attend", "combine"),
    "norms, gates, rotation": ("layer_norm", "rms_norm", "gated_gelu", "rotate_prefix"),
    "expert: products": ("project", "add_attended", "gate_up", "add_hidden", "advance"),
}
"""By parts of kernels' names, the expert's exactly; all else is "other"."""


class Kernel(NamedTuple):
    """Name, and begin and end from the call's begin [us]."""

    name: str
    begin: float
    end: float

    @property
    def kind(self) -> str:
        """One of `KINDS`, or "other"."""
        if self.name in KINDS["expert: products"]:
            return "expert: products"
        for kind, parts in KINDS.items():
            if kind != "expert: products" and any(part in self.name for part in parts):
                return kind
        return "other"


def record(call: Callable[[], object]) -> list[Kernel]:
    """The kernels of a call, in their order. It is run once before."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        call()
        torch.cuda.synchronize()
    events = sorted(
        (e for e in profiler.events() if e.device_type == DeviceType.CUDA), key=lambda event: event.time_range.start
    )
    first = events[0].time_range.start
    return [Kernel(e.name, e.time_range.start - first, e.time_range.end - first) for e in events]


def draw(kernels: list[Kernel], title: str, file: Path) -> None:
    """A line of each kind of kernel over the time of the call, and how long it ran in all."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(10, 2.6), layout="constrained")
    kinds = [*KINDS, "other"]
    for line, kind in enumerate(kinds):
        bars = [(k.begin / 1e3, (k.end - k.begin) / 1e3) for k in kernels if k.kind == kind]
        axis.broken_barh(bars, (line - 0.4, 0.8), color=f"C{line}", linewidth=0.4)
    busy = [_covered([k for k in kernels if k.kind == kind]) / 1e3 for kind in kinds]
    axis.set_yticks(range(len(kinds)), [f"{kind}, {ms:.1f} ms" for kind, ms in zip(kinds, busy, strict=True)])
    axis.invert_yaxis()
    axis.set_xlabel("[ms]")
    axis.set_title(title, fontsize="medium")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def _covered(kernels: list[Kernel]) -> float:
    """Time in which at least one of them runs: kernels may begin before others end."""
    total, end = 0.0, 0.0
    for kernel in kernels:
        total += max(0.0, kernel.end - max(kernel.begin, end))
        end = max(end, kernel.end)
    return total
