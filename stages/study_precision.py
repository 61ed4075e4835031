"""Corpus -> report: what a byte of expert table buys at float32, bfloat16, int8 and int4, over pools and seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from artifacts.markdown import table
from pipeline.capacity.storage import INFERENCE, TRAINING, Storage, neuron_bytes
from pipeline.corpus.splits import Corpus
from pipeline.figures.studies import Measurement, lines_by_size
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.spec import PeerSpec
from pipeline.report import Report, ReportSpec, trial_row
from pipeline.run import current_run
from pipeline.stage import Output, StageConfig, stage
from pipeline.studies.intervals import Interval, interval, paired
from pipeline.studies.rates import Choice, choose_rates, page_of_choices
from pipeline.studies.trials import Trial, run_trials
from pipeline.studies.variants import Arm, ArmConfig, Rates, train_arm

FORMATS = (
    Arm(name="fp32", says="float32, row rule", format="float32"),
    Arm(name="bf16", says="bfloat16, row rule with stochastic rounding", format="bfloat16"),
    Arm(name="int8", says="int8, row rule with stochastic rounding", format="int8"),
    Arm(name="int4", says="int4 with an int4 accumulator, row rule", format="int4", accumulator=True),
)
NARROWER = {"bf16": "fp32", "int8": "bf16", "int4": "int8"}
"""Each format and the one of twice its bytes for inference: half as many experts take as much memory."""


class StudyPrecisionConfig(StageConfig):
    """The smallest pool and its training, the larger pools, the rates tried, and how many seeds.

    Each of the four formats at each pool trains once for every rate and tuning seed and once for every reported seed:
    by default 4 x 4 x (3 x 2 + 3) = 144 trainings.
    """

    arm: ArmConfig = Field(
        default=ArmConfig(peer=PeerSpec(num_keys=64, num_experts=4096)),
        description="Model of the smallest pool, and the training of all.",
    )
    doublings: int = Field(default=3, ge=1, le=10, description="Times the pool doubles: 3 gives N, 2N, 4N and 8N.")
    table_rates: Rates = Field(
        default=(3e-3, 1e-2, 2e-2),
        description="Peak steps of u and v that each format chooses from at each pool; one costs a training a format, "
        "pool and tuning seed.",
    )
    num_seeds: int = Field(default=3, ge=2, le=100, description="Seeds that are reported, counted up from the run's.")
    num_tuning_seeds: int = Field(
        default=2, ge=1, le=100, description="Seeds that choose the rates, counted up from there; not reported."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One format at one pool."""

    format: str
    factor: int
    """Times the smallest pool."""
    table_rate: float
    losses: Sequence[float]
    inference_bytes: float
    """Of all tables and biases."""
    training_bytes: float

    @property
    def name(self) -> str:
        return f"{self.format}_{self.factor}n"

    @property
    def row(self) -> tuple[str, ...]:
        """Of the page's table."""
        sizes = (f"{size / 1e6:.2f}" for size in (self.inference_bytes, self.training_bytes))
        return self.format, f"{self.factor}N", *sizes, f"{self.table_rate:g}", f"{interval(self.losses).mean:.4f}"


