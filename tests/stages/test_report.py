"""The report: what it says of which model, and that the same rows give the same bytes."""

import pytest

from pipeline.report import Report
from pipeline.stage import Measured
from stages.report import ReportConfig, report
from tests.pictures import assert_picture

NAMES = {
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
    return Measured(id=f"{role}-id", kind=NAMES[role], stage=role, spec={}, metrics=metrics, seconds=float(number))


INPUTS = {role: _measured(number, role) for number, role in enumerate(NAMES)}


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
    assert output.metrics["seconds_of_all_stages"] == sum(range(7))


def test_the_page_has_a_row_a_model_with_blanks_for_what_was_not_measured(output):
    lines = output.value.files["report.md"].decode().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| ")]
    assert [row[0].strip() for row in rows[2:]] == [
        "dense", "Monet", "PEER", "PEER int8", "PEER int4", "int4 fine-tuned", "symbols"
    ]  # fmt: skip
    assert len({len(row) for row in rows}) == 1
    assert rows[2][3].strip() == ""
    assert rows[4][3].strip() == "+0.0020"


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
