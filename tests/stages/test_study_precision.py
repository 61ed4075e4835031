"""study-precision: four formats over pools that double, half the bytes from one to the next, the same report twice."""

import itertools
import math
import re

import pytest

from artifacts.meanings import meaning
from pipeline.capacity.storage import INFERENCE, neuron_bytes
from pipeline.measuring.held_out import MeasureConfig
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.transformer import TransformerShape, TransformerSpec
from pipeline.run import Run, running
from pipeline.studies.intervals import paired
from pipeline.studies.variants import ArmConfig
from stages import study_precision as study
from stages.study_precision import StudyPrecisionConfig, study_precision
from tests.pictures import assert_picture

FORMATS = ("fp32", "bf16", "int8", "int4")
PRECISION = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8", "int4": "int4"}
RATES = (1e-3, 2e-2)
TUNING_SEEDS = (6, 7)
SEED, WIDTH, LAYERS, EXPERTS = 4, 12, 2, 40

SHAPE = TransformerShape(d_model=WIDTH, num_layers=LAYERS, num_heads=3, num_kv_heads=1)
PEER = PeerSpec(num_keys=5, num_experts=EXPERTS, num_heads=2, d_key=6, pairs_per_head=3, active_keys=2)


@pytest.fixture(scope="module")
def config(training):
    arm = ArmConfig(
        transformer=SHAPE, peer=PEER, training=training(4, warmup_steps=1), measure=MeasureConfig(tokens=300)
    )
    return StudyPrecisionConfig(arm=arm, doublings=1, table_rates=RATES, num_seeds=2, num_tuning_seeds=2)


@pytest.fixture(scope="module")
def output(run_in, config, corpus):
    """As it runs, in another process; in one, since each takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 1)
        return run_in(study_precision, config, seed=SEED, corpus=corpus)


def in_this_process(trials, what):
    """What `run_trials` does in others."""
    numbers = []
    for trial in trials:
        with running(Run(seed=trial.seed)):
            numbers.append(dict(trial.compute(*trial.arguments)))
    return numbers


@pytest.fixture(scope="module")
def again(run_in, config, corpus):
    """The same once more, elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "run_trials", in_this_process)
        return run_in(study_precision, config, seed=SEED, corpus=corpus)


@pytest.fixture
def planned(run_in, config, corpus, monkeypatch):
    """planned(loss, validation, **changes): a study whose trials only have these losses, and those trials by what."""

    def planned(loss, validation=lambda trial: 3.0, **changes):
        told = {}

        def plan(trials, what):
            told[what] = trials
            return [
                {"held_out_loss_nats": loss(trial), "validation_loss_nats": validation(trial), "seconds": 1.0}
                for trial in trials
            ]

        monkeypatch.setattr(study, "run_trials", plan)
        return run_in(study_precision, config.model_copy(update=changes), seed=SEED, corpus=corpus), told

    return planned


def losses(output, cell):
    """Of one format and pool, seed by seed."""
    rows = {row.name: row.metrics["held_out_loss_nats"] for row in output.value.spec.rows}
    return [rows[f"{cell}, seed {seed}"] for seed in (SEED, SEED + 1)]


