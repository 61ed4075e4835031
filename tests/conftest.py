"""Shared by all tests: Prefect's history and the C++ kernels in folders of the test run, and a text of one's own."""

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

# Tiny tensors: threads cost more than they give, most of all where cores are shared.
torch.set_num_threads(1)

# Before flows.py is imported: it keeps what is set.
_HOME = tempfile.TemporaryDirectory(prefix="prefect-", ignore_cleanup_errors=True)
os.environ["PREFECT_HOME"] = _HOME.name
os.environ.pop("PREFECT_API_URL", None)

# Before kernels.backends is imported: whether the checkout has the C++ kernels changes no test, nor the processes that
# tests start. Those that want the kernels ask for `cpu_path` or `best_library`.
os.environ["LEGIBLE_KERNELS"] = str(Path(_HOME.name) / "kernels")

# Before the pipeline is imported: whether the machine is busy changes no test.
os.environ["GOMP_SPINCOUNT"] = "1000"

from kernels import backends  # noqa: E402
from kernels.backends import INSTRUCTION_SETS, CpuLibrary, build_cpu_library, load_cpu_library  # noqa: E402

SENTENCES = (
    "The miller's cat sleeps on the warm flour.",
    "def add(a, b):\n    return a + b",
    "In the year 1848 the river froze twice.",
    "while True: wait(3)",
    "Never trouble trouble till trouble troubles you.",
)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 40 kB in two manners, repetitive enough to be learnt from."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"{i % 97}. {SENTENCES[i * i % 5]} {SENTENCES[i % 3]}" for i in range(500)))
    return path


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


@pytest.fixture(scope="module")
def toy() -> Iterator[ModuleType]:
    """tests/toy_layer.py, whose kind of expert layer is registered for the tests of one file."""
    from pipeline import codec
    from pipeline.models.language_model import ModelSpec
    from pipeline.models.registry import LAYER_KINDS

    sys.modules.pop("tests.toy_layer", None)
    yield importlib.import_module("tests.toy_layer")
    del LAYER_KINDS["toy"], codec._CLASSES["toy"]
    ModelSpec.model_rebuild(force=True)
