"""The model that a command is about."""

from artifacts import Store
from pipeline.opening import Opened, open_model


def open_asked(store: Store, id: str) -> Opened:
    """The model of this id. 'latest' is the latest of symbols, as `show` takes it, and any where there are none yet."""
    return open_model(store, id, "symbols" if id == "latest" and store.latest(kind="symbols") else None)
