"""A record is read, or refused in one sentence."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts.tensors_file import write_tensors
from kernels.errors import Mistake
from pipeline.examining.__main__ import main
from pipeline.examining.record import read_record, record_of, write_record


def tensors():
    """Five tokens of two documents, three experts at most on one."""
    expert = torch.tensor([[4, 1, -1], [1, 1, 7], [-1, -1, -1], [0, 4, 7], [2, -1, 0]], dtype=torch.int32)
    return {
        "expert": expert,
        "contribution": torch.arange(15.0).reshape(5, 3).half(),
        "token": torch.tensor([3, 1, 4, 1, 5]),
        "label": torch.tensor([0, 1, -1, 1, 0]),
        "document": torch.tensor([0, 0, 0, 1, 1]),
        "stratum": torch.tensor([1, 1, 0, 0, 0]),
    }


def test_a_record_comes_back_from_its_file(tmp_path):
    write_record(tmp_path / "record.safetensors", tensors() | {"domain": torch.tensor([0, 0, 0, 1, 1])})
    record = read_record(tmp_path / "record.safetensors")
    assert record.tokens == 5
    assert record.experts == 8
    assert sorted(record.expert_TK[3]) == [0, 4, 7]
    assert record.domain_T is not None
    assert record.domain_T.tolist() == [0, 0, 0, 1, 1]


def test_an_expert_that_two_heads_reach_fires_once_with_the_sum():
    record = record_of(tensors())
    place = int(np.flatnonzero(record.expert_TK[1] == 1)[0])
    assert sorted(record.expert_TK[1]) == [-1, 1, 7]
    assert record.contribution_TK[1, place] == 3 + 4
    assert record.contribution_TK.sum() == sum([0, 1, 3, 4, 5, 9, 10, 11, 12, 14])


def test_cells_are_given_as_one_tensor_or_as_two():
    row, column = torch.arange(8) // 3, torch.arange(8) % 3
    apart = record_of(tensors() | {"cell_row": row, "cell_column": column.to(torch.int32)}).cell_E2
    together = record_of(tensors() | {"cell": torch.stack([row, column], dim=1)}).cell_E2
    assert apart is not None
    np.testing.assert_array_equal(apart, together)


def test_what_padding_holds_is_of_no_account():
    changed = tensors()
    changed["contribution"][2] = torch.nan
    assert np.isfinite(record_of(changed).contribution_TK).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expert": None}, "has no tensor 'expert'"),
        ({"stratum": None}, "has no tensor 'stratum' .which topic"),
        ({"expert": torch.tensor([[0], [1], [-2], [3], [4]])}, "out of range: -2 at token 2 is below -1"),
        ({"expert": torch.tensor([[0], [1], [2**30], [3], [4]])}, "out of range: 1073741824 at token 2 is not below"),
        ({"experts": torch.tensor(7)}, r"out of range: 7 at token 1 is not below 7, the size of the pool .2 such"),
        ({"experts": torch.tensor([1.5])}, "'experts' has the shape"),
        ({"expert": torch.zeros(5)}, "'expert' is float32, not int32"),
        ({"expert": torch.zeros(5, dtype=torch.int32)}, r"'expert' has the shape \[5\], not \[tokens, K\]"),
        ({"expert": torch.zeros((0, 3), dtype=torch.int32)}, "nothing is recorded"),
        ({"contribution": torch.zeros((5, 2))}, r"'contribution' has the shape \[5, 2\], 'expert' \[5, 3\]"),
        ({"contribution": torch.zeros((5, 3), dtype=torch.int32)}, "'contribution' is int32, not float16 or float32"),
        ({"contribution": torch.full((5, 3), torch.nan)}, "'contribution' holds nan .* at token 0, expert 4"),
        ({"contribution": torch.full((5, 3), torch.inf)}, "'contribution' holds inf .* at token 0, expert 4"),
        ({"stratum": torch.tensor([0, 0, -1, 1, -1])}, r"'stratum' is -1 at token 2, and .* 2 of 5 .*unlabelled"),
        ({"document": torch.tensor([0, 0, 0, -4, 1])}, "'document' is -4 at token 3"),
        ({"stratum": torch.tensor([0, 0, 1, 1])}, r"'stratum' has the shape \[4\], not \[5\]"),
        ({"label": torch.zeros(5)}, "'label' is float32, not an integer a token"),
        ({"domain": torch.tensor([0, 0, 2, 2, 3])}, "domain 1 is without text"),
        ({"loss_nats": torch.zeros(4)}, r"'loss_nats' has the shape \[4\], not \[5\]"),
        ({"cell": torch.zeros((8, 3), dtype=torch.int32)}, "'cell' is int32 of the shape"),
        ({"cell_row": torch.zeros(8, dtype=torch.int32)}, "has no 'cell_column' beside"),
        ({"cell_row": torch.zeros(8), "cell_column": torch.zeros(8)}, "'cell_row' is float32 of the shape"),
        ({"cell_row": torch.arange(8), "cell_column": torch.arange(7)}, "8 experts and 'cell_column' 7; make"),
        ({"cell_row": torch.arange(8), "cell_column": torch.arange(8) - 1}, "row or column is below 0"),
        ({"output_vector": torch.zeros((7, 4))}, r"'output_vector' is float32 of the shape \[7, 4\], not floats \[8,"),
        ({"input_vector": torch.full((8, 4), torch.nan)}, "'input_vector' holds numbers that are NaN"),
        ({"cell": torch.zeros((9, 2), dtype=torch.int32), "experts": torch.tensor(8)}, "make them agree"),
    ],
)
def test_a_bad_record_is_refused_in_one_sentence(change, words, tmp_path, capsys):
    changed = {name: value for name, value in (tensors() | change).items() if value is not None}
    with pytest.raises(Mistake, match=words):
        record_of(changed)
    write_tensors(tmp_path / "record.safetensors", changed, recipe="{}")
    assert main([str(tmp_path / "record.safetensors")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1


def test_a_file_that_is_none_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "record.safetensors").write_bytes(b"no record")
    assert main([str(tmp_path / "record.safetensors")]) == 2
    assert main([str(tmp_path / "absent.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_too_few_tokens_give_words_and_no_number(tmp_path, capsys):
    write_record(tmp_path / "record.safetensors", tensors())
    assert main([str(tmp_path / "record.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"]
    for pair in found["pairs"]:
        assert pair["joint_code_bits"] is None
        assert pair["not_testable"] in {f"not testable: n = {count} of 10" for count in range(4)}
        assert pair["class"] == "independent"


def test_a_record_in_which_nothing_is_co_active_has_no_share(tmp_path, capsys):
    alone = tensors() | {"expert": torch.arange(5, dtype=torch.int32)[:, None], "contribution": torch.ones(5, 1)}
    write_record(tmp_path / "record.safetensors", alone)
    assert main([str(tmp_path / "record.safetensors")]) == 0
    assert "not testable: n = 0" in capsys.readouterr().out
    assert main([str(tmp_path / "record.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["headlines"]["jcs"]["value"] is None


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom pipeline.examining.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_stdout_is_told_and_blames_no_record(tmp_path, capsys):
    write_record(tmp_path / "record.safetensors", tensors())
    with open("/dev/full", "w") as full, redirect_stdout(full):
        assert main([str(tmp_path / "record.safetensors")]) == 2
    assert capsys.readouterr().err.startswith("cannot write to stdout: No space left on device;")
