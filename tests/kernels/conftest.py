"""The C++ kernels, built in a folder of the test run: whether the checkout has them changes no test."""

from dataclasses import replace

import pytest

from kernels import backends
from kernels.backends import INSTRUCTION_SETS, CpuLibrary, build_cpu_library, load_cpu_library


@pytest.fixture(scope="session")
def best_library(tmp_path_factory) -> CpuLibrary:
    try:
        return load_cpu_library(build_cpu_library(tmp_path_factory.mktemp("library")))
    except RuntimeError as error:
        if "no C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(params=["stock", *INSTRUCTION_SETS])
def cpu_path(request, monkeypatch) -> str:
    """Sends the ops of CPU tensors through the stock torch ops, then through each variant of the C++ library."""
    chosen = None
    if request.param != "stock":
        best = request.getfixturevalue("best_library")
        if INSTRUCTION_SETS.index(request.param) > INSTRUCTION_SETS.index(best.instruction_set):
            pytest.skip(f"this processor has no {request.param}")
        chosen = replace(best, instruction_set=request.param)
    monkeypatch.setattr(backends, "cpu_library", lambda: chosen)
    return request.param
