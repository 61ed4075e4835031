"""weights.safetensors: the same bytes each time, and a sentence for every way to be broken."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from artifacts import ArtifactError
from artifacts.tensors_file import read_header, read_tensors, write_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def raw_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool])
def test_tensors_come_back_as_they_were(path, dtype):
    tensors = {"a": torch.arange(21).reshape(7, 3).to(dtype), "scalar": torch.tensor(1).to(dtype)}
    write_tensors(path, tensors, recipe="{}")
    back = read_tensors(path)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == dtype for name, tensor in tensors.items())


def test_the_bytes_do_not_depend_on_order_or_run(path, tmp_path):
    a, b = torch.ones(3), torch.zeros(5)
    write_tensors(path, {"a": a, "b": b}, recipe='{"x":1}')
    write_tensors(tmp_path / "again", {"b": b, "a": a}, recipe='{"x":1}')
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_the_recipe_is_the_only_metadata(path):
    write_tensors(path, {"a": torch.ones(3)}, recipe='{"x":1}')
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"recipe": '{"x":1}'}


def test_a_file_without_tensors_works(path):
    write_tensors(path, {}, recipe="{}")
    assert read_tensors(path) == {}


def test_shared_strided_empty_and_conjugated_tensors_are_written_by_value(path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "same": base,
        "transposed": base.T,
        "row": base[1],
        "expanded": base[:1].expand(5, 4),
        "none": torch.zeros(0, 4),
        "nothing": torch.zeros(0),
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    write_tensors(path, tensors, recipe="{}")
    back = read_tensors(path)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_writing_to_a_tensor_that_was_read_leaves_the_file(path):
    write_tensors(path, {"a": torch.ones(3)}, recipe="{}")
    before = path.read_bytes()
    read_tensors(path)["a"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.eye(2).to_sparse()}, "make it dense"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, "complex128; convert or pack it"),
        ({"a": torch.zeros(2, device="meta")}, "cannot hold these tensors"),
        ({"__metadata__": torch.zeros(2)}, "rename it"),
    ],
)
def test_tensors_that_the_format_cannot_hold_are_named(path, tensors, said):
    with pytest.raises(ArtifactError, match=said):
        write_tensors(path, tensors, recipe="{}")


def test_a_file_that_cannot_be_read_is_told_in_one_sentence(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot be read \(Is a directory\)$"):
        read_tensors(tmp_path)


def test_an_error_of_the_system_stays_one(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_tensors(path, {"a": torch.zeros(1000)}, recipe="{}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_tensor_named_twice_is_refused(path):
    entry = json.dumps({"dtype": "U8", "shape": [2], "data_offsets": [0, 2]})
    raw_file(path, f'{{"a":{entry},"a":{entry}}}'.encode(), b"xy")
    with pytest.raises(ArtifactError, match="the key 'a' stands in it twice"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "states a header of 0 bytes, where its 0 bytes"),
        (b"1234", "states a header of"),
        (
            (200).to_bytes(8, "little") + b"{}",
            "states a header of 200 bytes, where its 10 bytes allow at most 2",
        ),
        ((2**63).to_bytes(8, "little") + b"{}", "states a header of"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((2).to_bytes(8, "little") + b"{x", "unusable"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "unusable"),
        ((2).to_bytes(8, "little") + b"{}trailing", "is damaged"),
    ],
)
def test_a_broken_file_gets_a_sentence(path, content, said):
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=said):
        read_tensors(path)


def test_a_header_beyond_the_limit_is_not_read(path):
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(100_000_100)  # sparse: takes no room
    with pytest.raises(ArtifactError, match="allow at most 100000000"):
        read_header(path)


def test_data_beyond_the_end_is_an_artifact_error(path):
    raw_file(path, json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode(), b"short")
    with pytest.raises(ArtifactError, match="is damaged"):
        read_tensors(path)
