"""study-int4-ablation: arms that start alike, a row and an interval each, and the same report for the same seed."""

import itertools
import math
import re

import pytest
import torch

from artifacts.meanings import meaning
from pipeline.corpus.splits import Corpus
from pipeline.measuring import loss
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.transformer import TransformerShape
from pipeline.run import Run, running
from pipeline.studies import variants as arms
from pipeline.studies.intervals import paired
from pipeline.studies.variants import ArmConfig, train_arm
from stages import study_int4_ablation as study
from stages.study_int4_ablation import (
    ACCUMULATOR,
    ADAMW,
    DIRECT,
    FROZEN,
    NEAREST,
    SAME_RULE,
    StudyInt4AblationConfig,
    study_int4_ablation,
)
from tests.pictures import assert_picture

MAIN = ("fp32_adamw", "fp32_same_rule", "int4_accumulator", "int4_nearest", "int4_direct", "frozen")
SMALL = tuple(f"{name}_small_lr" for name in ("fp32_same_rule", "int4_accumulator", "int4_nearest", "int4_direct"))
ARMS = (ADAMW, SAME_RULE, ACCUMULATOR, NEAREST, DIRECT, FROZEN)
SWEPT = MAIN[:-1]
RATES, ADAMW_RATES, SMALL_RATE = (0.01, 0.02, 0.04), (0.005, 0.03), 1e-3
SEED = 4
TUNING_SEEDS = (SEED + 2, SEED + 3)

SHAPE = TransformerShape(d_model=12, num_layers=2, num_heads=3, num_kv_heads=1)
PEER = PeerSpec(num_keys=5, num_experts=37, num_heads=2, d_key=6, pairs_per_head=3, active_keys=2)


@pytest.fixture(scope="module")
def arm_config(training):
    return ArmConfig(
        transformer=SHAPE, peer=PEER, training=training(4, warmup_steps=1), measure=MeasureConfig(tokens=300)
    )


@pytest.fixture(scope="module")
def config(arm_config):
    return StudyInt4AblationConfig(
        arm=arm_config,
        table_rates=RATES,
        adamw_table_rates=ADAMW_RATES,
        small_table_rate=SMALL_RATE,
        num_seeds=2,
        num_tuning_seeds=2,
    )


