"""A store and a tiny corpus."""

import pytest

from artifacts import Store
from tests.tiny import tiny_corpus


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def corpus():
    return tiny_corpus()
