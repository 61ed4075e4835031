"""Compiled kernels are found, or their absence is said: no other one runs in their place without a word."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import backends
from kernels.backends import build_cpu_library, cuda_kernels

ROOT = Path(__file__).resolve().parents[2]
OPS = ("expert_sum", "monet_mix", "product_key_topk", "sr_update")


@pytest.mark.parametrize("op", OPS)
def test_cuda_tensors_without_triton_are_told_what_to_install(monkeypatch, op):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in (f"kernels.{op}.triton", "kernels.triton_math"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(RuntimeError, match=f"{op} got CUDA tensors.*pip install triton, or use CPU tensors"):
        cuda_kernels(op)


def test_the_ops_import_without_triton():
    code = f"import sys; sys.modules['triton'] = None; import {', '.join(f'kernels.{op}' for op in OPS)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_built_library_is_found_and_one_of_other_sources_is_not(monkeypatch, tmp_path, best_library):
    backends.cpu_library.cache_clear()
    monkeypatch.setattr(backends, "_FOLDER", tmp_path)
    assert backends.cpu_library() is None
    built = Path(best_library.functions._name)
    (tmp_path / "kernels-0000000000000000.so").write_bytes(built.read_bytes())
    backends.cpu_library.cache_clear()
    assert backends.cpu_library() is None
    (tmp_path / built.name).write_bytes(built.read_bytes())
    backends.cpu_library.cache_clear()
    found = backends.cpu_library()
    backends.cpu_library.cache_clear()
    assert found is not None
    assert found.instruction_set == best_library.instruction_set


def test_a_machine_without_a_compiler_is_told_that_it_can_go_on(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"no C.. compiler was found; install g.. or clang.., or go on without"):
        build_cpu_library(tmp_path)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch, tmp_path):
    compiler = tmp_path / "bad-compiler"
    compiler.write_text("#!/bin/sh\necho 'no such instruction' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(RuntimeError, match=r"could not compile the C.. kernels:\nno such instruction"):
        build_cpu_library(tmp_path / "library")
    assert list((tmp_path / "library").iterdir()) == []


def test_the_library_is_built_with_threads(best_library):
    """A compiler that is not asked for OpenMP passes over its pragmas without a word."""
    built = Path(best_library.functions._name).read_bytes()
    assert b"GOMP_parallel" in built or b"__kmpc_fork_call" in built


def test_a_pointer_is_never_to_a_copy():
    with pytest.raises(AssertionError):
        backends.pointer(torch.zeros(3, 4).T)
    assert backends.pointer(None).value is None
