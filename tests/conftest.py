"""Shared by all tests: Prefect keeps its history in a folder of the test run, and a text of one's own."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

# Tiny tensors: threads cost more than they give, most of all where cores are shared.
torch.set_num_threads(1)

# Before flows.py is imported: it keeps what is set.
_HOME = tempfile.TemporaryDirectory(prefix="prefect-", ignore_cleanup_errors=True)
os.environ["PREFECT_HOME"] = _HOME.name
os.environ.pop("PREFECT_API_URL", None)

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
