"""What is known of the quantities that statements speak of, as text to show.

They are scores A^h_r and B^h_c, features f_i that scores may be made of, and coordinates x_d.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FILE = "names.json"

PLACES = ("cur", "prev")
"""The words for the current token and the one before; further back they are counted."""
GATE_WORDS = (
    "never", "{a} and {b}", "{a} and not {b}", "{a}", "{b} and not {a}", "{b}", "either {a} or {b}", "{a} or {b}",
    "neither {a} nor {b}", "{a} exactly if {b}", "not {b}", "{a} or not {b}", "not {a}", "{b} or not {a}",
    "not both {a} and {b}", "always",
)  # fmt: skip
"""Of difflogic's sixteen gates, by number."""


class TopToken(BaseModel):
    """A token on which a quantity is high more often than on others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    count: int = Field(description="Tokens of the sample that are this one and on which the quantity is high.")
    lift: float = Field(description="How often the quantity is high on it, over how often on any token.")


class Name(BaseModel):
    """One score, feature or coordinate, and when it is high: a statement about tokens, with its F1 beside two nulls."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["score", "feature", "coordinate"]
    block: int = Field(description="Block whose router has the score or feature, or whose experts read the coordinate.")
    axis: Literal["A", "B", "f", "x"] = Field(
        description="A: rows, B: columns of the key grid; f: the features of scores; x: the state."
    )
    head: int | None = Field(description="Head of the router; nothing for a feature or a coordinate.")
    index: int = Field(description="Number of the sub-key, feature or coordinate.")
    statement: str
    brief: str = Field(description="The statement with no more than a few tokens of each set.")
    f1: float = Field(description="F1 of the statement against 'high', on reported_tokens held-out tokens.")
    null_f1: float = Field(description="Expected F1 of a random statement of the same rate: the rate itself.")
    permuted_f1: float = Field(description="F1 of the best statement on a quantity that is high on permuted tokens.")
    rate: float = Field(description="Share of those tokens on which the quantity is high.")
    top_tokens: tuple[TopToken, ...]
    contexts: tuple[str, ...] = Field(description="Text up to the tokens on which the quantity is highest.")

    @property
    def symbol(self) -> str:
        """As statements write it: A^0_16, x_118."""
        return symbol(self.axis, self.head, self.index)

    @property
    def words(self) -> str:
        """The brief statement with the figures of the whole one, on one line."""
        return f"{self.brief}  (F1 {self.f1:.2f}; null {self.null_f1:.2f}, permuted {self.permuted_f1:.2f})"


class Said(BaseModel):
    """The best token statement for the firing of one expert. It explains; what fires the expert is its own rule."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    block: int
    expert: int
    statement: str
    f1: float = Field(
        description="F1 of the statement against the firing in the model that was distilled, on reported_tokens "
        "held-out tokens."
    )
    null_f1: float = Field(description="Expected F1 of a random statement of the same rate: the rate itself.")

    @property
    def words(self) -> str:
        """The statement with its figures, on one line."""
        return f"{self.statement}  (F1 {self.f1:.2f}; null {self.null_f1:.3f})"


class Names(BaseModel):
    """All names of a model, as they lie in its artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[Name, ...]
    experts: tuple[Said, ...] = Field(default=(), description="Those with most output of each block.")

    def of(self, block: int, symbols: Sequence[str]) -> Iterator[Name]:
        """The names of these symbols of a block, in their order; what has none is left out."""
        known = {name.symbol: name for name in self.names if name.block == block}
        return (known[symbol] for symbol in symbols if symbol in known)

    def said(self, block: int, expert: int) -> Said | None:
        """What tokens say of an expert, if it is among those that are described."""
        return next((said for said in self.experts if (said.block, said.expert) == (block, expert)), None)

    def best_scores(self, block: int, count: int) -> list[Name]:
        """Scores of a router whose statements are furthest above their permuted control."""
        scores = [name for name in self.names if name.kind == "score" and name.block == block]
        return sorted(scores, key=lambda name: name.permuted_f1 - name.f1)[:count]

    def mean(self, kind: str, figure: str) -> float:
        """Over the names of a kind that are high anywhere on those tokens."""
        values = [float(getattr(name, figure)) for name in self.names if name.kind == kind and name.rate > 0]
        return sum(values) / max(1, len(values))


def symbol(axis: str, head: int | None, index: int) -> str:
    return f"{axis}_{index}" if head is None else f"{axis}^{head}_{index}"


def place(back: int) -> str:
    """Where a literal looks: cur, prev, 2 back."""
    return PLACES[back] if back < len(PLACES) else f"{back} back"


def gate_words(kind: int, a: str, b: str) -> str:
    """The gate of two literals in words; of one and the same literal, that one or its negation."""
    if a == b and kind not in (0, 15):
        # Which of 00 and 11 the gate is true of.
        kind = {(0, 0): 0, (0, 1): 3, (1, 0): 12, (1, 1): 15}[kind >> 3 & 1, kind & 1]
    return GATE_WORDS[kind].format(a=a, b=b)
