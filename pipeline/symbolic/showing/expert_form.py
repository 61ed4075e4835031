"""All that is needed to compute one expert without this project, as data: when it fires, how strongly, what it
writes.

`python -m pipeline.symbolic show ID --layer L --expert E --json` prints an `ExpertData`. Numbers are those of the
tables, with all their digits; what is made of several tables is computed in float64. A later `format` may name things
otherwise; this one keeps its names and their meanings.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.models.peer.gates import GateName

Terms = tuple[tuple[int, float], ...]
"""Number and coefficient of each thing that is summed."""

LOGIC_RULE = (
    "Literal l is true of a token iff the token `back` places before it is one of `tokens`; before the beginning of "
    "the text none is true. Wire w is the literal w of this list, and from the number of literals on the output of a "
    "gate, in order. A gate's output is truth[2 * a + b] of its two wires. The expert fires iff the last gate is true."
)
SPLINE_RULE = (
    "p = clamp((z - low) / (high - low), 0, 1) * (len(coefficients) - 3), i = min(floor(p), len(coefficients) - 4), "
    "t = p - i; f(z) = (c_i (1-t)^3 + c_(i+1) (3t^3 - 6t^2 + 4) + c_(i+2) (-3t^3 + 3t^2 + 3t + 1) + c_(i+3) t^3) / 6, "
    "the uniform cubic B-spline of the coefficients c"
)


class Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class State(Data):
    """A vector for each token."""

    block: int
    words: str


class Sum(Data):
    """A score: the sum of coefficient * quantity over `terms`, plus `intercept`."""

    terms: Terms = Field(description="(number, coefficient) of the features, or of the coordinates of the state.")
    intercept: float


class Cut(Data):
    """Which scores of one head and axis pass, in the units of the scores."""

    mean: float
    variance: float
    epsilon: float
    deviations: float = Field(description="How many deviations above the mean the limit lies.")
    tie_margin: float = Field(description="Deviations by which a score may miss the head's largest and pass like it.")
    limit: float = Field(description="mean + deviations * sqrt(variance + epsilon)")
    margin: float = Field(description="tie_margin * sqrt(variance + epsilon)")


class Axis(Data):
    scores: tuple[Sum, ...] = Field(description="Of every row or column of the head, as the sum over those needs all.")
    cut: Cut | None = Field(description="Null where every row or column passes.")


class Head(Data):
    rows: Axis
    columns: Axis
    threshold: float | None


class ScoreFiring(Data):
    by: Literal["scores"] = "scores"
    statement: str = Field(description="The comparison, rounded, as the text view has it.")
    rule: str
    gate: GateName
    reads: State = Field(description="What features, or scores where there are no features, are sums over.")
    scores_of: Literal["features", "state"]
    features: tuple[tuple[float, ...], ...] = Field(description="Feature i is the product of vector i and the state.")
    row: int
    column: int
    heads: tuple[Head, ...]
    pairs_per_head: int | None = Field(description="Null with a gate that has thresholds.")


class LiteralData(Data):
    name: str
    back: int
    tokens: tuple[int, ...]


class GateData(Data):
    truth: tuple[bool, bool, bool, bool]
    a: int
    b: int


class LogicFiring(Data):
    by: Literal["logic"] = "logic"
    statement: str
    rule: str
    literals: tuple[LiteralData, ...]
    gates: tuple[GateData, ...]


class NoFiring(Data):
    by: Literal["never"] = "never"


class CatalogueFunction(Data):
    kind: Literal["formula"] = "formula"
    name: str
    formula: str = Field(description="f(z) as sympy writes it.")


class SplineFunction(Data):
    kind: Literal["spline"] = "spline"
    rule: str
    low: float
    high: float
    coefficients: tuple[float, ...]


class Magnitude(Data):
    """scale * f(z) + offset, z the sum of coefficient * coordinate over `terms`, plus `intercept`."""

    reads: State
    terms: Terms = Field(description="(coordinate, coefficient), all of them.")
    intercept: float
    function: Annotated[CatalogueFunction | SplineFunction, Field(discriminator="kind")]
    scale: float
    offset: float
    times_gate: bool = Field(description="Whether what is added is gate * magnitude * v; else magnitude * v.")


class Writes(Data):
    block: int = Field(description="The block after whose experts the vector is in the residual stream.")
    v: tuple[float, ...]


class ExpertData(Data):
    """One expert of a symbols model."""

    format: Literal[1] = 1
    model: str
    layer: int
    expert: int
    tier: str
    tier_words: str
    fires: Annotated[ScoreFiring | LogicFiring | NoFiring, Field(discriminator="by")]
    magnitude: Magnitude | None = Field(description="Null for an expert that never fires, as `writes` is.")
    writes: Writes | None
