"""Compiled kernels: Triton's for CUDA tensors; for CPU tensors the C++ library, where it was built.

`python -m kernels.backends` builds it, in some twenty seconds. Without it the CPU runs stock torch operators. It lies
in the checkout's `build`, or in the folder that the environment's LEGIBLE_KERNELS names.
"""

import ctypes
import hashlib
import importlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from kernels.errors import Failure, Mistake

_HERE = Path(__file__).parent
_FOLDER = Path(os.environ.get("LEGIBLE_KERNELS", _HERE.parent / "build"))
_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-Wall",
    "-Wno-maybe-uninitialized",
    "-Wno-psabi",
)


def cuda_kernels(op: str) -> ModuleType:
    """The Triton kernels of this op. RuntimeError where triton is not installed."""
    try:
        return importlib.import_module(f"kernels.{op}.triton")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise Failure(
            f"{op} got CUDA tensors, and its CUDA kernels need triton; pip install triton, or use CPU tensors"
        ) from error


INSTRUCTION_SETS = ("portable", "avx2", "avx512")
"""As native.h numbers them; avx512 means AVX-512 with VNNI."""


@dataclass(frozen=True, slots=True)
class CpuLibrary:
    functions: ctypes.CDLL
    instruction_set: str
    """Which of the library's variants run, one of INSTRUCTION_SETS."""

    @property
    def code(self) -> ctypes.c_int32:
        """As a call of the library takes it."""
        return ctypes.c_int32(INSTRUCTION_SETS.index(self.instruction_set))


@cache
def cpu_library() -> CpuLibrary | None:
    """The C++ kernels with this processor's best instruction set; None where `build_cpu_library` has not made them."""
    path = _FOLDER / _library_name()
    return load_cpu_library(path) if path.exists() else None


def cpu_library_for(x: Tensor) -> CpuLibrary | None:
    """The C++ kernels where they may take a whole layer at once: of float32 on a CPU, without gradients."""
    # Neither sees what C++ computes.
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if x.dtype != torch.float32 or not x.is_cpu or torch.is_grad_enabled() or recorded:
        return None
    return cpu_library()


def load_cpu_library(path: Path) -> CpuLibrary:
    functions = ctypes.CDLL(str(path))
    return CpuLibrary(functions, INSTRUCTION_SETS[functions.best_instruction_set()])


def build_cpu_library(folder: Path = _FOLDER) -> Path:
    """Compiles the C++ kernels once, some twenty seconds. RuntimeError without a compiler, or if it fails."""
    path = folder / _library_name()
    if path.exists():
        return path
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise Failure("no C++ compiler was found; install g++ or clang++, or go on without: the torch ops run")
    folder.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [compiler, *_FLAGS, "-o", str(scratch), *map(str, _sources())], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failure(f"{compiler} could not compile the C++ kernels:\n{done.stderr}")
    scratch.replace(path)
    cpu_library.cache_clear()
    return path


def _sources() -> list[Path]:
    return sorted(_HERE.glob("**/native.cpp"))


def _library_name() -> str:
    """By its sources, so that a library of other sources is never loaded."""
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for source in (_HERE / "native.h", *_sources()):
        digest.update(source.read_bytes())
    return f"kernels-{digest.hexdigest()[:16]}.so"


def check_on_cpu(op: str, *tensors: Tensor | None) -> None:
    """ValueError unless all lie where the C++ library reads."""
    for tensor in tensors:
        if tensor is not None and not tensor.is_cpu:
            raise Mistake(
                f"{op} got a tensor of shape {tuple(tensor.shape)} on {tensor.device} for states on the CPU; it takes "
                "all on one device: move the whole model"
            )


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a contiguous tensor's elements lie, for a call of the C++ library; null for none."""
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


if __name__ == "__main__":
    print(build_cpu_library())  # noqa: T201
