"""The manifest's layout: what was written by the first version is read by this one."""

import json
import os
import re

import pytest

from artifacts import ArtifactError, ArtifactId
from artifacts.manifest import checked_manifest, parse_manifest
from tests.foreign import reseal

ID = ArtifactId("train-monet-0c89ed52f41c")
# Written on 2026-11-22. If this no longer opens, every store there is has become unreadable: raise FORMAT and
# write a migration instead.
GOLDEN = """\
{
  "content_sha256": "c06b6db8a9dfa45ec4c2b21d601e40e653a546eb2fdb81a859aa4495e53fcfd0",
  "digest": "e63e8ca1cb9f17c9b260b4365b630f67b3095653f337a988a49c8618af1d6c21",
  "files": {
    "weights.safetensors": {
      "bytes": 8,
      "sha256": "1111111111111111111111111111111111111111111111111111111111111111"
    }
  },
  "format_version": 1,
  "id": "train-monet-0c89ed52f41c",
  "kind": "monet",
  "lineage": {
    "commit": "c0ffee",
    "config": {
      "lr": 0.001,
      "name": "Ω",
      "none": null,
      "sizes": [
        3,
        5
      ]
    },
    "created": "2026-01-31T12:00:00+00:00",
    "device": "cpu",
    "dirty": false,
    "inputs": {
      "corpus": {
        "id": "prepare-corpus-0123456789ab",
        "sha256": "0000000000000000000000000000000000000000000000000000000000000000"
      }
    },
    "python": "3.11.7",
    "seconds": 1.5,
    "seed": 7,
    "sequence": 2,
    "sources_sha256": null,
    "stage": "train-monet",
    "stage_version": 3,
    "torch": "2.13.0"
  },
  "metrics": {
    "held_out_loss_nats": 2.5
  },
  "spec": {
    "d_model": 12
  }
}
"""


def test_the_golden_manifest_still_opens_and_is_written_the_same():
    manifest = checked_manifest(GOLDEN.encode(), ID)
    assert manifest.to_json() == GOLDEN
    assert manifest.short == ID.rpartition("-")[2]


def test_the_golden_recipe_still_has_its_id():
    assert checked_manifest(GOLDEN.encode(), ID).lineage.recipe.id == ID


def test_layout_of_the_text_is_not_part_of_the_digest():
    record = json.loads(GOLDEN)
    assert checked_manifest(json.dumps(record).encode(), ID) == checked_manifest(GOLDEN.encode(), ID)


@pytest.mark.parametrize("field", ["spec", "metrics", "lineage", "files", "content_sha256", "kind"])
def test_a_field_that_is_missing_or_foreign_is_named(field):
    record = json.loads(GOLDEN)
    with pytest.raises(ArtifactError, match=f"manifest.json is no manifest: {field}"):
        checked_manifest(json.dumps({k: v for k, v in record.items() if k != field}).encode(), ID)
    with pytest.raises(ArtifactError, match=f"manifest.json is no manifest: {field}_of_mine"):
        checked_manifest(json.dumps({**record, f"{field}_of_mine": 1}).encode(), ID)


@pytest.mark.parametrize(
    "name",
    ["../../secret.txt", "/etc/hostname", "/dev/zero", "a/b", "..", ".hidden", "a..b", "", "a" * 129, "a\x1b[2J"],
)
def test_a_file_name_that_is_not_of_this_folder_is_no_manifest(name):
    record = json.loads(GOLDEN)
    record["files"][name] = record["files"]["weights.safetensors"]
    with pytest.raises(ArtifactError, match=r"manifest\.json is no manifest: files"):
        parse_manifest(json.dumps(record).encode(), ID)


def test_a_manifest_that_does_not_name_the_weights_is_refused():
    record = json.loads(GOLDEN)
    record["files"] = {}
    with pytest.raises(ArtifactError, match=r"files: .*weights\.safetensors is not among them"):
        parse_manifest(json.dumps(record).encode(), ID)


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("what", ["a pipe", "a device", "a link"])
def test_what_is_no_regular_file_is_never_read(store, publish, tmp_path, name, what):
    id = publish()
    path = store.root / id / name
    path.rename(tmp_path / "kept")
    if what == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if what == "a device" else tmp_path / "kept")
    told = f"{name} cannot be read (it is no regular file, and a store holds no others)"
    with pytest.raises(ArtifactError, match=re.escape(told)):
        store.open(id)
    assert told in [damage.what for damage in store.verify()]
    assert [damage.what for damage in store.listing().damaged] == [told] * (name == "manifest.json")


@pytest.mark.parametrize(
    ("where", "least", "most"),
    [
        (("lineage", "sequence"), 1, 2**53),
        (("lineage", "seed"), -(2**63), 2**64 - 1),
        (("lineage", "stage_version"), 0, 2**31 - 1),
        (("lineage", "seconds"), 0, 10**12),
        (("files", "weights.safetensors", "bytes"), 0, 2**63 - 1),
        (("metrics", "held_out_loss_nats"), -1e100, 1e100),
    ],
)
def test_every_number_has_its_bounds(where, least, most):
    """Sums of sizes, variances of metrics, the next of a sequence: none overflows, or is too long to print."""
    for number, is_taken in ((least, True), (most, True), (least - abs(least) - 1, False), (2 * most, False)):
        record = json.loads(GOLDEN)
        place = record
        for key in where[:-1]:
            place = place[key]
        place[where[-1]] = number
        if is_taken:
            parse_manifest(json.dumps(record).encode(), ID)
        else:
            with pytest.raises(ArtifactError, match=rf"{re.escape('.'.join(where))}: Input should be"):
                parse_manifest(json.dumps(record).encode(), ID)


def test_a_manifest_beyond_all_measure_is_neither_read_nor_written(store, publish, circumstance):
    path = store.root / publish() / "manifest.json"
    os.truncate(path, 2**42)  # a sparse file, which takes no room
    with pytest.raises(ArtifactError, match=r"manifest.json cannot be read \(it has more than 16,777,216 bytes\)"):
        store.manifest(path.parent.name)
    assert [damage.id for damage in store.listing().damaged] == [path.parent.name]
    with pytest.raises(ArtifactError, match=r"would have 1\d,\d{3},\d{3} bytes, and 16,777,216 are read at most"):
        publish("train-monet", {"text": "x" * 2**24})
    assert len(store.ids()) == 1


def test_after_a_number_that_no_store_comes_to_nothing_is_published_and_it_is_named(store, publish):
    id = publish()
    reseal(store.root / id, lambda record: record["lineage"].update(sequence=2**53))
    with pytest.raises(ArtifactError, match=f"{id} says that it was number 9,007,199,254,740,992 of its store"):
        publish("train-monet")
    reseal(store.root / id, lambda record: record["lineage"].update(sequence=2**53 - 1))
    assert store.manifest(publish("train-monet")).lineage.sequence == 2**53