@pytest.fixture(scope="module")
def output(run_in, config, corpus):
    """As it runs, in another process; in one, since each takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 1)
        return run_in(study_int4_ablation, config, seed=SEED, corpus=corpus)


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
        return run_in(study_int4_ablation, config, seed=SEED, corpus=corpus)


def losses(output, name):
    """Of an arm, seed by seed."""
    rows = {row.name: row.metrics["held_out_loss_nats"] for row in output.value.spec.rows}
    return [rows[f"{name}, seed {seed}"] for seed in (SEED, SEED + 1)]


def test_the_loss_of_every_arm_is_there_and_finite(output):
    wanted = {f"loss_{name}_nats" for name in (*MAIN, *SMALL)}
    assert wanted >= {
        "loss_fp32_adamw_nats", "loss_fp32_same_rule_nats", "loss_int4_accumulator_nats", "loss_int4_direct_nats",
        "loss_frozen_nats", "loss_int4_accumulator_small_lr_nats", "loss_int4_nearest_small_lr_nats",
    }  # fmt: skip
    others = [name for name in (*MAIN, *SMALL) if not name.startswith("fp32_same_rule")]
    wanted |= {f"{name}_minus_same_rule{half}_nats" for name in others for half in ("", "_half_width")}
    wanted |= {f"int4_accumulator_minus_adamw{half}_nats" for half in ("", "_half_width")}
    wanted |= {f"table_rate_{name}" for name in SWEPT} | {"rates_at_an_end", "num_seeds", "num_tuning_seeds"}
    assert set(output.metrics) == wanted
    assert all(math.isfinite(value) for value in output.metrics.values())
    assert (output.metrics["num_seeds"], output.metrics["num_tuning_seeds"]) == (2, 2)
    assert all(meaning(name, "report") for name in output.metrics)


def test_means_and_paired_differences_are_those_of_the_trials(output):
    for name in (*MAIN, *SMALL):
        assert output.metrics[f"loss_{name}_nats"] == pytest.approx(sum(losses(output, name)) / 2)
        if name.startswith("fp32_same_rule"):
            continue
        baseline = losses(output, "fp32_same_rule_small_lr" if name in SMALL else "fp32_same_rule")
        first, second = (a - b for a, b in zip(losses(output, name), baseline, strict=True))
        assert output.metrics[f"{name}_minus_same_rule_nats"] == pytest.approx((first + second) / 2)
        # Of two values: 12.7062, the 0.975 quantile of one degree of freedom, times half their distance.
        half_width = output.metrics[f"{name}_minus_same_rule_half_width_nats"]
        assert half_width == pytest.approx(12.7062 * abs(first - second) / 2, rel=1e-4)
    against = paired(losses(output, "int4_accumulator"), losses(output, "fp32_adamw"))
    assert output.metrics["int4_accumulator_minus_adamw_nats"] == pytest.approx(against.mean)


def test_every_trial_has_a_row_with_what_it_measured(output):
    rows = output.value.spec.rows
    reported = [row for row in rows if row.kind == "trial"]
    assert [row.name for row in reported] == [f"{name}, seed {s}" for s in (SEED, SEED + 1) for name in (*MAIN, *SMALL)]
    assert {row.kind for row in rows} == {"trial", "tuning trial"}
    for row in rows:
        assert row.id == ""
        assert all(math.isfinite(value) for value in row.metrics.values())
        assert row.seconds == row.metrics["seconds"] > 0
        assert row.metrics["tokens_per_second"] > 0
        assert row.metrics["num_experts"] == 37
        assert row.metrics["validation_loss_nats"] > 0
    for row in reported:
        name = row.name.partition(",")[0]
        chosen = 0.0 if name == "frozen" else output.metrics.get(f"table_rate_{name}", SMALL_RATE)
        assert row.metrics["table_rate"] == chosen


def test_every_arm_is_at_its_rate_of_least_validation_loss_over_the_seeds_of_tuning(output):
    """Counted again from the rows."""
    tuning = [row for row in output.value.spec.rows if row.kind == "tuning trial"]
    assert len(tuning) == (4 * len(RATES) + len(ADAMW_RATES)) * len(TUNING_SEEDS)
    for arm in SWEPT:
        rates = ADAMW_RATES if arm == "fp32_adamw" else RATES
        sums = dict.fromkeys(rates, 0.0)
        for row in tuning:
            name, rate, seed = re.fullmatch(r"(\w+) rate ([\d.e-]+), seed (\d+)", row.name).groups()
            assert int(seed) in TUNING_SEEDS
            assert row.metrics["table_rate"] == float(rate)
            if name == arm:
                sums[float(rate)] += row.metrics["validation_loss_nats"]
        assert output.metrics[f"table_rate_{arm}"] == min(rates, key=lambda rate: sums[rate])


def test_the_page_has_a_row_an_arm_with_its_loss_and_its_interval(output):
    page = output.value.files["report.md"].decode()
    table = [line for line in page.splitlines() if re.match(r"\| \w+_|\| frozen", line)][: len((*MAIN, *SMALL))]
    assert [line.split("|")[1].strip() for line in table] == [*MAIN, *SMALL]
    for line, name in zip(table, (*MAIN, *SMALL), strict=True):
        *_, loss, difference, _ = (cell.strip() for cell in line.split("|"))
        assert loss == f"{output.metrics[f'loss_{name}_nats']:.4f}"
        mean = output.metrics.get(f"{name}_minus_same_rule_nats")
        half_width = output.metrics.get(f"{name}_minus_same_rule_half_width_nats")
        assert difference == ("" if mean is None else f"{mean:+.4f} ± {half_width:.4f}")
        if name != "frozen":
            assert f"at a rate of {output.metrics.get(f'table_rate_{name}', SMALL_RATE):g} |" in line
    assert "mean over seeds 6 to 7, which are not reported" in page
    assert "(plot.png)" in page


def test_it_has_a_picture_of_its_own(output):
    assert output.value.kind == "report"
    assert output.value.to_files().keys() == {"report.md", "plot.png"}
    assert_picture(output.value.files["plot.png"])


def test_the_same_seed_gives_the_same_report_in_another_process(output, again):
    assert again.value.files == output.value.files
    assert again.metrics == output.metrics
    for name in (*MAIN, *SMALL):
        assert losses(again, name) == losses(output, name)


def test_arms_and_seeds_differ(output):
    """That what is compared is not one and the same."""
    trained = [tuple(losses(output, name)) for name in MAIN]
    assert len(set(trained)) == len(trained)
    assert all(a != b for a, b in trained)
    assert losses(output, "int4_accumulator") != losses(output, "int4_accumulator_small_lr")


@pytest.fixture
def trained(monkeypatch, corpus):
    """trained(arm, config, rate, seed=0): the model that `train_arm` makes, and its numbers."""
    models = []
    measure = arms.measure

    def keeping(model, *others):
        models.append(model)
        return measure(model, *others)

    monkeypatch.setattr(arms, "measure", keeping)

    def trained(arm, config, rate, seed=0):
        with running(Run(seed=seed)):
            numbers = train_arm(arm, config, corpus, rate)
        return models.pop(), numbers

    return trained


def at_a_crawl(config):
    """So slow that no float32 weight moves."""
    return config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": 1e-30})})


def rows(table):
    return table.detach() if isinstance(table, torch.nn.Parameter) else table.rows(torch.arange(len(table.stored)))


def test_arms_of_one_seed_start_alike(trained, arm_config):
    """Losses differ by what int4 rounds, far less than between seeds; what is rounded alike is the same to the bit."""
    crawl = at_a_crawl(arm_config)
    models, found = {}, {}
    for arm in ARMS:
        models[arm.name], numbers = trained(arm, crawl, 1e-30)
        found[arm.name] = numbers["held_out_loss_nats"]
    other = trained(ADAMW, crawl, 1e-30, seed=1)[1]["held_out_loss_nats"]
    assert found["int4_accumulator"] == found["int4_nearest"] == found["int4_direct"]
    assert found["fp32_same_rule"] == found["frozen"]
    # fp32_adamw alone reads its tables as parameters; the arithmetic is the same.
    assert found["fp32_adamw"] == pytest.approx(found["frozen"], rel=1e-6)
    apart = abs(found["int4_direct"] - found["frozen"])
    assert 0 < apart < 0.1 * abs(other - found["frozen"])
    for first, second in itertools.pairwise(models.values()):
        for ours, theirs in zip(first.blocks(), second.blocks(), strict=True):
            assert torch.equal(ours.router.query.weight, theirs.router.query.weight)
            assert torch.equal(ours.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight)
            for a, b in ((ours.moe.u, theirs.moe.u), (ours.moe.v, theirs.moe.v)):
                # A step of int4 is 2.7 deviations over 7.5; rows differ by 9/16 of one but where it clips.
                assert (rows(a) - rows(b)).abs().median() < 2.7 * 12**-0.5 / 7.5


def test_the_validation_loss_is_that_of_the_validation_split_of_the_model_that_is_measured(trained, arm_config, corpus):
    """By the measure of held-out losses, given the other split to hold out."""
    other = Corpus(
        corpus.spec, train=corpus.train, validation=corpus.train, held_out=corpus.held_out, tokenizer=corpus.tokenizer
    )
    with running(Run(seed=0)):
        numbers = train_arm(ACCUMULATOR, arm_config, other, 0.02)
    model, same = trained(ACCUMULATOR, arm_config, 0.02)
    swapped = Corpus(
        corpus.spec, train=corpus.train, validation=corpus.held_out, held_out=corpus.train, tokenizer=corpus.tokenizer
    )
    length = arm_config.training.context_length
    wanted = loss.measure(model, HeldOut(swapped, arm_config.measure, length))["held_out_loss_nats"]
    assert numbers["validation_loss_nats"] == pytest.approx(wanted, rel=1e-6)
    assert numbers["held_out_loss_nats"] == same["held_out_loss_nats"]
    assert abs(numbers["validation_loss_nats"] - numbers["held_out_loss_nats"]) > 1e-4


@pytest.mark.parametrize("arm", ARMS, ids=[arm.name for arm in ARMS])
def test_tables_move_but_for_the_frozen_ones_and_all_else_moves_always(trained, arm_config, arm):
    start, _ = trained(arm, at_a_crawl(arm_config), 1e-30)
    end, numbers = trained(arm, arm_config, 0.02)
    assert numbers["steps_skipped"] == 0
    assert numbers["table_rate"] == 0.02
    for before, after in zip(start.blocks(), end.blocks(), strict=True):
        for table in ("u", "v"):
            moved = not torch.equal(rows(getattr(before.moe, table)), rows(getattr(after.moe, table)))
            assert moved == (arm is not FROZEN)
        assert not torch.equal(before.self_attn.q_proj.weight, after.self_attn.q_proj.weight)
        assert not torch.equal(before.router.query.weight, after.router.query.weight)
        assert isinstance(after.moe, PeerExperts) == (arm is ADAMW)


def test_under_adamw_tables_move_by_their_own_rate(trained, arm_config):
    """AdamW's first step is the rate against the gradient's sign; all else moves by less than any float32 sees."""
    crawl = at_a_crawl(arm_config)
    one = crawl.model_copy(update={"training": crawl.training.model_copy(update={"steps": 1, "warmup_steps": 0})})
    start, _ = trained(ADAMW, one, 1e-30)
    end, _ = trained(ADAMW, one, 1e-3)
    for before, after in zip(start.blocks(), end.blocks(), strict=True):
        moved = (after.moe.v - before.moe.v).abs()
        # Where a gradient is not far above AdamW's 1e-8 the step is less; and weights decay by 1e-4 of themselves.
        assert moved.max().item() == pytest.approx(1e-3, rel=0.15)
        assert moved.median() > 0.5e-3
        assert torch.equal(before.self_attn.q_proj.weight, after.self_attn.q_proj.weight)


@pytest.fixture
def planned(monkeypatch, run_in, config, corpus):
    """planned(validation, held_out): a study whose trials have these losses, its trials of tuning and the others."""

    def planned(validation, held_out=lambda arm, rate: 3.0):
        told = {}

        def plan(trials, what):
            told[what] = trials
            losses = [(trial.arguments[0].name, trial.arguments[3]) for trial in trials]
            return [
                {"validation_loss_nats": validation(*of), "held_out_loss_nats": held_out(*of), "seconds": 1.0}
                for of in losses
            ]

        monkeypatch.setattr(study, "run_trials", plan)
        return run_in(study_int4_ablation, config, seed=SEED, corpus=corpus), *told.values()

    return planned


def test_each_arm_trains_as_it_says(planned, config):
    """The plan of the trials: format, rule and rate, and the seeds counted up from the run's."""
    output, tuning, reported = planned(lambda arm, rate: rate)
    assert [trial.name for trial in reported] == 2 * [*MAIN, *SMALL]
    assert {trial.seed for trial in reported} == {SEED, SEED + 1}
    trials = [*tuning, *reported]
    assert len({trial.file_name for trial in trials}) == len(trials)
    for trial in trials:
        arm, given, _, rate = trial.arguments
        assert given == config.arm
        assert arm.format == ("float" if "adamw" in trial.name else "int4" if "int4" in trial.name else "float32")
        assert arm.accumulator == (arm.name in ("int4_accumulator", "int4_nearest"))
        assert arm.rounding == ("nearest" if "nearest" in trial.name else "stochastic")
        assert arm.frozen == (arm.name == "frozen")
    for trial in reported:
        rate = trial.arguments[3]
        if trial.name.endswith("_small_lr"):
            assert rate == SMALL_RATE
        else:
            assert rate == (0.0 if trial.name == "frozen" else output.metrics[f"table_rate_{trial.name}"])


