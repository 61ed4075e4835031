"""--scale: every length times the factor, within its bounds, and one line that says which."""

import pytest

from kernels.errors import Mistake
from stages.chain import step_of
from stages.command import RunCommand, read, read_stage
from stages.plan import Plan, plain
from stages.presets import PRESETS
from stages.scaling import scaled


def run(*words: str) -> RunCommand:
    command = read(["run", *words])
    assert isinstance(command, RunCommand)
    return command


def different(before, after, path=()):
    """{dotted path: (before, after)} of nested dicts."""
    found = {}
    for name in before:
        if isinstance(before[name], dict):
            found |= different(before[name], after[name], (*path, name))
        elif before[name] != after[name]:
            found[".".join((*path, name))] = before[name], after[name]
    return found


def test_a_tenth_of_tiny_is_a_tenth_of_its_steps_and_of_what_it_measures():
    plan = run("--scale", "0.1").plan
    chain = {step.field for step in plan.steps()}
    found = {
        name: pair
        for name, pair in different(plain(Plan()), plain(plan)).items()
        if name.partition(".")[0] in chain and not name.endswith("measure.tokens")
    }
    assert found == {
        "prepare_corpus.compressors.train_tokens": (1_536_000, 153_600),
        "prepare_corpus.compressors.tokens": (65_536, 6554),
        "train_dense.training.steps": (1500, 150),
        "train_dense.training.warmup_steps": (100, 10),
        "train_monet.training.steps": (1500, 150),
        "train_monet.training.warmup_steps": (100, 10),
        "distill_peer.training.steps": (128, 13),
        "distill_peer.training.warmup_steps": (6, 1),
        "finetune_int4.training.steps": (80, 8),
        "finetune_int4.training.warmup_steps": (10, 1),
        "distill_symbols.report_tokens": (16_384, 1638),
    }
    assert plan.train_monet.measure.tokens == plan.distill_symbols.measure.tokens == 6554


def test_beyond_1_trainings_grow_and_what_is_measured_does_not():
    plan = run("--scale", "3").plan
    assert plan.train_monet.training.steps == 4500
    assert plan.prepare_corpus.compressors.train_tokens == 4_608_000
    assert plan.train_monet.measure == Plan().train_monet.measure
    assert plan.prepare_corpus.compressors.tokens == 65_536


def test_bounds_hold_and_nothing_at_all_stays_nothing():
    least, most = scaled(Plan(), 1e-6), scaled(Plan(), 1000)
    assert least.train_monet.training.steps == 1
    assert least.train_monet.measure.tokens == 256
    assert least.distill_symbols.report_tokens == 256
    assert most.prepare_corpus.compressors.train_tokens == 10_000_000
    assert least.quantize_int4.distillation.steps == most.quantize_int4.distillation.steps == 0


def test_1_changes_no_id():
    assert run("--scale", "1").plan == Plan()
    assert run("--scale", "1").said == "--scale 1: nothing to scale here"


def test_what_is_written_out_holds_against_the_factor():
    assert run("--scale", "0.1", "--train-monet.training.steps", "700").plan.train_monet.training.steps == 700


def test_one_line_says_what_became_of_the_steps():
    said = run("--preset", "smoke", "--scale", "0.5").said
    assert said.startswith("--scale 0.5: train_tokens 307,200 -> 153,600 (prepare-corpus); tokens 16,384 -> 8,192 (")
    assert "; steps 300 -> 150 (train-dense, train-monet), 64 -> 32 (distill-peer), 40 -> 20 (finetune-int4); " in said
    assert "study" not in said  # beside the run
    assert "\n" not in said
    command = read_stage(["train-dense", "--scale", "0.1", "--preset", "tiny"])
    assert command.said == (
        "--scale 0.1: steps 1,500 -> 150 (train-dense); warmup_steps 100 -> 10 (train-dense); "
        "tokens 65,536 -> 6,554 (train-dense)"
    )
    assert command.plan.prepare_corpus.compressors.train_tokens == 153_600  # inputs are made alike
    assert command.config == command.plan.config_of(step_of("train-dense"))


@pytest.mark.parametrize("text", ["0", "-1", "x", "nan", "inf", "1001"])
def test_a_factor_that_is_none_is_told(text):
    with pytest.raises(Mistake, match=rf"--scale: got '{text}', wanted: a number above 0, at most 1000"):
        run(f"--scale={text}")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_scaled(name):
    for by in (0.01, 10):
        assert scaled(PRESETS[name](), by).steps()
