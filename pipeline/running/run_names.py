"""Whether a run's name was typed by a person, or made up: by Prefect's form, or by its server where none was given."""

import re
from functools import cache

from coolname.data import config

_OF_THE_FORM = re.compile(
    "(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|Ergonomic"
    "|Handcrafted|Tasty|Handmade|Incredible)-[A-Z].{0,5}"
)
"""An adjective and an animal of six letters at most, as the form of Prefect 3.8 proposes them."""


def is_made_up(name: str) -> bool:
    """Whether nobody typed it: then it may be replaced by one that says what the run made."""
    first, _, second = name.partition("-")
    return _OF_THE_FORM.fullmatch(name) is not None or {first, second} <= _words()


@cache
def _words() -> frozenset[str]:
    """Those of which Prefect's server makes names, by the package that it makes them with."""
    return frozenset(word for entry in config.values() for word in entry.get("words", ()))
