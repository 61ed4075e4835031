"""compare-superposition: what it says of which link, what it warns of, and which reports it takes."""

from dataclasses import replace

import pytest

from artifacts import ArtifactId, Circumstance, Recipe, Store
from artifacts.meanings import meaning
from pipeline.report import Report, ReportSpec
from pipeline.stage import Measured
from stages.chain import step_of
from stages.compare_superposition import LINKS, CompareSuperpositionConfig, compare_superposition
from stages.inputs import inputs_of
from tests.pictures import assert_picture

CONFIG = CompareSuperpositionConfig(dots_per_inch=50)


def _measured(number: int, role: str, **metrics: float) -> Measured:
    found = {"jcs": number / 10, "jcs_low": number / 10 - 0.01, "jcs_high": number / 10 + 0.01}
    found |= {"co_active_experts_per_token": 25.0, "superposition_tokens": 4096.0, "jcs_shuffled_labels": 0.0}
    if role in ("int8", "int4", "tuned", "symbols"):
        found |= {"contribution_correlation": 1 - number / 100, "contributions_survive": 1 - number / 50}
    return Measured(
        id=f"{role}-superposition", kind="report", stage="measure-superposition", config={},
        inputs={"model": ArtifactId(f"{role}-model"), "peer": ArtifactId("peer-model")}, spec={"rows": []},
        metrics={**found, **metrics}, seconds=1.0,
    )  # fmt: skip


CHAIN = Measured(
    id="chain-id", kind="report", stage="report", config={},
    inputs={role: ArtifactId(f"{role}-model") for role in LINKS},
    spec={"rows": [
        {"name": LINKS[role], "id": f"{role}-model", "metrics": {"held_out_bits_per_byte": 2 + n / 8}}
        for n, role in enumerate(LINKS)
    ]},
    metrics={}, seconds=1.0,
)  # fmt: skip
INPUTS = {"chain": CHAIN, **{role: _measured(number, role) for number, role in enumerate(LINKS)}}


def _page(inputs) -> str:
    return compare_superposition.fn(CONFIG, **inputs).value.files["report.md"].decode()


def test_every_link_has_its_figures_and_they_have_words():
    output = compare_superposition.fn(CONFIG, **INPUTS)
    assert [row.id for row in output.value.spec.rows] == [f"{role}-superposition" for role in LINKS]
    assert output.metrics["tuned_jcs"] == 0.5
    assert output.metrics["tuned_jcs_low"] == pytest.approx(0.49)
    assert output.metrics["symbols_contributions_survive"] == pytest.approx(0.88)
    assert "dense_contribution_correlation" not in output.metrics
    assert all(meaning(name, "report") for name in output.metrics)
    assert_picture(output.value.files["plot.png"])


def test_the_page_is_a_table_of_the_links_in_order_with_their_bits():
    rows = [line.split("|")[1:-1] for line in _page(INPUTS).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in cells[2:9]] == list(LINKS.values())
    assert cells[3][1:4] == ["2.1250", "25.0", "0.100 (0.090 to 0.110)"]
    drift = [row for row in cells if row[0] == "int4 fine-tuned"][1]
    assert drift[1:] == ["0.950", "", "0.900"]


def test_links_that_are_not_alike_are_told():
    assert "Not alike" not in _page(INPUTS)
    fewer = INPUTS | {"monet": _measured(1, "monet", co_active_experts_per_token=12.0)}
    assert "**Not alike: co-active experts of dense 25, Monet 12" in _page(fewer)
    other = INPUTS | {"int8": _measured(3, "int8", superposition_tokens=512.0)}
    assert "**Not alike: examined tokens of dense 4,096" in _page(other)


@pytest.mark.parametrize(
    ("role", "change", "words"),
    [
        ("peer", {"stage": "report"}, "given as peer, was made by report; name a report of measure-superposition"),
        ("tuned", {"inputs": {"model": "int4-model"}}, "is of int4-model, and the chain of chain-id has tuned-model"),
        ("chain", {"stage": "study-precision"}, "given as chain, was made by study-precision; name the report"),
    ],
)
def test_a_report_of_something_else_is_refused(role, change, words):
    with pytest.raises(ValueError, match=words):
        _page(INPUTS | {role: replace(INPUTS[role], **change)})


def test_reports_are_found_by_the_models_of_the_chain_and_made_where_there_are_none(tmp_path):
    store, made = Store(tmp_path / "store"), []

    def put(stage, inputs, kind="report"):
        return store.publish(
            recipe=Recipe(stage=stage, stage_version=1, config={}, seed=0, inputs=inputs), kind=kind,
            spec=ReportSpec(rows=()).model_dump(mode="json"), tensors={}, metrics={},
            files=Report(ReportSpec(rows=()), {}).to_files(), circumstance=Circumstance.now(device="cpu", seconds=0.1),
        )  # fmt: skip

    corpus = put("prepare-corpus", {}, "corpus")
    dense = put("train-dense", {"corpus": corpus}, "dense")
    monet = put("train-monet", {"corpus": corpus}, "monet")
    peer = put("distill-peer", {"corpus": corpus, "monet": monet}, "peer")
    int8 = put("quantize-int8", {"corpus": corpus, "peer": peer}, "peer-int8")
    int4 = put("quantize-int4", {"corpus": corpus, "peer": peer}, "peer-int4")
    tuned = put("finetune-int4", {"corpus": corpus, "int4": int4, "peer": peer}, "peer-int4")
    symbols = put("distill-symbols", {"corpus": corpus, "int4": tuned}, "symbols")
    models = dict(zip(LINKS, (dense, monet, peer, int8, int4, tuned, symbols), strict=True))
    chain = put("report", {"corpus": corpus, **models})

    def make(step, inputs):
        made.append((step.name, inputs["model"]))
        return put(step.name, inputs, "record" if step.name == "record-activations" else "report")

    found = inputs_of(step_of("compare-superposition"), {}, store, make)
    assert found["chain"] == chain
    for role, model in models.items():
        lineage = store.manifest(found[role]).lineage
        assert (lineage.stage, lineage.inputs["model"].id) == ("measure-superposition", model)
        assert lineage.inputs["peer"].id == peer
        record, beside = (store.manifest(lineage.inputs[name].id).lineage for name in ("record", "beside"))
        assert (record.inputs["model"].id, beside.inputs["model"].id) == (model, peer)
    # Each model is recorded once, and measured once.
    assert sorted(made) == sorted(
        (stage, model) for stage in ("measure-superposition", "record-activations") for model in models.values()
    )
    assert inputs_of(step_of("compare-superposition"), {}, store, make) == found
    assert len(made) == 14