def table(output):
    """(format, pool) to (MB for inference, MB for training, peak step, loss), as the page shows them."""
    page = output.value.files["report.md"].decode()
    found = re.findall(r"^\| (\w+) \| (\d+)N \| ([\d.]+) \| ([\d.]+) \| ([\d.e-]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    return {(name, int(factor)): tuple(map(float, numbers)) for name, factor, *numbers in found}


def test_every_loss_rate_and_difference_is_there_and_finite(output):
    cells = [f"{name}_{factor}n" for factor in (1, 2) for name in FORMATS]
    wanted = {f"loss_{cell}_nats" for cell in cells} | {f"table_rate_{cell}" for cell in cells}
    wanted |= {"rates_at_an_end", "num_seeds", "num_tuning_seeds"}
    differences = [
        "bf16_1n_minus_fp32_1n", "int8_1n_minus_bf16_1n", "int4_1n_minus_int8_1n",
        "bf16_2n_minus_fp32_2n", "int8_2n_minus_bf16_2n", "int4_2n_minus_int8_2n",
        "bf16_2n_minus_fp32_1n", "int8_2n_minus_bf16_1n", "int4_2n_minus_int8_1n",
    ]  # fmt: skip
    wanted |= {f"{name}{half}_nats" for name in differences for half in ("", "_half_width")}
    assert set(output.metrics) == wanted
    assert all(math.isfinite(value) for value in output.metrics.values())
    assert all(meaning(name, "report") for name in output.metrics)
    assert (output.metrics["num_seeds"], output.metrics["num_tuning_seeds"]) == (2, 2)
    assert output.metrics["rates_at_an_end"] == len(cells)  # two rates were tried, and each is an end
    for name in differences:
        ours, theirs = name.split("_minus_")
        found = paired(losses(output, ours), losses(output, theirs))
        assert output.metrics[f"{name}_nats"] == pytest.approx(found.mean)
        assert output.metrics[f"{name}_half_width_nats"] == pytest.approx(found.half_width)
    for cell in cells:
        assert output.metrics[f"loss_{cell}_nats"] == pytest.approx(sum(losses(output, cell)) / 2)


def test_every_trial_has_a_row_of_its_pool(output):
    rows = output.value.spec.rows
    assert len(rows) == 8 * len(RATES) * len(TUNING_SEEDS) + 8 * 2
    for row in rows:
        cell, factor = re.match(r"(\w+_(\d)n)\b", row.name).groups()
        assert row.metrics["num_experts"] == int(factor) * EXPERTS
        assert all(math.isfinite(value) for value in row.metrics.values())
        if row.kind == "trial":
            assert row.name in (f"{cell}, seed {SEED}", f"{cell}, seed {SEED + 1}")
            assert row.metrics["table_rate"] == output.metrics[f"table_rate_{cell}"]
        else:
            assert row.kind == "tuning trial"
            rate = row.metrics["table_rate"]
            assert row.name in [f"{cell} rate {rate}, seed {seed}" for seed in TUNING_SEEDS]


def test_every_cell_is_at_its_rate_of_least_validation_loss_over_the_seeds_of_tuning(output):
    """Counted again from the rows."""
    tried = {row.name: row.metrics["validation_loss_nats"] for row in output.value.spec.rows}
    for cell in (f"{name}_{factor}n" for factor in (1, 2) for name in FORMATS):
        sums = {rate: sum(tried[f"{cell} rate {rate}, seed {seed}"] for seed in TUNING_SEEDS) for rate in RATES}
        assert output.metrics[f"table_rate_{cell}"] == min(sums, key=sums.__getitem__)


def test_each_format_chooses_at_each_pool_by_validation_and_by_seeds_that_are_not_reported(planned):
    """Validation is best at the first rate for fp32 and int4 at N and for bf16 and int8 at 2N; held-out always at
    the second."""

    def validation(trial):
        arm, pool, _, rate = trial.arguments
        small = pool.peer.num_experts == EXPERTS
        return 3.0 + (rate if (arm.name in ("fp32", "int4")) == small else -rate)

    output, told = planned(lambda trial: 3.0 - trial.arguments[3], validation)
    chosen = {
        "fp32_1n": RATES[0], "bf16_1n": RATES[1], "int8_1n": RATES[1], "int4_1n": RATES[0],
        "fp32_2n": RATES[1], "bf16_2n": RATES[0], "int8_2n": RATES[0], "int4_2n": RATES[1],
    }  # fmt: skip
    assert {cell: output.metrics[f"table_rate_{cell}"] for cell in chosen} == chosen
    tuning, trained = told["choose rates"], told["train the pools"]
    assert {(trial.name, trial.arguments[3]) for trial in trained} == set(chosen.items())
    assert {trial.seed for trial in trained} == {SEED, SEED + 1}
    tried = sorted((t.arguments[0].name, t.arguments[1].peer.num_experts, t.arguments[3], t.seed) for t in tuning)
    assert tried == sorted(itertools.product(FORMATS, (EXPERTS, 2 * EXPERTS), RATES, TUNING_SEEDS))
    assert output.metrics["loss_int8_1n_nats"] == pytest.approx(3.0 - RATES[1])


def test_a_rate_at_an_end_of_those_tried_is_counted_and_told(planned):
    """Of three rates the middle one is best but for int8 at 2N, whose best is the largest."""

    def validation(trial):
        arm, pool, _, rate = trial.arguments
        best = 0.02 if (arm.name, pool.peer.num_experts) == ("int8", 2 * EXPERTS) else 0.01
        return abs(rate - best)

    output, _ = planned(lambda trial: 3.0, validation, table_rates=(1e-3, 0.01, 0.02))
    assert output.metrics["rates_at_an_end"] == 1
    page = output.value.files["report.md"].decode()
    assert "was chosen by int8_2n (0.02): beyond it" in page
    assert "mean over seeds 6 to 7, which are not reported" in page


def test_every_trial_of_the_study_is_remembered_apart(planned):
    """A study that is killed finds each by its file's name: one rate's numbers must not stand for another's."""
    _, told = planned(lambda trial: 3.0)
    files = [trial.file_name for trials in told.values() for trial in trials]
    assert len(files) == 8 * len(RATES) * len(TUNING_SEEDS) + 16
    assert len(set(files)) == len(files)


def test_a_pool_of_so_many_times_the_experts_has_so_many_times_the_cells(planned):
    _, told = planned(lambda trial: 3.0, doublings=3)
    grids = {}
    for trial in told["train the pools"]:
        peer = trial.arguments[1].peer
        grids[trial.name.partition("_")[2]] = (peer.num_keys, peer.num_columns, peer.num_experts)
    assert grids == {"1n": (5, 5, 40), "2n": (5, 10, 80), "4n": (10, 10, 160), "8n": (10, 20, 320)}
    grid = {"num_keys", "aspect", "num_experts", "active_keys"}
    pools = [trial.arguments[1] for trial in told["train the pools"]]
    same = [pool.model_dump(exclude={"peer": grid}) for pool in pools]
    assert all(settings == same[0] for settings in same)


@pytest.mark.parametrize(
    "changes", [{"aspect": 2}, {"aspect": 3}, {"sub_keys": "identity", "d_key": 5}, {"sub_keys": "shared"}], ids=str
)
def test_pools_double_whatever_the_shape_of_the_smallest(planned, config, changes):
    arm = config.arm.model_copy(update={"peer": PeerSpec(**(PEER.model_dump() | changes))})
    _, told = planned(lambda trial: 3.0, arm=arm, doublings=3)
    for trial in told["train the pools"]:
        peer, factor = trial.arguments[1].peer, int(re.search(r"_(\d)n", trial.name)[1])
        assert peer.num_experts == factor * EXPERTS
        assert peer.num_cells == factor * arm.peer.num_cells


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_for_inference_are_those_that_a_model_stores(name):
    spec = PEER.model_copy(update={"precision": PRECISION[name]})
    model = LanguageModel(ModelSpec(transformer=TransformerSpec(**SHAPE.model_dump(), vocab_size=256), experts=spec))
    states = [b.moe.state_dict().values() for b in model.blocks()]
    stored = sum(tensor.numel() * tensor.element_size() for state in states for tensor in state)
    assert study._bytes(INFERENCE[FORMATS.index(name)], 1, ArmConfig(transformer=SHAPE, peer=PEER)) == stored


def test_from_format_to_format_the_bytes_of_twice_the_pool_are_the_same_but_for_scales_and_biases(planned):
    """A format of half the bits and twice the experts holds as much; beside it a bias more, and scales, an expert."""
    wide = TransformerShape(d_model=1020, num_layers=3, num_heads=3, num_kv_heads=1)
    arm = ArmConfig(transformer=wide, peer=PEER.model_copy(update={"num_experts": 20_000}))
    output, _ = planned(lambda trial: 3.0, arm=arm, doublings=3)
    shown = table(output)
    assert len(shown) == 16
    for (name, factor), (inference, training, *_) in shown.items():
        experts = 3 * 20_000 * factor  # in three blocks, whose indices of cells are of a few bytes
        assert inference == pytest.approx(experts * neuron_bytes(INFERENCE[FORMATS.index(name)], 1020) / 1e6, abs=0.006)
        assert training > inference
    for wider, narrower in itertools.pairwise(FORMATS):
        for factor in (1, 2, 4):
            before, after = shown[wider, factor][0], shown[narrower, 2 * factor][0]
            assert 1 <= after / before < 1.01  # scales and biases are 8 of 1,028 bytes at most
        for factor in (1, 2, 4, 8):
            assert shown[narrower, factor][0] / shown[wider, factor][0] == pytest.approx(0.5, abs=0.005)
    for name in FORMATS:
        for factor in (1, 2, 4):
            assert shown[name, 2 * factor][1] == pytest.approx(2 * shown[name, factor][1], abs=0.01)
    training = [shown[name, 1][1] for name in FORMATS]
    assert training[2] < training[1] < training[0]
    assert training[3] == pytest.approx(training[2], rel=0.01)  # w and a are two nibbles, as large as an int8


def test_every_format_at_every_pool_has_a_row_in_the_page(output):
    shown = table(output)
    assert list(shown) == [(name, factor) for factor in (1, 2) for name in FORMATS]
    for (name, factor), (*_, rate, loss) in shown.items():
        assert rate == output.metrics[f"table_rate_{name}_{factor}n"]
        assert loss == pytest.approx(output.metrics[f"loss_{name}_{factor}n_nats"], abs=5e-5)
    page = output.value.files["report.md"].decode()
    mean, half = (output.metrics[f"int4_2n_minus_int8_1n{part}_nats"] for part in ("", "_half_width"))
    assert f"| int4_2n_minus_int8_1n | {mean:+.4f} ± {half:.4f} |" in page
    for name in FORMATS:
        assert f"\n- {name}: " in page


def test_it_has_a_picture_of_its_own(output):
    assert output.value.to_files().keys() == {"report.md", "plot.png"}
    assert_picture(output.value.files["plot.png"])


def test_the_same_seed_gives_the_same_report_in_another_process(output, again):
    assert again.value.files == output.value.files
    assert again.metrics == output.metrics


def test_formats_of_one_seed_start_alike(output, config, corpus):
    """At a rate at which nothing moves, the losses of a pool differ by rounding, far less than between seeds."""
    crawl = config.arm.training.model_copy(update={"learning_rate": 1e-30})
    arm_config = config.arm.model_copy(update={"training": crawl})
    found = {}
    for arm in study.FORMATS:
        for seed in (0, 1):
            with running(Run(seed=seed)):
                numbers = study.train_arm(arm, arm_config, corpus, 1e-30)
            found[arm.name, seed] = numbers["held_out_loss_nats"]
    apart = abs(found["fp32", 0] - found["fp32", 1])
    shares = {name: abs(found[name, 0] - found["fp32", 0]) / apart for name in FORMATS[1:]}
    assert max(shares.values()) < 0.1
    assert shares["bf16"] < 0.01


@pytest.mark.parametrize(
    "wrong", [{"num_seeds": 1}, {"doublings": 0}, {"table_rates": ()}, {"num_tuning_seeds": 0}], ids=str
)
def test_a_study_without_anything_to_compare_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StudyPrecisionConfig(**wrong)


def test_what_the_defaults_cost_is_as_the_config_says():
    config = StudyPrecisionConfig()
    per_cell = len(config.table_rates) * config.num_tuning_seeds + config.num_seeds
    assert 4 * (config.doublings + 1) * per_cell == 144
    assert "144 trainings" in StudyPrecisionConfig.__doc__