@stage(name="study-precision", version=2)
def study_precision(config: StudyPrecisionConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[Report]:
    """Corpus -> report: loss against bytes, for training and for inference, at four number formats."""
    first = current_run().seed
    seeds = range(first, first + config.num_seeds)
    tuning_seeds = range(seeds.stop, seeds.stop + config.num_tuning_seeds)
    pools = {2**k: _pool(config.arm, 2**k) for k in range(config.doublings + 1)}
    # The largest first, so that no core is left waiting for one at the end.
    places = [(arm, factor) for factor in reversed(pools) for arm in FORMATS]

    def trial(name: str, arm: Arm, factor: int, rate: float, seed: int) -> Trial:
        return Trial(name=name, seed=seed, compute=train_arm, arguments=(arm, pools[factor], corpus, rate))

    tried = [(*place, rate, seed) for place in places for rate in config.table_rates for seed in tuning_seeds]
    tuning = [trial(f"{_name(arm, factor)} rate {rate}", arm, factor, rate, seed) for arm, factor, rate, seed in tried]
    tuned = run_trials(tuning, "choose rates")
    choices = choose_rates([(_name(arm, factor), rate) for arm, factor, rate, _ in tried], tuned)
    trials = [
        trial(name, arm, factor, choices[name].rate, seed)
        for arm, factor in places
        for seed in seeds
        for name in [_name(arm, factor)]
    ]
    numbers = run_trials(trials, "train the pools")
    losses: dict[str, list[float]] = {}
    for one, found in zip(trials, numbers, strict=True):
        losses.setdefault(one.name, []).append(found["held_out_loss_nats"])
    cells = _cells(config, pools, choices, losses)
    rows = [
        *(trial_row(t.name, t.seed, found, kind="tuning trial") for t, found in zip(tuning, tuned, strict=True)),
        *(trial_row(t.name, t.seed, found) for t, found in zip(trials, numbers, strict=True)),
    ]
    equal = _at_equal_bytes(cells)
    page = _page(cells, equal, page_of_choices({name: choices[name] for name in cells}, tuning_seeds))
    files = {"report.md": page.encode(), "plot.png": _picture(cells)}
    metrics = {
        **{f"loss_{name}_nats": interval(cell.losses).mean for name, cell in cells.items()},
        **{f"table_rate_{name}": cell.table_rate for name, cell in cells.items()},
        **{f"{name}_nats": difference.mean for name, difference in equal.items()},
        **{f"{name}_half_width_nats": difference.half_width for name, difference in equal.items()},
        "rates_at_an_end": float(sum(choice.at_an_end for choice in choices.values())),
        "num_seeds": float(config.num_seeds),
        "num_tuning_seeds": float(config.num_tuning_seeds),
    }
    return Output(value=Report(ReportSpec(rows=tuple(rows)), files), metrics=metrics)


def _name(arm: Arm, factor: int) -> str:
    return f"{arm.name}_{factor}n"


def _cells(
    config: StudyPrecisionConfig,
    factors: Iterable[int],
    choices: Mapping[str, Choice],
    losses: Mapping[str, Sequence[float]],
) -> dict[str, Cell]:
    """Every format at every pool, the smallest pool first."""
    return {
        name: Cell(
            format=arm.name,
            factor=factor,
            table_rate=choices[name].rate,
            losses=losses[name],
            inference_bytes=_bytes(stored, factor, config.arm),
            training_bytes=_bytes(trained, factor, config.arm),
        )
        for factor in factors
        for arm, stored, trained in zip(FORMATS, INFERENCE, TRAINING[-len(FORMATS) :], strict=True)
        for name in [_name(arm, factor)]
    }


def _pool(config: ArmConfig, factor: int) -> ArmConfig:
    """The same model with a key grid of so many times the cells: rows or columns are doubled, in turn."""
    peer = config.peer
    while factor > 1:
        _, peer = peer.doubled_grid()
        factor //= 2
    return config.model_copy(update={"peer": peer})


def _bytes(storage: Storage, factor: int, config: ArmConfig) -> float:
    """Of all tables, biases and indices of cells of the model with so many times the smallest pool."""
    shape, peer = config.transformer, _pool(config, factor).peer
    experts_bytes = peer.num_experts * neuron_bytes(storage, shape.d_model)
    return float(shape.num_layers * (experts_bytes + CellIndex(peer).state_bytes()))


def _at_equal_bytes(cells: Mapping[str, Cell]) -> dict[str, Interval]:
    """Each format against the one of twice its bytes with half as many experts, paired by seed; and at equal pools."""
    found = {}
    for cell in cells.values():
        wider = NARROWER.get(cell.format)
        if wider is None:
            continue
        for factor in (cell.factor // 2, cell.factor):
            if other := cells.get(f"{wider}_{factor}n"):
                found[f"{cell.name}_minus_{other.name}"] = paired(cell.losses, other.losses)
    return found


def _page(cells: Mapping[str, Cell], equal: Mapping[str, Interval], choices: str) -> str:
    head = ("format", "pool", "MB, inference", "MB, training", "peak step", "held-out loss, nats")
    says = "\n".join(f"- {arm.name}: {arm.says}" for arm in FORMATS)
    pairs = [(name, str(value)) for name, value in equal.items()]
    return (
        f"# What a byte buys\n\n{table(head, [cell.row for cell in cells.values()], numbers_from=1)}\n\n{says}\n\n"
        "All are trained on the same number of tokens, of one seed on the same batches. At equal pools their weights "
        "start alike. Differences are paired by seed, with 95 % intervals of Student's t.\n\n"
        f"{table(('difference', 'nats'), pairs, numbers_from=1)}\n\n{choices}\n![loss against bytes](plot.png)\n"
    )


def _picture(cells: Mapping[str, Cell]) -> bytes:
    formats = {arm.name: [cell for cell in cells.values() if cell.format == arm.name] for arm in FORMATS}
    panels = {
        "bytes of tables, training": {
            name: [_point(cell, cell.training_bytes) for cell in some] for name, some in formats.items()
        },
        "bytes of tables, inference": {
            name: [_point(cell, cell.inference_bytes) for cell in some] for name, some in formats.items()
        },
    }
    return lines_by_size("Held-out loss against the bytes of the expert tables", panels, "nats a token")


def _point(cell: Cell, size: float) -> Measurement:
    loss = interval(cell.losses)
    return Measurement(x=size, y=loss.mean, half_width=loss.half_width)
