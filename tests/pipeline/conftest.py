"""A store, a tiny corpus, and symbols of every kind. What all tests share is nobody's to change."""

import pytest

from artifacts import Store
from tests.tiny import tiny_corpus
from tests.tiny_symbols import symbols_model
from tests.tiny_symbols import symbols_store as store_of


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def corpus():
    return tiny_corpus()


@pytest.fixture(scope="session")
def symbols():
    """A model that has an expert of every kind."""
    return symbols_model()


@pytest.fixture(scope="session")
def symbols_store(symbols, tmp_path_factory):
    """It and the corpus that it was made from, without names of scores and, the latest, with them."""
    return store_of(tmp_path_factory.mktemp("symbols") / "store", symbols)