def test_every_arm_tries_all_its_rates_by_every_seed_of_tuning_and_by_no_reported_one(planned):
    _, tuning, reported = planned(lambda arm, rate: rate)
    tried = sorted((trial.arguments[0].name, trial.arguments[3], trial.seed) for trial in tuning)
    assert tried == sorted(
        (arm, rate, seed)
        for arm in SWEPT
        for rate in (ADAMW_RATES if arm == "fp32_adamw" else RATES)
        for seed in TUNING_SEEDS
    )
    assert {trial.seed for trial in reported}.isdisjoint(TUNING_SEEDS)


def test_a_rate_is_chosen_by_validation_whatever_held_out_says(planned):
    """Validation is best at the middle rate of all, at .03 of AdamW; held-out at the least."""
    output, _, reported = planned(
        lambda arm, rate: abs(rate - (0.03 if arm == "fp32_adamw" else 0.02)), lambda arm, rate: 3 + rate
    )
    used = {trial.name: trial.arguments[3] for trial in reported}
    assert used == {
        "fp32_adamw": 0.03, "fp32_same_rule": 0.02, "int4_accumulator": 0.02, "int4_nearest": 0.02, "int4_direct": 0.02,
        "frozen": 0.0, **dict.fromkeys(SMALL, SMALL_RATE),
    }  # fmt: skip
    assert {name: output.metrics[f"table_rate_{name}"] for name in SWEPT} == {name: used[name] for name in SWEPT}
    assert output.metrics["loss_int4_direct_nats"] == pytest.approx(3.02)


