"""The report: what it says of which model and compressor, what it warns of, and that it is always the same bytes."""

from dataclasses import replace

import pytest

from artifacts import ArtifactId
from pipeline.report import Report
from pipeline.stage import Measured
from stages.report import ReportConfig, report
from tests.pictures import assert_picture

NAMES = {
    "corpus": "corpus",
    "dense": "dense",
    "monet": "monet",
    "peer": "peer",
    "int8": "peer-int8",
    "int4": "peer-int4",
    "tuned": "peer-int4",
    "symbols": "symbols",
}


def _measured(number: int, role: str) -> Measured:
    metrics = {"held_out_bits_per_byte": 2 + number / 8, "held_out_loss_nats": 3 + number / 8}
    if number > 1:
        metrics |= {
            "loss_increase_nats": number / 1000,
            "kl_to_teacher_nats": number / 10_000,
            "expert_bytes": 600 / number,
        }
    return Measured(
        id=f"{role}-id", kind=NAMES[role], stage=role, config={"training": {"context_length": 128}},
        inputs={"corpus": ArtifactId("corpus-id")}, spec={}, metrics=metrics, seconds=float(number),
    )  # fmt: skip


CORPUS = {
    "ppmd_held_out_bits_per_byte": 1.98637,
    "ppmd_primed_held_out_bits_per_byte": 1.75,
    "ppmd16_held_out_bits_per_byte": 1.92961,
    "ppmd16_primed_held_out_bits_per_byte": 1.62036,
    "xz_held_out_bits_per_byte": 2.21262,
    "xz_primed_held_out_bits_per_byte": 1.87538,
    "held_out_tokens_compressed": 65_536.0,
    "primed_train_tokens": 1_536_000.0,
    "primed_train_bytes": 3_628_575.0,
}
COUNTS = {"train_tokens": 1_536_000.0, "num_parameters": 1_100_928.0, "held_out_tokens_measured": 65_536.0}
MODELS = [role for role in NAMES if role != "corpus"]
INPUTS = {
    "corpus": Measured(
        id="corpus-id",
        kind="corpus",
        stage="prepare-corpus",
        config={},
        inputs={},
        spec={},
        metrics=CORPUS,
        seconds=100.0,
    ),
    **{role: _measured(number, role) for number, role in enumerate(MODELS)},
}


def _with(role, **metrics) -> dict[str, Measured]:
    """The inputs, all of like counts but for these metrics of one of them."""
    counted = {name: replace(INPUTS[name], metrics={**INPUTS[name].metrics, **COUNTS}) for name in MODELS}
    inputs = INPUTS | counted
    return inputs | {role: replace(inputs[role], metrics={**inputs[role].metrics, **metrics})}


def _page(inputs) -> str:
    return report.fn(ReportConfig(dots_per_inch=50), **inputs).value.files["report.md"].decode()


def _tables(page) -> list[list[list[str]]]:
    """The cells of each table, heads included."""
    blocks = page.split("\n\n")
    rows = [[line.split("|")[1:-1] for line in block.splitlines()] for block in blocks if block.startswith("| ")]
    return [[[cell.strip() for cell in row] for row in table] for table in rows]


@pytest.fixture(scope="module")
def output():
    return report.fn(ReportConfig(dots_per_inch=50), **INPUTS)


def test_takes_the_facts_and_no_tensors_of_every_model():
    assert {name: role.kinds for name, role in report.inputs.items()} == {n: (k,) for n, k in NAMES.items()}
    assert all(role.measured for role in report.inputs.values())


def test_metrics_compare_the_end_of_the_chain_with_the_dense_baseline(output):
    assert output.metrics["dense_bits_per_byte"] == 2
    assert output.metrics["symbols_bits_per_byte"] == 2.75
    assert output.metrics["bits_per_byte_increase_over_dense"] == 0.75
    assert output.metrics["monet_bits_per_byte"] == 2.125
    assert output.metrics["dense_bits_per_byte_over_monet"] == -0.125
    assert output.metrics["monet_bits_per_byte_over_primed_ppmd"] == 0.375
    assert output.metrics["seconds_of_all_stages"] == sum(range(7))


def test_the_page_has_a_row_a_model_with_blanks_for_what_was_not_measured(output):
    rows, _ = _tables(output.value.files["report.md"].decode())
    assert [row[0] for row in rows[2:]] == [
        "dense", "Monet", "PEER", "PEER int8", "PEER int4", "int4 fine-tuned", "symbols"
    ]  # fmt: skip
    assert len({len(row) for row in rows}) == 1
    assert rows[2][3] == ""
    assert rows[4][3] == "+0.0020"


def test_the_page_has_the_train_tokens_of_every_model_that_says_them():
    rows, _ = _tables(_page(_with("dense", train_tokens=1_540_000.0)))
    column = rows[0].index("train tokens")
    assert [row[column] for row in rows[2:]] == ["1,540,000", *["1,536,000"] * 6]


def _dense_at(context: int) -> dict[str, Measured]:
    inputs = _with("dense")
    return inputs | {"dense": replace(inputs["dense"], config={"training": {"context_length": context}})}


