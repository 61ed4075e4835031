"""Experts in words, a file that a model of symbols brings along, so that its card can say what it is about."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FILE = "experts.json"
MOST_EXPERTS, MOST_CONTEXTS = 5, 3

_Text = Annotated[str, Field(max_length=10_000)]


class ShownContext(BaseModel):
    """A text up to a token on which the expert fires."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: _Text
    token: _Text


class ShownExpert(BaseModel):
    """What one expert fires on, and what it then does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    expert: int
    statement: _Text
    """When it fires, in words of tokens."""
    f1: float
    """Of that statement against firing in the model that was distilled, on held-out text."""
    null_f1: float
    """Of a random statement of the same rate."""
    writes: _Text
    contexts: Annotated[tuple[ShownContext, ...], Field(max_length=MOST_CONTEXTS)]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    experts: Annotated[tuple[ShownExpert, ...], Field(max_length=MOST_EXPERTS)]


def to_json(experts: Sequence[ShownExpert]) -> bytes:
    return _File(experts=tuple(experts)).model_dump_json().encode()


def from_json(data: bytes) -> tuple[ShownExpert, ...]:
    """The experts of such a file; none of one that is not as it should be, since a card is no proof of soundness."""
    try:
        return _File.model_validate_json(data).experts
    except ValidationError:
        return ()
