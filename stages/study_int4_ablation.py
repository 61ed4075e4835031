"""Corpus -> report: what each part of int4 training buys, arm by arm, over seeds that start alike."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from pipeline.arms import Arm, ArmConfig, train_arm
from pipeline.corpus import Corpus
from pipeline.plots import intervals
from pipeline.report import Report, ReportSpec, trial_row
from pipeline.run import current_run
from pipeline.stage import Output, StageConfig, stage
from pipeline.trials import Interval, Trial, interval, paired, run_trials

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


class StudyInt4AblationConfig(StageConfig):
    """The arms' model and training, the two rates of the tables, and how many seeds."""

    arm: ArmConfig = Field(default=ArmConfig(), description="What all arms have in common.")
    table_rate: float = Field(
        default=1e-2, gt=0, le=1, description="Main peak step of u and v; of AdamW, their learning rate."
    )
    small_table_rate: float = Field(
        default=1e-3, gt=0, le=1, description="Small peak step, under half a sub-step of the accumulator."
    )
    num_seeds: int = Field(default=5, ge=2, le=100, description="Seeds, counted up from the run's.")


@stage(name="study-int4-ablation", version=2)
def study_int4_ablation(config: StudyInt4AblationConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[Report]:
    """Corpus -> report: int4 with an accumulator beside float32, no accumulator, nearest rounding, frozen tables."""
    planned = [
        *((arm, "", config.table_rate) for arm in (ADAMW, SAME_RULE, ACCUMULATOR, NEAREST, DIRECT, FROZEN)),
        *((arm, "_small_lr", config.small_table_rate) for arm in (SAME_RULE, ACCUMULATOR, NEAREST, DIRECT)),
    ]
    first = current_run().seed
    trials = [
        Trial(name=arm.name + suffix, seed=seed, compute=train_arm, arguments=(arm, config.arm, corpus, rate))
        for seed in range(first, first + config.num_seeds)
        for arm, suffix, rate in planned
    ]
    numbers = run_trials(trials, "train the arms")
    rows = [trial_row(trial.name, trial.seed, found) for trial, found in zip(trials, numbers, strict=True)]
    losses: dict[str, list[float]] = {}
    for trial, found in zip(trials, numbers, strict=True):
        losses.setdefault(trial.name, []).append(found["held_out_loss_nats"])
    baselines = {arm.name + suffix: SAME_RULE.name + suffix for arm, suffix, _ in planned if arm is not SAME_RULE}
    against = {name: paired(losses[name], losses[baseline]) for name, baseline in baselines.items()}
    words = {arm.name + suffix: f"{arm.says}, rate {rate:g}" for arm, suffix, rate in planned}
    files = {"report.md": _page(words, losses, against).encode(), "plot.png": _picture(against, config)}
    return Output(value=Report(ReportSpec(rows=tuple(rows)), files), metrics=_metrics(losses, against))


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
        "num_seeds": float(len(losses[ADAMW.name])),
    }


def _page(words: Mapping[str, str], losses: Mapping[str, Sequence[float]], against: Mapping[str, Interval]) -> str:
    lines = ["| arm | what it is | held-out loss, nats | minus float32 under the same rule, nats |"]
    lines.append("| --- | --- | ---: | ---: |")
    for name, said in words.items():
        difference = f"{against[name]}" if name in against else ""
        lines.append(f"| {name} | {said} | {interval(losses[name]).mean:.4f} | {difference} |")
    seeds = len(next(iter(losses.values())))
    return (
        "# What int4 training needs\n\n" + "\n".join(lines) + "\n\n"
        f"Means over {seeds} seeds. A seed's arms start from the same weights and see the same batches; differences "
        "are paired by seed, with 95 % intervals of Student's t. Only the expert tables differ between arms; AdamW's "
        "also decay and count in the clipped norm of the gradient.\n\n"
        "![differences between the arms](plot.png)\n"
    )


def _picture(against: Mapping[str, Interval], config: StudyInt4AblationConfig) -> bytes:
    title = f"Tables of {config.arm.peer.num_experts:,} experts: loss against float32 under the same rule"
    return intervals(title, {name: (i.mean, i.half_width) for name, i in against.items()}, "nats a token")