def test_a_rate_at_an_end_of_those_tried_is_counted_and_told(planned):
    """Of AdamW's two each is an end; int4_direct takes the least and int4_nearest the largest of three."""
    best = {"fp32_adamw": 0.005, "int4_direct": 0.01, "int4_nearest": 0.04}
    output, _, _ = planned(lambda arm, rate: abs(rate - best.get(arm, 0.02)))
    assert output.metrics["rates_at_an_end"] == 3
    page = output.value.files["report.md"].decode()
    assert "was chosen by fp32_adamw (0.005), int4_nearest (0.04), int4_direct (0.01): beyond it" in page


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="num_seeds"):
        StudyInt4AblationConfig(num_seeds=1)


def test_the_small_rate_of_the_defaults_is_under_half_a_sub_step_of_where_tables_start():
    """Of gradients of the row norm; 2.7 deviations stand at 7.5 steps of 16 sub-steps each. All rates tried but the
    small one itself are above."""
    config = StudyInt4AblationConfig()
    sub_step = 2.7 * config.arm.transformer.d_model**-0.5 / 7.5 / 16
    assert config.small_table_rate < sub_step / 2
    assert all(rate > sub_step / 2 for rate in config.table_rates if rate != config.small_table_rate)


@pytest.mark.parametrize("field", ["table_rates", "adamw_table_rates"])
@pytest.mark.parametrize("rates", [(), (0.01, 0.01), (0.01, 0.0)], ids=str)
def test_rates_that_cannot_be_compared_are_refused(field, rates):
    with pytest.raises(ValueError, match=field):
        StudyInt4AblationConfig(**{field: rates})