def test_the_page_has_the_context_of_every_model_that_its_recipe_says():
    inputs = _dense_at(64)
    by_field = {"int8": replace(inputs["int8"], config={"context_length": 96, "measure": {}})}
    unsaid = {"tuned": replace(inputs["tuned"], config={})}
    rows, _ = _tables(_page(inputs | by_field | unsaid))
    column = rows[0].index("context")
    assert [row[column] for row in rows[2:]] == ["64", "128", "128", "96", "128", "", "128"]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (_with("dense", train_tokens=410_624.0), "train tokens of dense 410,624, Monet 1,536,000"),
        (_dense_at(127), "context of dense 127, Monet 128, PEER 128, PEER int8 128, PEER int4 128, int4 fine-tuned"),
    ],
)
def test_a_dense_arm_that_trained_otherwise_is_flagged_and_subtracted_from_nothing(inputs, sentence):
    made = report.fn(ReportConfig(dots_per_inch=50), **inputs)
    assert f"**Not alike: {sentence}" in made.value.files["report.md"].decode()
    assert made.metrics.keys() == {
        "dense_bits_per_byte", "seconds_of_all_stages", "monet_bits_per_byte", "symbols_bits_per_byte",
        "monet_bits_per_byte_over_primed_ppmd",
    }  # fmt: skip
    alike = report.fn(ReportConfig(dots_per_inch=50), **_with("dense"))
    assert alike.metrics.keys() - made.metrics.keys() == {
        "dense_bits_per_byte_over_monet", "bits_per_byte_increase_over_dense"
    }  # fmt: skip
    assert alike.value.files["plot.png"] != made.value.files["plot.png"]  # the level of dense says so too


@pytest.mark.parametrize("role", ["dense", "symbols"])
def test_a_model_of_another_corpus_is_refused_by_name(role):
    other = replace(INPUTS[role], inputs={"corpus": ArtifactId("other-id")})
    with pytest.raises(ValueError, match=f"{role}-id was measured on other-id and this report is of corpus-id"):
        report.fn(ReportConfig(dots_per_inch=50), **INPUTS | {role: other})


def test_compressors_stand_beside_the_models_cold_and_primed(output):
    page = output.value.files["report.md"].decode()
    _, compressors = _tables(page)
    assert compressors[2:] == [
        ["PPMd-6", "1.9864", "1.7500"], ["PPMd-16", "1.9296", "1.6204"], ["xz", "2.2126", "1.8754"]
    ]  # fmt: skip
    assert "65,536 held-out tokens" in page
    assert "1,536,000 train tokens (3,628,575 bytes)" in page
    assert "- corpus: `corpus-id`" in page


def test_a_corpus_from_before_compressors_gives_a_report_without_them():
    old = replace(INPUTS["corpus"], metrics={"xz_held_out_bits_per_byte": 2.2})
    output = report.fn(ReportConfig(dots_per_inch=50), **INPUTS | {"corpus": old})
    assert len(_tables(output.value.files["report.md"].decode())) == 1
    assert "monet_bits_per_byte_over_primed_ppmd" not in output.metrics


@pytest.mark.parametrize(
    ("role", "metrics", "sentence"),
    [
        ("dense", {"train_tokens": 768_000.0}, "train tokens of dense 768,000, Monet 1,536,000"),
        ("dense", {"num_parameters": 1_052_000.0}, "parameters of dense 1,052,000, Monet 1,100,928"),
        ("corpus", {"primed_train_tokens": 1e6}, "train tokens of Monet 1,536,000, primed compressors 1,000,000"),
        (
            "symbols",
            {"held_out_tokens_measured": 16_384.0},
            "held-out tokens of dense 65,536, Monet 65,536, PEER 65,536, PEER int8 65,536, PEER int4 65,536, "
            "int4 fine-tuned 65,536, symbols 16,384, compressors 65,536",
        ),
    ],
)
def test_a_sentence_warns_where_figures_side_by_side_are_of_unlike_things(role, metrics, sentence):
    assert f"**Not alike: {sentence}.**" in _page(_with(role, **metrics))


def test_no_sentence_warns_of_what_differs_by_less_than_a_hundredth():
    assert "Not alike" not in _page(_with("dense", num_parameters=1_100_604.0, train_tokens=1_536_000.0))


def test_the_same_rows_give_the_same_picture(output):
    again = report.fn(ReportConfig(dots_per_inch=50), **INPUTS)
    assert output.value.files == again.value.files
    assert_picture(output.value.files["plot.png"])


def test_the_page_shows_the_picture(output):
    assert output.value.files.keys() == {"report.md", "plot.png"}
    assert "](plot.png)" in output.value.files["report.md"].decode()


def test_comes_back_from_its_spec_and_files(output, tmp_path):
    for name, data in output.value.files.items():
        (tmp_path / name).write_bytes(data)
    paths = {name: tmp_path / name for name in output.value.files}
    restored = Report.restore("report", output.value.spec.model_dump(mode="json"), output.value.to_tensors(), paths)
    assert restored.spec == output.value.spec
    assert restored.files == output.value.files
