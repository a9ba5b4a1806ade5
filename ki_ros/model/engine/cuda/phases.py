"""Kernels that are phases of one row of the chunk's tokens after another: what `expert.cuh` is compiled to."""

from __future__ import annotations

from collections.abc import Sequence

from ki_ros.model.config import KIConfig
from ki_ros.model.engine.cuda.module import Argument, Compiler, Launch, Launcher

ROWS, THREADS, KEYS = 16, 256, 32
"""As in `expert.cuh`."""

TILES = {"QKV_TILES": 2, "OUT_TILES": 4, "UP_TILES": 2, "DOWN_TILES": 2, "ATTEND_WARPS": 4}
"""Columns of a block, in eights, and warps of one: what was fastest on an H200."""

SMALL_TILES = {"QKV_TILES": 1, "OUT_TILES": 1, "UP_TILES": 1, "DOWN_TILES": 1, "ATTEND_WARPS": 2}
"""For devices whose blocks have less shared memory."""


class Phases:
    """The kernels of one source.

    Args:
        source: its name.
        config: of the model.
        compile: makes them, with the largest blocks that the device can have.
        products: names of those that multiply by weights; the source says how many blocks they have.
        attending: name of the one whose warps attend to `KEYS` keys each.
    """

    def __init__(
        self, source: str, config: KIConfig, compile: Compiler, products: Sequence[str], attending: str
    ) -> None:
        language = config.language
        sizes = {
            "LIVE": config.action_horizon,
            "WIDTH": config.expert.width,
            "HIDDEN": config.expert.mlp,
            "HEADS": language.heads,
            "KV_HEADS": language.kv_heads,
            "HEAD_DIM": language.head_dim,
            "ACTIONS": config.action_dim,
        }

        def shared(kernels: Launcher) -> dict[str, int]:
            return {name: kernels.constant(f"{name.upper()}_SHARED") for name in (*products, attending)}

        self._kernels = compile(source, sizes | TILES)
        if max(shared(self._kernels).values()) > self._kernels.most_shared:
            self._kernels = compile(source, sizes | SMALL_TILES)
        self._shared = shared(self._kernels)
        self._blocks = {name: self._kernels.constant(f"{name.upper()}_BLOCKS") for name in products}
        self._attending, self._attend_warps = attending, self._kernels.constant("ATTENDING_WARPS")
        self._rows, self._heads = config.action_horizon, language.heads

    def multiply(self, name: str, *arguments: Argument, parts: int = 1, early: bool = True) -> None:
        """Starts a product; `early`: see `Launch`."""
        self._start(name, arguments, (self._blocks[name], parts), early=early)

    def attend(self, splits: int, *arguments: Argument) -> None:
        """Starts what attends to so many groups of keys."""
        grid = splits // self._attend_warps, self._heads
        self._start(self._attending, arguments, grid, 32 * self._attend_warps)

    def each_row(
        self, name: str, *arguments: Argument, heads: int = 1, threads: int = THREADS, early: bool = True
    ) -> None:
        """Starts a block for each row of the chunk, and for each of so many heads."""
        self._start(name, arguments, (self._rows, heads), threads, early)

    def _start(
        self,
        name: str,
        arguments: tuple[Argument, ...],
        grid: tuple[int, int],
        threads: int = THREADS,
        early: bool = True,
    ) -> None:
        self._kernels.launch(Launch(name, grid, threads, arguments, self._shared.get(name, 0), early))
