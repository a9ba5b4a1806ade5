"""CUDA C++ that is compiled where it runs, by the compiler that torch's own packages bring (NVRTC)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

import torch
from torch import Tensor

Argument = Tensor | ctypes._SimpleCData | ctypes.Structure | None
"""Of a kernel: a tensor or None is its address."""


class KernelError(RuntimeError):
    """Kernels that cannot be compiled or started here; the message says why."""


@dataclass(frozen=True)
class Launch:
    """A kernel to start.

    Attributes:
        name: of the kernel.
        grid, block: how many blocks, and threads of each.
        arguments: in order; what they point to must live until the kernel has ended.
        shared: bytes of dynamic shared memory of a block.
        early: it may begin before the kernel ahead of it ends, see `ptx.cuh`. That one must be in the same stream, with
            nothing else between them.
    """

    name: str
    grid: tuple[int, int]
    block: int
    arguments: tuple[Argument, ...]
    shared: int = 0
    early: bool = False

    def addresses(self) -> tuple[ctypes.Array[ctypes.c_void_p], list[Any]]:
        """Where each argument is, and the arguments, which must live as long as that is read."""
        values = [_as_c(argument) for argument in self.arguments]
        return (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values)), values


class Launcher(Protocol):
    """Compiled kernels.

    Attributes:
        most_shared: bytes of shared memory that a block can have.
    """

    most_shared: int

    def constant(self, name: str) -> int:
        """An `int` constant of the source."""

    def launch(self, launch: Launch) -> None:
        """Starts a kernel on the current stream."""


Compiler = Callable[[str, Mapping[str, int]], Launcher]
"""Of a source file's name and macros."""


class Module:
    """A source file beside this one, compiled for the current device: a `Launcher`.

    Args:
        source: its name.
        sizes: macros.

    Raises:
        KernelError: no compiler, or it refuses.
    """

    def __init__(self, source: str, sizes: Mapping[str, int]) -> None:
        try:
            from cuda.bindings import driver, nvrtc
        except ImportError as error:
            raise KernelError(f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings") from error
        self._driver, self._nvrtc = driver, nvrtc
        major, minor = torch.cuda.get_device_capability()
        if major < 8:
            raise KernelError(f"compute capability is {major}.{minor}; products in bfloat16 need 8.0")
        try:
            cubin = self._compile(source, [f"-D{name}={size}" for name, size in sizes.items()], f"sm_{major}{minor}")
        except KernelError:
            raise
        except RuntimeError as error:
            raise KernelError(f"NVRTC cannot be loaded ({error}); pip install nvidia-cuda-nvrtc") from error
        # Torch makes the context, so that both use the same.
        torch.cuda.current_stream().synchronize()
        self._module = self._call(driver.cuModuleLoadData(cubin))
        attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        self.most_shared = self._call(driver.cuDeviceGetAttribute(attribute, torch.cuda.current_device()))
        self._functions: dict[str, Any] = {}
        self._can_be_early = major >= 9

    def constant(self, name: str) -> int:
        """See `Launcher`."""
        address, size = self._call(self._driver.cuModuleGetGlobal(self._module, name.encode()))
        value = ctypes.c_int()
        if size != ctypes.sizeof(value):
            raise KernelError(f"{name} has {size} bytes, not those of an int")
        self._call(self._driver.cuMemcpyDtoH(ctypes.addressof(value), address, size))
        return value.value

    def launch(self, launch: Launch) -> None:
        """See `Launcher`."""
        driver = self._driver
        function = self._functions.get(launch.name) or self._function(launch.name, launch.shared)
        addresses, _values = launch.addresses()
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = *launch.grid, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.block, 1, 1
        config.sharedMemBytes = launch.shared
        config.hStream = torch.cuda.current_stream().cuda_stream
        attributes = []
        if launch.early and self._can_be_early:
            attributes.append(driver.CUlaunchAttribute())
            attributes[-1].id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attributes[-1].value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = attributes, len(attributes)
        self._call(driver.cuLaunchKernelEx(config, function, ctypes.addressof(addresses), 0))

    def _function(self, name: str, shared: int) -> Any:
        driver = self._driver
        function = self._call(driver.cuModuleGetFunction(self._module, name.encode()))
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call(driver.cuFuncSetAttribute(function, attribute, shared))
        self._functions[name] = function
        return function

    def _compile(self, source: str, macros: list[str], architecture: str) -> bytes:
        nvrtc = self._nvrtc
        directory = files(__package__)
        headers = [entry for entry in directory.iterdir() if entry.name.endswith(".cuh")]
        program = self._call(
            nvrtc.nvrtcCreateProgram(
                directory.joinpath(source).read_bytes(),
                source.encode(),
                len(headers),
                [entry.read_bytes() for entry in headers],
                [entry.name.encode() for entry in headers],
            )
        )
        options = [f"--gpu-architecture={architecture}", "--std=c++17", *macros]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * self._call(nvrtc.nvrtcGetProgramLogSize(program))
            self._call(nvrtc.nvrtcGetProgramLog(program, log))
            said = log.rstrip(b"\0").decode().strip()
            raise KernelError(f"{source} does not compile for {architecture}: {said}")
        cubin = b" " * self._call(nvrtc.nvrtcGetCUBINSize(program))
        self._call(nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin

    @staticmethod
    def _call(result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise KernelError(f"{type(status).__name__}: {status.name}")
        return values[0] if len(values) == 1 else tuple(values) or None


def _as_c(argument: Argument) -> ctypes._SimpleCData | ctypes.Structure:
    """An argument as a kernel takes it."""
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return argument
