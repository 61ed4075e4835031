"""Which metrics are shown where: one entry a metric, with its heading, its form and its places.

What a metric says is in artifacts/meanings.py; every table, card and page selects what it shows here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto


class Place(Enum):
    """Where metrics are shown."""

    RUN = auto()
    """The table at the end of a run, a column each."""
    SEEDS = auto()
    """The table of stages over seeds, a column each."""
    PAIRS = auto()
    """Dense beside Monet, a row each: whether it is as good, as large and as long trained."""
    REPORT = auto()
    """The page of the chain, a column each."""
    HEADLINE = auto()
    """The one metric that says most about an artifact: the first of these that it has."""
    HUB = auto()
    """Beside a model on the Hugging Face Hub: of held-out text, controls included."""
    SYMBOLS = auto()
    """The page of symbols, a row each with what it is read beside."""


RUN, SEEDS, PAIRS, REPORT, HEADLINE, HUB, SYMBOLS = Place


@dataclass(frozen=True, slots=True)
class Column:
    """How a metric is shown."""

    metric: str
    heading: str = ""
    form: str = "{:.4g}"
    at: Mapping[Place, int] = field(default_factory=dict, kw_only=True)
    """Where it is shown, counted from 1 in the order that they have there."""
    headings: Mapping[Place, str] = field(default_factory=dict, kw_only=True)
    """Where its heading is another."""
    forms: Mapping[Place, str] = field(default_factory=dict, kw_only=True)
    """Where its form is another."""
    beside: tuple[str, ...] = field(default=(), kw_only=True)
    """The controls, nulls and bounds that it is read beside."""
    words: str = field(default="", kw_only=True)
    """The figure as people say it, where it stands for the whole artifact."""
    comparable: bool = field(default=False, kw_only=True)
    """Whether two models of one corpus can be compared by it. Others are differences, or of the stage's work."""

    def text(self, metrics: Mapping[str, float]) -> str:
        """What stands in its cell; nothing if it was not measured."""
        return self.form.format(metrics[self.metric]) if self.metric in metrics else ""


