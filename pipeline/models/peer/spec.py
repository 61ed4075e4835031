"""What a PEER layer is: its pool, its keys, its gate, and how its tables are stored.

A cell (r, c) of the key grid, I rows of J columns, may hold any number of experts; they lie in order of their cells,
so that where those of each cell start is the whole index. PEER as published (arXiv 2407.04153) has one expert a cell.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kernels.errors import Mistake
from kernels.packing import LAYOUT
from pipeline.models.peer.gates import GATES, GateName


class PeerSpec(BaseModel):
    """Shape of PEER's router and experts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Literal["peer"] = "peer"
    precision: Literal["float", "float32", "bfloat16", "int8", "int4"] = Field(
        default="float",
        description="How the tables u and v are stored: as float32 parameters for torch's optimizers (float), or as "
        "rows of the other precisions.",
    )
    accumulator: bool = Field(
        default=False, description="Whether int4 tables carry their second, accumulating nibble plane."
    )
    num_keys: int = Field(default=64, ge=2, le=2**15, description="n, sub-keys of the rows; n * n * aspect cells.")
    aspect: int = Field(
        default=1, ge=1, le=64, description="Columns of the key grid a row: it is n rows of n * aspect columns."
    )
    nibble_layout: Literal["half-split"] = LAYOUT
    scale_groups: int = Field(
        default=1,
        ge=1,
        le=2**10,
        description="Scales a row of an int4 table, a divisor of d_model / 2; more than 1 is for inference alone.",
    )
    num_experts: int = Field(default=4096, ge=1, le=2**30, description="Experts a block, each one neuron in one cell.")
    num_heads: int = Field(default=4, ge=1, le=64, description="H, retrieval heads.")
    sub_keys: Literal["identity", "shared", "per-head"] = Field(
        default="per-head",
        description="Sub-keys: none (the query is the scores), one set that all heads share, as in the paper's layer "
        "(arXiv 2407.04153), or a set for each head, as in lucidrains' code.",
    )
    d_key: int = Field(default=32, ge=1, le=2**15, description="Width of a sub-key; with identity keys num_keys.")
    pools: Literal["shared", "per-head"] = Field(
        default="shared",
        description="Whether all heads reach the same experts, or each has as many cells, and experts in them, of its "
        "own.",
        exclude_if=lambda pools: pools == "shared",  # specs and recipes without it are older, and keep their ids
    )
    query_norm: bool = Field(default=True, description="Whether the query passes a batch norm.")
    gate: GateName = Field(
        default="softmax",
        description="Softmax over the best pairs, or every pair whose log gates sum to more than a threshold, or the "
        "positive part of each best pair's own score.",
    )
    pairs_per_head: int = Field(
        default=8, ge=1, le=2**30, description="Pairs a head keeps (softmax) or fires on average (jumprelu)."
    )
    active_keys: int = Field(
        default=4,
        ge=1,
        le=2**15,
        description="Sub-keys of a head's rows that pass on average, and as large a share of its columns; only the "
        "jumprelu gate uses it.",
    )
    tie_margin: float = Field(
        default=0.0,
        ge=0,
        le=0.1,
        description="Deviations by which a sub-key may miss its head's best and pass like it: in a pool that has "
        "grown, the best has twins that differ by rounding.",
    )
    activation: Literal["relu2", "gelu", "silu", "relu"] = Field(default="gelu", description="Activation of an expert.")
    score_features: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="r, linear features of the state that all scores of a router are sums of; 0: of the state itself.",
    )
    score_terms: int = Field(
        default=0, ge=0, le=4096, description="k, most features that one score is a sum of; 0: as many as there are."
    )
    u_terms: int = Field(
        default=0, ge=0, le=2**15, description="Most coordinates of the state that a row of u reads; 0: all of them."
    )
    axis_bias: bool = Field(default=False, description="Whether each sub-key adds an output bias of its own (Monet's).")
    router_group: int = Field(
        default=1, ge=1, le=256, description="Blocks that share one router, the lowest of them owning it."
    )

    @model_validator(mode="after")
    def _fits(self) -> "PeerSpec":
        if self.sub_keys == "identity" and self.d_key != self.num_keys:
            raise Mistake(f"identity keys have d_key = num_keys = {self.num_keys}, not {self.d_key}")
        GATES[self.gate].check(self)
        if self.pools == "per-head" and GATES[self.gate].axis_gates:
            raise Mistake(f"pools of their own have heads whose pairs are compared, not those of the {self.gate} gate")
        if self.accumulator and self.precision != "int4":
            raise Mistake(f"only int4 tables have an accumulator; precision is {self.precision}")
        if self.scale_groups > 1 and (self.precision != "int4" or self.accumulator):
            what = "int4 tables that train" if self.accumulator else f"tables of precision {self.precision}"
            raise Mistake(f"{what} have one scale a row, not scale_groups={self.scale_groups}; quantize with 1")
        if self.score_features and (self.sub_keys != "identity" or self.query_norm):
            raise Mistake(
                f"score_features={self.score_features} needs scores that are linear in the state: sub_keys identity, "
                f"not {self.sub_keys}, and no query_norm"
            )
        if self.score_terms > self.score_features:
            raise Mistake(f"score_terms={self.score_terms} is more than score_features={self.score_features}")
        if self.axis_bias and not GATES[self.gate].axis_gates:
            having = " or ".join(name for name, gate in GATES.items() if gate.axis_gates)
            raise Mistake(f"axis_bias needs the {having} gate: the biases are weighted by its gates of one axis")
        return self

    def doubled_grid(self) -> tuple[int, "PeerSpec"]:
        """The axis that doubles next, rows (0) where there is an even number of columns a row, and the spec with it.

        Twice the experts, in the same proportion of cells. ValueError where that is out of bounds.
        """
        axis = 0 if self.aspect % 2 == 0 else 1
        update = {"num_experts": 2 * self.num_experts}
        if axis == 1:
            update["aspect"] = 2 * self.aspect
        else:
            update |= {"num_keys": 2 * self.num_keys, "aspect": self.aspect // 2, "active_keys": 2 * self.active_keys}
            if self.sub_keys == "identity":
                update["d_key"] = 2 * self.d_key
        return axis, PeerSpec.model_validate({**self.model_dump(), **update})

    @property
    def num_columns(self) -> int:
        """Sub-keys of the columns."""
        return self.num_keys * self.aspect

    @property
    def num_cells(self) -> int:
        """Of the key grid, which every head searches."""
        return self.num_keys * self.num_columns

    @property
    def num_indexed_cells(self) -> int:
        """Of the pool: those of the grid, or of one grid after the other."""
        return self.num_cells * (1 if self.pools == "shared" else self.num_heads)

    @property
    def kind(self) -> str:
        return "peer" if self.precision == "float" else f"peer-{self.precision}"
