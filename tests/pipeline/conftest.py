"""A store, a tiny corpus, and one thread: two would only wait for each other over shapes this small."""

import pytest
import torch

from artifacts import Store
from tests.tiny import tiny_corpus


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def corpus():
    return tiny_corpus()
