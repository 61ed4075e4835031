"""Corpus -> report: what each part of int4 training buys, arm by arm, over seeds that start alike."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from artifacts.markdown import table
from pipeline.corpus.splits import Corpus
from pipeline.figures.studies import intervals
from pipeline.report import Report, ReportSpec, trial_row
from pipeline.run import current_run
from pipeline.stage import Output, StageConfig, stage
from pipeline.studies.intervals import Interval, interval, paired
from pipeline.studies.rates import choose_rates, page_of_choices
from pipeline.studies.trials import Trial, run_trials
from pipeline.studies.variants import Arm, ArmConfig, Rates, train_arm

ADAMW = Arm(name="fp32_adamw", says="float32 tables, AdamW", format="float")
SAME_RULE = Arm(name="fp32_same_rule", says="float32 tables, the row rule of int4", format="float32")
ACCUMULATOR = Arm(
    name="int4_accumulator", says="int4 with an int4 accumulator, stochastic rounding", format="int4", accumulator=True
)
NEAREST = Arm(
    name="int4_nearest",
    says="int4 with an int4 accumulator, rounded to the nearest",
    format="int4",
    accumulator=True,
    rounding="nearest",
)
DIRECT = Arm(name="int4_direct", says="int4 without an accumulator, stochastic rounding", format="int4")
FROZEN = Arm(name="frozen", says="tables stay as they start", format="float32", frozen=True)


SWEPT = (ADAMW, SAME_RULE, ACCUMULATOR, NEAREST, DIRECT)
"""The arms whose rate is chosen; tables that stay as they start have none."""
AT_SMALL_RATE = (SAME_RULE, ACCUMULATOR, NEAREST, DIRECT)


class StudyInt4AblationConfig(StageConfig):
    """The arms' model and training, the rates their tables choose from, and how many seeds."""

    arm: ArmConfig = Field(default=ArmConfig(), description="What all arms have in common.")
    table_rates: Rates = Field(
        default=(1e-3, 3e-3, 1e-2, 3e-2), description="Peak steps of u and v that each arm but AdamW's chooses from."
    )
    adamw_table_rates: Rates = Field(
        default=(1e-3, 3e-3, 1e-2, 3e-2), description="Learning rates of u and v that AdamW's arm chooses from."
    )
    small_table_rate: float = Field(
        default=1e-3, gt=0, le=1, description="Small peak step, under half a sub-step of the accumulator."
    )
    num_seeds: int = Field(default=5, ge=2, le=100, description="Seeds that are reported, counted up from the run's.")
    num_tuning_seeds: int = Field(
        default=2, ge=1, le=100, description="Seeds that choose the rates, counted up from there; not reported."
    )

    def rates(self, arm: Arm) -> tuple[float, ...]:
        return self.adamw_table_rates if arm is ADAMW else self.table_rates


@stage(name="study-int4-ablation", version=3)
def study_int4_ablation(config: StudyInt4AblationConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[Report]:
    """Corpus -> report: int4 with an accumulator beside float32, no accumulator, nearest rounding, frozen tables."""
    first = current_run().seed
    seeds = range(first, first + config.num_seeds)
    tuning_seeds = range(seeds.stop, seeds.stop + config.num_tuning_seeds)

    def trial(name: str, arm: Arm, rate: float, seed: int) -> Trial:
        return Trial(name=name, seed=seed, compute=train_arm, arguments=(arm, config.arm, corpus, rate))

    tried = [(arm, rate, seed) for arm in SWEPT for rate in config.rates(arm) for seed in tuning_seeds]
    tuning = [trial(f"{arm.name} rate {rate}", arm, rate, seed) for arm, rate, seed in tried]
    tuned = run_trials(tuning, "choose rates")
    choices = choose_rates([(arm.name, rate) for arm, rate, _ in tried], tuned)
    planned = [
        *((arm, "", choices[arm.name].rate) for arm in SWEPT),
        (FROZEN, "", 0.0),
        *((arm, "_small_lr", config.small_table_rate) for arm in AT_SMALL_RATE),
    ]
    trials = [trial(arm.name + suffix, arm, rate, seed) for seed in seeds for arm, suffix, rate in planned]
    numbers = run_trials(trials, "train the arms")
    rows = [
        *(trial_row(t.name, t.seed, found, kind="tuning trial") for t, found in zip(tuning, tuned, strict=True)),
        *(trial_row(t.name, t.seed, found) for t, found in zip(trials, numbers, strict=True)),
    ]
    losses: dict[str, list[float]] = {}
    for one, found in zip(trials, numbers, strict=True):
        losses.setdefault(one.name, []).append(found["held_out_loss_nats"])
    baselines = {arm.name + suffix: SAME_RULE.name + suffix for arm, suffix, _ in planned if arm is not SAME_RULE}
    against = {name: paired(losses[name], losses[baseline]) for name, baseline in baselines.items()}
    words = {arm.name + suffix: _words(arm, rate) for arm, suffix, rate in planned}
    page = _page(words, losses, against, page_of_choices(choices, tuning_seeds))
    files = {"report.md": page.encode(), "plot.png": _picture(against, config)}
    metrics = {
        **_metrics(losses, against),
        **{f"table_rate_{name}": choice.rate for name, choice in choices.items()},
        "rates_at_an_end": float(sum(choice.at_an_end for choice in choices.values())),
        "num_seeds": float(config.num_seeds),
        "num_tuning_seeds": float(config.num_tuning_seeds),
    }
    return Output(value=Report(ReportSpec(rows=tuple(rows)), files), metrics=metrics)


def _words(arm: Arm, rate: float) -> str:
    return arm.says if arm.frozen else f"{arm.says}, at a rate of {rate:g}"


def _metrics(losses: Mapping[str, Sequence[float]], against: Mapping[str, Interval]) -> dict[str, float]:
    metrics = {f"loss_{name}_nats": interval(values).mean for name, values in losses.items()}
    for name, difference in against.items():
        metrics[f"{name}_minus_same_rule_nats"] = difference.mean
        metrics[f"{name}_minus_same_rule_half_width_nats"] = difference.half_width
    adamw = paired(losses[ACCUMULATOR.name], losses[ADAMW.name])
    return {
        **metrics,
        "int4_accumulator_minus_adamw_nats": adamw.mean,
        "int4_accumulator_minus_adamw_half_width_nats": adamw.half_width,
    }


def _page(
    words: Mapping[str, str],
    losses: Mapping[str, Sequence[float]],
    against: Mapping[str, Interval],
    choices: str,
) -> str:
    head = ("arm", "what it is", "held-out loss, nats", "minus float32 under the same rule, nats")
    rows = [
        (name, said, f"{interval(losses[name]).mean:.4f}", str(against.get(name, ""))) for name, said in words.items()
    ]
    seeds = len(next(iter(losses.values())))
    return (
        f"# What int4 training needs\n\n{table(head, rows, numbers_from=2)}\n\n"
        f"Means over {seeds} seeds. A seed's arms start from the same weights and see the same batches; differences "
        "are paired by seed, with 95 % intervals of Student's t. Only the expert tables differ between arms; AdamW's "
        "also decay and count in the clipped norm of the gradient. The first arms are each at a rate of their own "
        "choice, the last ones (_small_lr) all at one small rate.\n\n"
        f"{choices}\n"
        "![differences between the arms](plot.png)\n"
    )


def _picture(against: Mapping[str, Interval], config: StudyInt4AblationConfig) -> bytes:
    title = f"Tables of {config.arm.peer.num_experts:,} experts: loss against float32 under the same rule"
    return intervals(title, {name: (i.mean, i.half_width) for name, i in against.items()}, "nats a token")