# fmt: off
COLUMNS = (
    Column("held_out_bits_per_byte", "bits/byte", "{:.4f}", comparable=True, words="{:.4f} bits a byte",
           at={RUN: 1, SEEDS: 1, PAIRS: 2, REPORT: 1, HEADLINE: 3, HUB: 1}),
    Column("held_out_loss_nats", "loss, nats", "{:.4f}", headings={REPORT: "loss, nats/token"}, comparable=True,
           words="loss {:.4f} nats",
           at={SEEDS: 2, PAIRS: 1, REPORT: 2, HEADLINE: 1, HUB: 2}),
    Column("loss_increase_nats", "Δ to parent, nats", "{:+.4f}",
           headings={RUN: "Δ nats", REPORT: "Δ against parent, nats"},
           at={RUN: 2, SEEDS: 3, REPORT: 3, HUB: 3, SYMBOLS: 3}, beside=("loss_increase_standard_error_nats",)),
    Column("kl_to_teacher_nats", "KL, nats", "{:.5f}", headings={RUN: "KL nats"},
           at={RUN: 3, SEEDS: 4, REPORT: 4, HUB: 4, SYMBOLS: 4}),
    Column("loss_recovered", "recovered", "{:.4f}", words="{:.1%} recovered",
           at={RUN: 4, SEEDS: 5, REPORT: 5, HEADLINE: 2, HUB: 5, SYMBOLS: 2},
           beside=("loss_recovered_biases_alone", "loss_recovered_gate_constant_magnitude",
                   "loss_recovered_constant_magnitude", "loss_recovered_permuted_firing")),
    Column("loss_without_experts_nats", comparable=True),
    Column("expert_bytes", "bytes/expert", "{:,.0f}", forms={SEEDS: "{:.0f}"}, at={RUN: 5, SEEDS: 6, REPORT: 6},
           comparable=True),
    Column("table_bytes_per_parameter", "table bytes/parameter", "{:.3f}", at={REPORT: 7}, comparable=True),
    Column("num_experts", comparable=True),
    Column("effective_experts", comparable=True),
    Column("active_experts_per_token", "active experts/token", "{:.1f}", at={REPORT: 8}, comparable=True),
    Column("num_parameters", "parameters", "{:,.0f}", at={PAIRS: 3, REPORT: 9}, comparable=True),
    Column("train_tokens", "train tokens", "{:,.0f}", words="{:,.0f} train tokens",
           at={SEEDS: 7, PAIRS: 4, REPORT: 10, HEADLINE: 4}),
    Column("symbols_bits_per_byte", words="symbols {:.4f} bits a byte", at={HEADLINE: 5}),
    Column("context_tokens", "context", "{:,.0f}", at={REPORT: 11}),
    Column("loss_recovered_over_biases", at={HUB: 6, SYMBOLS: 1},
           beside=("loss_recovered_gate_constant_magnitude_over_biases",
                   "loss_recovered_constant_magnitude_over_biases", "loss_recovered_permuted_firing_over_biases")),
    Column("loss_recovered_biases_alone", at={HUB: 7}),
    Column("loss_recovered_gate_constant_magnitude", at={HUB: 8}),
    Column("loss_recovered_gate_constant_magnitude_over_biases", at={HUB: 9}),
    Column("loss_recovered_constant_magnitude", at={HUB: 10}),
    Column("loss_recovered_constant_magnitude_over_biases", at={HUB: 11}),
    Column("loss_recovered_permuted_firing", at={HUB: 12}),
    Column("loss_recovered_permuted_firing_over_biases", at={HUB: 13}),
    Column("r2_energy_weighted", at={SYMBOLS: 5}),
    Column("readable_energy_share", at={SYMBOLS: 6}, beside=("energy_share_t0", "energy_share_t4")),
    Column("verbatim_energy_share", at={SYMBOLS: 7},
           beside=("shortened_energy_share", "other_function_energy_share", "rule_energy_share")),
    Column("verbatim_expert_share", at={SYMBOLS: 8},
           beside=("shortened_expert_share", "other_function_expert_share", "rule_expert_share")),
    Column("firing_f1_mean", at={SYMBOLS: 9},
           beside=("firing_f1_same_rate_null_mean", "firing_f1_mean_dropped_as_zero", "rule_firing_f1_mean")),
    Column("rule_f1_mean", at={SYMBOLS: 10},
           beside=("rule_f1_single_gate_mean", "rule_f1_same_rate_null_mean", "rule_f1_permuted_mean")),
    Column("deep_rule_f1_mean", at={SYMBOLS: 11},
           beside=("deep_rule_f1_gate_mean", "deep_rule_f1_tree_mean", "deep_rule_f1_net_mean")),
    Column("gates_per_rule_mean", at={SYMBOLS: 12}, beside=("rule_gates_total", "rule_gates_pass_through")),
    Column("token_logic_f1_mean", at={SYMBOLS: 13}, beside=("token_logic_f1_same_rate_null_mean",)),
    Column("score_name_f1_mean", at={SYMBOLS: 14},
           beside=("score_name_f1_same_rate_null_mean", "score_name_f1_permuted_mean")),
    Column("feature_name_f1_mean", at={SYMBOLS: 15},
           beside=("feature_name_f1_same_rate_null_mean", "feature_name_f1_permuted_mean")),
    Column("coordinate_name_f1_mean", at={SYMBOLS: 16},
           beside=("coordinate_name_f1_same_rate_null_mean", "coordinate_name_f1_permuted_mean")),
    Column("formula_coordinates_median", at={SYMBOLS: 17}, beside=("formula_coordinates_mean",)),
    Column("description_bits_per_expert", at={SYMBOLS: 18},
           beside=("description_bits_per_expert_exact", "description_bits_per_expert_with_biases")),
)
# fmt: on

COMPARABLE = frozenset(column.metric for column in COLUMNS if column.comparable)


def columns(place: Place) -> tuple[Column, ...]:
    """What is shown there, in order, with the heading and form that it has there."""
    shown = sorted((column for column in COLUMNS if place in column.at), key=lambda column: column.at[place])
    return tuple(replace(c, heading=c.headings.get(place, c.heading), form=c.forms.get(place, c.form)) for c in shown)


def names(place: Place) -> tuple[str, ...]:
    """The metrics that are shown there, in order."""
    return tuple(column.metric for column in columns(place))


def changed(name: str, value: float, before: Mapping[str, float]) -> float | None:
    """How much more this metric is than before, if that says anything."""
    return value - before[name] if name in COMPARABLE and name in before else None
