"""measure-superposition: a whole report of a tiny model, its words, its files, and what it refuses in a sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from artifacts import ArtifactError, Circumstance, Recipe, Store
from artifacts.meanings import meaning
from pipeline.examining.second_difference import SecondDifferenceConfig
from pipeline.examining.superposition import CLASS, DOMAIN, SHUFFLED
from pipeline.records.record import ActivationRecord
from pipeline.records.recording import Recording, record_activations
from pipeline.report import Report, ReportSpec, Row
from pipeline.stage import Measured, run_stage
from stages.chain import step_of
from stages.inputs import inputs_of
from stages.measure_superposition import MeasureSuperpositionConfig, _picture, measure_superposition
from stages.plan import Plan
from tests.pictures import assert_picture
from tests.tiny import DENSE, INT4, JUMP, tiny_corpus, tiny_model

CONFIG = MeasureSuperpositionConfig(
    surveyed_pairs=15,
    drawn_pairs=15,
    random_pairs=20,
    listed_pairs=3,
    ablated_experts=10,
    ablated_windows=2,
    interacting_pairs=4,
    interactions=SecondDifferenceConfig(tokens=10, partners=0, random_tokens=20),
)
RECORDING = Recording(split="held_out", tokens=300, context_length=10, batch_size=8, most=6, contributions="float32")
PEER = Measured(id="peer-id", kind="peer", stage="", config={}, inputs={}, spec={}, metrics={}, seconds=0.0)


def inputs(experts, other=None):
    corpus, model = tiny_corpus(), tiny_model(experts, vocab_size=256)
    record = record_activations(model, corpus, RECORDING)
    beside = record_activations(tiny_model(other or experts, vocab_size=256, seed=1), corpus, RECORDING)
    return {"corpus": corpus, "model": model, "record": record, "peer": PEER, "beside": beside}


@pytest.fixture(scope="module")
def output(run_in):
    return run_in(measure_superposition, CONFIG, **inputs(INT4, JUMP))


def test_of_one_seed_it_is_the_same(run_in):
    less = {"untrained": False, "ablated_experts": 3, "interacting_pairs": 1, "surveyed_pairs": 3, "random_pairs": 3}
    config = CONFIG.model_copy(update={**less, "drawn_pairs": 10})
    first, again, other = (run_in(measure_superposition, config, seed, **inputs(JUMP)) for seed in (1, 1, 2))
    assert first.metrics == again.metrics != other.metrics
    assert first.value.files == again.value.files


def test_every_figure_has_words_and_those_of_blocks_are_behind_it(output):
    found = output.metrics
    assert all(meaning(name, "report") for name in found)
    rows = output.value.spec.rows
    assert [row.name for row in rows] == ["block 0", "block 1", "block 2"]
    for name in ("jcs", "jcs_shuffled_labels", "jcs_untrained", "contribution_correlation", "pairs_significant"):
        assert found[name] == pytest.approx(np.mean([row.metrics[name] for row in rows]))
    assert found["superposition_tokens"] == 300
    assert found["jcs_low"] <= found["jcs"] <= found["jcs_high"]
    assert {f"jcs_{name}" for name in (SHUFFLED, CLASS, DOMAIN)} <= found.keys()
    assert {f"jcs_untrained_{name}" for name in (SHUFFLED, CLASS, DOMAIN)} <= found.keys()


def test_the_page_has_every_headline_beside_its_null(output):
    page = output.value.files["report.md"].decode()
    line = next(line for line in page.splitlines() if line.startswith("| JCS, next token |"))
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert all(cells)
    assert cells[0].startswith(f"{output.metrics['jcs']:.3f} (")
    assert cells[2].startswith(f"{output.metrics['jcs_untrained']:.3f} (")
    line = next(line for line in page.splitlines() if line.startswith("| could not be tested |"))
    shares = [output.metrics[name] for name in ("jcs_not_testable", "jcs_untrained_not_testable")]
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert [cells[at].split(" (")[0] for at in (0, 2)] == [f"{share:.3f}" for share in shares]
    fires = [f"{output.metrics[f'co_active_experts_per_token{end}']:.3f}" for end in ("", "_untrained")]
    assert f"| co-active experts a token, of those recorded | {fires[0]} |  | {fires[1]} |" in page
    assert_picture(output.value.files["plot.png"])


def test_a_page_without_partners_says_that_no_block_could_show_a_hidden_function(output):
    page = output.value.files["report.md"].decode()
    few = "not testable: n = 0 of 100 matched partners"
    assert f"in 0 of 3 blocks**: block 0 is {few}; block 1 is {few}; block 2 is {few}. " in page
    assert "hidden_pairs_share" not in output.metrics


def test_examples_are_the_tokens_on_which_each_alone_and_both_fire(output):
    given = inputs(INT4, JUMP)
    examples = json.loads(output.value.files["pairs.json"])
    expert_TK, token_T = given["record"].of_block(1, "expert"), given["record"].tensors["token"]
    assert examples["block 1"]
    for pair in examples["block 1"]:
        one_T, other_T = ((expert_TK == pair[side]).any(1) for side in "ij")
        assert pair["count"] == pair["both"]["tokens"] == int((one_T & other_T).sum())
        assert pair["i_alone"]["tokens"] == int((one_T & ~other_T).sum())
        text, share = pair["both"]["on"][0]
        both = token_T[one_T & other_T].tolist()
        assert share == pytest.approx(both.count(ord(text)) / len(both), abs=1e-3)


def test_a_block_without_a_figure_leaves_a_gap_in_the_picture(monkeypatch):
    drawn = {}
    monkeypatch.setattr("stages.measure_superposition.shares_by_block", lambda *given: drawn.update(given[2]) or b"")
    rows = [
        Row(name="block 0", id="", kind="block", seconds=0.0, metrics={"jcs": 0.25, "jcs_low": 0.2, "jcs_high": 0.3}),
        Row(name="block 1", id="", kind="block", seconds=0.0, metrics={}),
    ]
    _picture(tiny_model(JUMP), rows)
    assert drawn.keys() == {"next token"}
    np.testing.assert_array_equal(drawn["next token"], [(0.25, 0.2, 0.3), (np.nan, np.nan, np.nan)])


def test_other_units_are_cut_to_as_many_as_the_peers_and_do_not_drift(run_in):
    given = inputs(DENSE, JUMP)
    found = run_in(measure_superposition, CONFIG.model_copy(update={"untrained": False}), **given)
    kept = sum(int((given["beside"].of_block(block, "expert") >= 0).sum()) for block in range(3)) / 900
    assert found.metrics["listed_experts_per_token"] == max(2, round(kept))
    assert found.metrics["co_active_experts_per_token"] <= max(2, round(kept))
    assert not [name for name in found.metrics if name.startswith(("contribution", "jcs_untrained"))]
    assert "as many as fire in peer-id" in found.value.files["report.md"].decode()


def test_what_cannot_be_tested_has_no_figure(run_in):
    """Of 20 tokens no pair has ten in every state, and no two experts of a pair 10 of a rank."""
    corpus, model = tiny_corpus(), tiny_model(JUMP, vocab_size=256)
    few = Recording(split="held_out", tokens=20, context_length=10, batch_size=8, most=6, contributions="float32")
    record = record_activations(model, corpus, few)
    given = {"corpus": corpus, "model": model, "record": record, "peer": PEER, "beside": record}
    found = run_in(measure_superposition, CONFIG, **given)
    assert found.metrics["jcs_not_testable"] == 1
    pairs = [pair for of in json.loads(found.value.files["pairs.json"]).values() for pair in of]
    assert all(pair["joint_code_bits"] is None for pair in pairs)
    assert all(pair["not_testable"].startswith("not testable: n = ") for pair in pairs)


def test_a_record_of_another_model_tokenizer_or_text_is_refused(run_in):
    given = inputs(JUMP)
    with pytest.raises(ValueError, match="the record is of another model"):
        run_in(measure_superposition, CONFIG, **given | {"record": given["beside"]})
    spec = given["record"].spec.model_copy(update={"tokenizer_sha256": "0" * 64})
    foreign = ActivationRecord(spec, given["record"].tensors)
    with pytest.raises(ValueError, match="the record is of another tokenizer"):
        run_in(measure_superposition, CONFIG, **given | {"record": foreign})
    beside = record_activations(given["model"], given["corpus"], replace(RECORDING, context_length=9))
    with pytest.raises(ValueError, match=r"in windows of 10, the other of .* in windows of 9"):
        run_in(measure_superposition, CONFIG, **given | {"beside": beside})


def test_contributions_that_are_no_numbers_are_refused_by_block(run_in):
    given = inputs(JUMP)
    tensors = {name: of.clone() for name, of in given["record"].tensors.items()}
    at = torch.nonzero(tensors["layers.1.expert"] >= 0)[0]
    tensors["layers.1.contribution"][at[0], at[1]] = torch.nan
    broken = ActivationRecord(given["record"].spec, tensors)
    with pytest.raises(ValueError, match="in block 1 of the record, 'contribution' holds nan"):
        run_in(measure_superposition, CONFIG, **given | {"record": broken})


def test_a_domain_without_text_is_refused(run_in):
    given = inputs(JUMP)
    gap = {**given["record"].tensors, "domain": given["record"].tensors["domain"] + 1}
    with pytest.raises(ValueError, match="domain 0 is without text"):
        run_in(measure_superposition, CONFIG, **given | {"record": ActivationRecord(given["record"].spec, gap)})


@pytest.mark.parametrize("wrong", [{"surveyed_pairs": 0}, {"drawn_pairs": 9}, {"ablated_windows": 0}], ids=str)
def test_a_config_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MeasureSuperpositionConfig(**wrong)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def put(store, value, inputs=None, stage="made"):
    """As if this stage had made it from these."""
    return store.publish(
        recipe=Recipe(stage=stage, stage_version=1, config={}, seed=0, inputs=dict(inputs or {})),
        kind=value.kind,
        spec=value.spec.model_dump(mode="json"),
        tensors=value.to_tensors(),
        metrics={},
        files=value.to_files(),
        circumstance=Circumstance.now(device="cpu", seconds=0.1),
    )


def test_what_belongs_to_a_record_is_found_and_what_is_missing_is_made_for_its_model(store):
    given = inputs(DENSE, JUMP)
    corpus = put(store, given["corpus"], stage="prepare-corpus")
    dense = put(store, given["model"], {"corpus": corpus}, "train-dense")
    peer = put(store, tiny_model(JUMP, vocab_size=256, seed=1), {"corpus": corpus}, "distill-peer")
    tuned = put(store, tiny_model(INT4, vocab_size=256), {"corpus": corpus}, "finetune-int4")
    record = put(store, given["record"], {"corpus": corpus, "model": dense}, "record-activations")
    made = []

    def make(step, its):
        made.append((step.name, its["model"]))
        return put(store, given["beside"], its, "record-activations")

    step = step_of("measure-superposition")
    found = inputs_of(step, {"record": record}, store, make)
    assert made == [("record-activations", peer)]
    beside = found["beside"]
    assert found == {"corpus": corpus, "model": dense, "record": record, "peer": peer, "beside": beside}
    # Of the latest model there is no record yet; the PEER's is there by now.
    again = inputs_of(step, {}, store, make)
    assert made[1:] == [("record-activations", tuned)]
    assert (again["model"], again["beside"]) == (tuned, beside)
    assert inputs_of(step, {"model": dense}, store, make) == found
    assert len(made) == 2


def test_a_run_does_not_take_it_in_but_says_how_to_run_it():
    names = [*Plan().chain, "record-activations", "measure-superposition"]
    with pytest.raises(ValueError, match="run it by itself, after the run: python -m stages measure-superposition"):
        Plan(chain=tuple(names))


def test_a_report_that_is_named_as_a_record_is_refused_by_its_kind(store):
    given = inputs(JUMP)
    ids = {role: put(store, given[role], stage=role) for role in ("corpus", "model", "record")}
    wrong = put(store, Report(ReportSpec(rows=()), {}), stage="report")
    with pytest.raises(ArtifactError, match="is a 'report'"):
        run_stage(measure_superposition, CONFIG, inputs=ids | {"peer": ids["model"], "beside": wrong}, store=store)
