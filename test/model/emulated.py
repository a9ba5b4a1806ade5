"""Kernels of ours on a CPU: each block's threads take turns (`emulator/ptx.cuh`)."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from ki_ros.model.engine.cuda.module import Launch

COMPILER = shutil.which("g++")

_ENTRY = """
extern "C" void start_{name}(int columns, int rows, int threads, int shared, void** arguments) {{
  start({name}, columns, rows, threads, shared, arguments);
}}
"""

_START = """
#include <utility>
template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(arguments[I])...);
}
template <class... A>
void start(void (*kernel)(A...), int columns, int rows, int threads, int shared, void** arguments) {
  gridDim.x = columns, gridDim.y = rows;
  const auto body = [&] { call(kernel, arguments, std::index_sequence_for<A...>()); };
  for (blockIdx.y = 0; blockIdx.y < unsigned(rows); ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < unsigned(columns); ++blockIdx.x) emulated::run(threads, shared, body);
}
"""


class Emulated:
    """A `Launcher` of a source file, compiled with these macros into a directory."""

    def __init__(self, source: str, sizes: Mapping[str, int], directory: Path, most_shared: int) -> None:
        self.most_shared = most_shared
        sources = files("ki_ros.model.engine.cuda")
        code = sources.joinpath(source).read_text().replace("extern __shared__ uint4 memory[];", "")
        for header in ("common.cuh", "expert.cuh"):
            text = sources.joinpath(header).read_text().replace("extern __shared__ uint4 memory[];", "")
            (directory / header).write_text(text)
        (directory / "ptx.cuh").write_text((Path(__file__).parent / "emulator" / "ptx.cuh").read_text())
        # No name of ours is to be taken for one of the C library.
        code = code.replace('extern "C" __global__', "static __global__")
        kernels = re.findall(r"__launch_bounds__\(.*\)\s+(\w+)\(", code)
        code += _START + "".join(_ENTRY.format(name=name) for name in kernels)
        written, library = directory / "kernels.cpp", directory / "kernels.so"
        written.write_text(code)
        macros = [f"-D{name}={size}" for name, size in sizes.items()]
        command = [COMPILER, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", *macros, "-o", library, written]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(library))

    def constant(self, name: str) -> int:
        """See `Launcher`."""
        return ctypes.c_int.in_dll(self._library, name).value

    def launch(self, launch: Launch) -> None:
        """See `Launcher`; one kernel after another, whether or not it may be `early`."""
        addresses, _values = launch.addresses()
        getattr(self._library, f"start_{launch.name}")(*launch.grid, launch.block, launch.shared, addresses)
