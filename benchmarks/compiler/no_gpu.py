"""A CUDA driver that does nothing, so that launching a Triton kernel costs the host what it costs with a GPU.

Triton's own driver is compiled and loaded as it is; only the `libcuda.so.1` underneath is a stub whose functions return
at once. What is missing from a measurement is the time inside NVIDIA's driver. Needs a C compiler, as Triton does with
a GPU.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from packmamba_kernels import checks
from packmamba_kernels.runtime import triton_glue as _triton
from triton import knobs
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.driver import driver

_STUB = """
#include <stdint.h>
static long launches = 0;
long stub_launches(void) { return launches; }
int cuLaunchKernelEx(void *config, void *function, void **params, void **extra) { launches++; return 0; }
int cuPointerGetAttribute(uint64_t *data, int attribute, uint64_t pointer) { *data = pointer; return 0; }
int cuCtxGetCurrent(uintptr_t *context) { *context = 1; return 0; }
int cuDevicePrimaryCtxRetain(uintptr_t *context, int device) { *context = 1; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 232448; return 0; }
int cuModuleLoadData(uintptr_t *module, void *image) { *module = 1; return 0; }
int cuModuleGetFunction(uintptr_t *function, void *module, char *name) { *function = 1; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 0; return 0; }
#define NOTHING(name) int name(void) { return 0; }
NOTHING(cuCtxGetDevice) NOTHING(cuCtxGetLimit) NOTHING(cuCtxSetCurrent) NOTHING(cuCtxSetLimit) NOTHING(cuDeviceGet)
NOTHING(cuDriverGetVersion) NOTHING(cuFuncSetAttribute) NOTHING(cuFuncSetCacheConfig) NOTHING(cuGetErrorString)
NOTHING(cuModuleUnload) NOTHING(cuStreamIsCapturing) NOTHING(cuOccupancyMaxActiveClusters)
NOTHING(cuTensorMapEncodeTiled) NOTHING(cuPointerGetAttributes)
"""


@dataclass(frozen=True)
class Driver:
    """What stands in for NVIDIA's driver."""

    stub: ctypes.CDLL

    @property
    def launches(self) -> int:
        """Kernels launched in this process so far."""
        return self.stub.stub_launches()


@contextmanager
def launches_do_nothing(architecture: int = 90) -> Iterator[Driver]:
    """Inside, operators called on CPU tensors compile their kernels for `architecture` and launch them, and nothing
    runs: outputs hold what was in memory. The values of cu_seqlens are not checked, as on a GPU.

    Raises RuntimeError where there is a GPU, or in Triton's interpreter.
    """
    if torch.cuda.is_available() or _triton.INTERPRET:
        raise RuntimeError("launches that do nothing are for a process without a GPU and without TRITON_INTERPRET=1")
    stub = _load_stub()
    active = driver._active
    driver.set_active(_Driver(architecture))  # pyright: ignore[reportArgumentType]
    try:
        with (
            mock.patch.object(_triton, "INTERPRET", True),  # what makes CPU tensors take the kernels
            mock.patch.object(checks, "check_bounds", _nothing),
        ):
            yield Driver(stub)
    finally:
        driver._active = active


def _nothing(*_: object) -> None:
    pass


class _Driver(CudaDriver):
    """Triton's, except for what it asks torch, whose CUDA may not be there at all."""

    def __init__(self, architecture: int) -> None:
        super().__init__()
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device: divmod(architecture, 10)


@cache
def _load_stub() -> ctypes.CDLL:
    """Compiled once for this machine. A library that asks for `libcuda.so.1` from then on gets the one loaded."""
    folder = Path(knobs.cache.dir) / "packmamba_no_gpu"
    library = folder / "libcuda.so.1"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        source, built = Path(temporary) / "stub.c", Path(temporary) / library.name
        source.write_text(_STUB)
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "cc"
        command = [compiler, "-shared", "-fPIC", "-O2", f"-Wl,-soname,{library.name}", "-o", str(built), str(source)]
        subprocess.run(command, check=True)
        built.replace(library)
    knobs.nvidia.libcuda_path = str(folder)  # where Triton's linker looks
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
