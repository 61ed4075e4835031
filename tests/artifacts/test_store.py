"""What the store promises: whole or nothing, checked on opening, in order, and never the same name twice."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from artifacts import ArtifactError, ArtifactId, InputRef, Lineage, Manifest, Store
from artifacts.manifest import FileRecord
from tests.stores import names, recipe

ROOT = Path(__file__).parents[2]


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# Publishing and opening


def test_what_was_published_is_opened(store, publish, circumstance):
    corpus = publish()
    monet = publish("train-monet", {"lr": 0.1}, kind="monet", fill=2.0, corpus=corpus)
    artifact = store.open(monet)
    assert artifact.id == monet
    assert artifact.kind == "monet"
    assert artifact.spec == {"d_model": 12}
    assert artifact.metrics == {"held_out_loss_nats": 2.5}
    assert torch.equal(artifact.tensors()["keys"], torch.full((7, 12), 2.0))
    assert {name: path.read_bytes() for name, path in artifact.files().items()} == {
        "tokenizer.json": b'{"model": "bytes"}'
    }
    parent = store.manifest(corpus)
    assert artifact.lineage.inputs == {"corpus": InputRef(id=corpus, sha256=parent.content_sha256)}
    assert artifact.lineage.commit == circumstance.commit
    assert artifact.lineage.recipe.id == monet
    assert names(store) == {corpus, monet}
    assert store.verify() == []


def test_an_artifact_is_found_by_its_recipe(store, publish):
    assert store.find(recipe(a=1)) is None
    made = publish(config={"a": 1})
    assert store.find(recipe(a=1)) == made == recipe(a=1).id
    assert store.find(recipe(a=2)) is None


def test_an_artifact_without_tensors_or_files_is_an_artifact(store, circumstance):
    id = store.publish(
        recipe=recipe("report"),
        kind="report",
        spec={},
        tensors={},
        metrics={},
        files={},
        circumstance=circumstance,
    )
    artifact = store.open(id, kind="report")
    assert artifact.tensors() == {}
    assert artifact.files() == {}


def test_a_store_that_is_not_there_is_empty_and_is_not_made_by_looking(store):
    assert store.ids() == store.manifests() == store.verify() == store.collect_garbage() == []
    assert store.latest() is None
    assert store.find(recipe()) is None
    with pytest.raises(ArtifactError, match="there is no store at"):
        store.open("train-monet-0123456789ab")
    assert not store.root.exists()


@pytest.mark.parametrize("write", ["train-monet", "train-m", "{short}", "{short:.5}", "{id}", "{id:.17}"])
def test_an_artifact_is_opened_by_any_beginning_that_only_it_has(store, publish, write):
    corpus = publish()
    monet = publish("train-monet", kind="monet", corpus=corpus)
    short = monet.rpartition("-")[2]
    assert store.open(write.format(short=short, id=monet)).id == monet


def test_a_beginning_that_two_have_names_both(store, publish):
    ids = sorted([publish(config={"a": 1}), publish(config={"a": 2})])
    with pytest.raises(ArtifactError, match=f"'prepare' may be {ids[0]}, {ids[1]}; write more"):
        store.open("prepare")


def test_latest_goes_by_kind_and_stage(store, publish):
    with pytest.raises(ArtifactError, match="does not hold an artifact yet"):
        store.open("latest")
    corpus = publish()
    monet = publish("train-monet", kind="monet", corpus=corpus)
    dense = publish("train-dense", kind="dense", corpus=corpus)
    assert store.latest() == store.open("latest").id == dense
    assert store.latest(kind="monet") == store.open("latest", kind=("monet", "corpus")).id == monet
    assert store.latest(stage="prepare-corpus") == corpus
    with pytest.raises(ArtifactError, match="does not hold a 'peer' yet"):
        store.open("latest", kind="peer")


def test_the_wrong_kind_is_told_with_its_maker(store, publish):
    id = publish("quantize-int8", kind="peer-int8")
    with pytest.raises(ArtifactError) as told:
        store.open(id, kind="peer")
    assert str(told.value) == f"{id} is a 'peer-int8', made by 'quantize-int8'; a 'peer' was needed here"
    with pytest.raises(ArtifactError, match="a 'peer' or 'peer-int4' was needed here"):
        store.open(id, kind=("peer", "peer-int4"))


def test_a_missing_id_is_told_with_what_comes_close(store, publish):
    id = publish("train-monet", kind="monet")
    publish()
    with pytest.raises(ArtifactError, match=rf"\(2 others are there\); did you mean {id}"):
        store.open("train-monet-ffffffffffff")
    with pytest.raises(ArtifactError, match="artifacts ls` lists them"):
        store.open("zz")


@pytest.mark.parametrize("id", ["", "../store", "/etc", "a/b", "..", ".state", "Train", "x\n", "*"])
def test_what_is_no_id_never_becomes_a_path(store, publish, id):
    publish()
    with pytest.raises(ArtifactError, match="is no artifact id"):
        store.open(id)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a", "a\\b", ".hidden", "a..b", "x\n", "manifest.json"])
def test_a_file_name_that_could_leave_the_folder_is_refused(store, circumstance, name):
    with pytest.raises(ArtifactError, match="name"):
        store.publish(
            recipe=recipe(),
            kind="report",
            spec={},
            tensors={},
            metrics={},
            files={name: b""},
            circumstance=circumstance,
        )
    assert names(store) == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_named(store, publish, value):
    with pytest.raises(ArtifactError, match=f"metric 'kl_to_teacher_nats' is {value}"):
        publish(metrics={"held_out_loss_nats": 2.0, "kl_to_teacher_nats": value})
    assert names(store) == set()


def test_a_spec_that_json_cannot_hold_is_refused(store, circumstance):
    with pytest.raises(ArtifactError, match=r"spec\['a'\]\[0\] is a set"):
        store.publish(
            recipe=recipe(),
            kind="report",
            spec={"a": [{1}]},
            tensors={},
            metrics={},
            files={},
            circumstance=circumstance,
        )
    assert names(store) == set()


def test_an_input_that_is_not_in_the_store_is_refused(store, publish):
    with pytest.raises(ArtifactError, match="needs prepare-corpus-0123456789ab as its 'corpus', which is not in"):
        publish("train-monet", corpus=ArtifactId("prepare-corpus-0123456789ab"))
    assert names(store) == set()


# Attempts


def test_the_same_bytes_keep_the_old_artifact(store, publish):
    first = publish()
    before = (store.root / first / "manifest.json").read_bytes()
    assert publish(metrics={"held_out_loss_nats": 3.0}) == first
    assert (store.root / first / "manifest.json").read_bytes() == before
    assert names(store) == {first}


def test_different_bytes_become_attempts_beside_it(store, publish):
    first = publish(fill=1.0)
    child = publish("train-monet", kind="monet", corpus=first)
    second, third = publish(fill=2.0), publish(fill=3.0)
    assert (second, third) == (f"{first}~2", f"{first}~3")
    assert store.find(recipe()) == third
    assert publish(fill=2.0) == second
    assert store.open(child).lineage.inputs["corpus"].id == first
    assert store.open(second).tensors()["keys"][0, 0] == 2.0
    assert publish("train-monet", kind="monet", corpus=second) != child
    assert store.verify() == []


def test_the_full_fingerprint_means_the_first_attempt(store, publish):
    first, second = publish(fill=1.0), publish(fill=2.0)
    short = first.rpartition("-")[2]
    assert store.resolve(short) == store.resolve(first) == first
    assert store.resolve(f"{short}~2") == second


def test_making_a_damaged_artifact_again_puts_its_bytes_back(store, publish):
    id = publish()
    flip(store.root / id / "weights.safetensors")
    (store.root / id / "tokenizer.json").unlink()
    assert publish() == id
    assert store.verify() == []


def test_a_file_that_became_a_folder_is_healed(store, publish):
    path = store.root / publish() / "weights.safetensors"
    path.unlink()
    path.mkdir()
    (path / "mine.txt").write_text("mine")
    assert publish() == path.parent.name
    assert store.verify() == []


def test_a_damaged_manifest_is_passed_over_and_the_artifact_made_beside_it(store, publish):
    first = publish()
    (store.root / first / "manifest.json").write_text("{}")
    assert store.find(recipe()) is None
    assert publish() == f"{first}~2"
    assert store.find(recipe()) == f"{first}~2"


# Order


def test_order_is_by_sequence_though_the_clock_goes_back(store, circumstance):
    ids = [
        store.publish(
            recipe=recipe(n=n),
            kind="corpus",
            spec={},
            tensors={},
            metrics={},
            files={},
            circumstance=circumstance.model_copy(update={"created": f"20{30 - n}-01-01T00:00:00+00:00"}),
        )
        for n in range(4)
    ]
    assert [m.id for m in store.manifests()] == ids
    assert [m.lineage.sequence for m in store.manifests()] == [1, 2, 3, 4]
    assert store.latest() == ids[-1]


def test_ancestry_is_each_ancestor_once_children_before_parents(store, publish):
    corpus = publish()
    monet = publish("train-monet", kind="monet", corpus=corpus)
    publish("train-dense", kind="dense", corpus=corpus)
    peer = publish("distill-peer", kind="peer", corpus=corpus, monet=monet)
    assert [m.id for m in store.ancestry(peer)] == [peer, monet, corpus]
    assert [m.id for m in store.ancestry(corpus)] == [corpus]


def test_children_are_what_was_made_directly_from_it(store, publish):
    corpus = publish()
    monet = publish("train-monet", kind="monet", corpus=corpus)
    peer = publish("distill-peer", kind="peer", monet=monet)
    assert [m.id for m in store.children(corpus)] == [monet]
    assert store.children(peer) == []


def test_two_thousand_artifacts_are_listed_within_half_a_second(store, circumstance):
    lineage = Lineage(
        **recipe(**{f"field_{i}": i / 7 for i in range(20)}).model_dump(exclude={"inputs"}),
        **circumstance.model_dump(),
        inputs={"corpus": InputRef(id=ArtifactId("prepare-corpus-0123456789ab"), sha256="0" * 64)},
        sequence=987654,
    )
    text = Manifest.describe(
        id=ArtifactId("prepare-corpus-fffffffffffe"),
        kind="corpus",
        spec={"d_model": 12},
        metrics={f"metric_{i}": i / 3 for i in range(10)},
        lineage=lineage,
        files={"weights.safetensors": FileRecord(sha256="0" * 64, bytes=0)},
    ).to_json()
    for n in range(2000):
        folder = store.root / f"prepare-corpus-{n:012x}"
        folder.mkdir(parents=True)
        mine = text.replace("prepare-corpus-fffffffffffe", folder.name).replace("987654", str(n + 1))
        (folder / "manifest.json").write_text(mine)

    def listed() -> float:
        start = time.process_time()  # other processes' load is not ours
        assert len(store.manifests()) == 2000
        return time.process_time() - start

    assert min(listed() for _ in range(3)) < 0.5


# Nothing half made


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("out of luck"), OSError(errno.EIO, "bad disk")])
def test_a_failure_just_before_the_rename_leaves_the_store_as_it_was(store, publish, monkeypatch, failure):
    publish()
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}

    def fail(*args: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises((KeyboardInterrupt, RuntimeError, ArtifactError)):
            publish("train-monet", kind="monet")
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == before
    publish("train-monet", kind="monet")


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(store, publish, monkeypatch, step):
    kept = publish()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(ArtifactError, match="No space left on device; nothing is half done, make room"):
            publish("train-monet", kind="monet")
    assert names(store) == {kept}
    assert store.verify() == []


def run_python(program: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT)


PUBLISHING = """
import os, signal, sys, torch
from pathlib import Path
from artifacts import Circumstance, Recipe, Store

def publish(n, fill=0.0):
    return Store(Path(sys.argv[1])).publish(
        recipe=Recipe(stage="train-monet", stage_version=1, config={"n": n}, seed=0, inputs={}),
        kind="monet", spec={}, tensors={"a": torch.full((1000,), fill)}, metrics={}, files={},
        circumstance=Circumstance.now(device="cpu", seconds=0.0),
    )
"""


def test_a_process_killed_before_the_rename_leaves_only_garbage_that_gc_removes(store, publish):
    kept = publish()
    program = PUBLISHING + "os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\npublish(0)"
    assert run_python(program, store.root).wait() == -signal.SIGKILL
    left = names(store) - {kept}
    assert len(left) == 1
    assert store.ids() == [kept]
    assert [m.id for m in store.manifests()] == [kept]
    assert store.verify() == []
    assert set(store.collect_garbage()) == left
    assert names(store) == {kept}


def test_two_processes_may_publish_at_once(store):
    # The same recipes from both: equal bytes for even n, different bytes for odd n.
    program = PUBLISHING + "for n in range(8): publish(n, float(sys.argv[2]) if n % 2 else 0.0)"
    writers = [run_python(program, store.root, fill) for fill in (1, 2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    manifests = store.manifests()
    assert len(manifests) == 8 + 4
    assert [m.lineage.sequence for m in manifests] == list(range(1, 13))
    assert sum(m.id.endswith("~2") for m in manifests) == 4
    assert store.verify() == []
    assert names(store) == {m.id for m in manifests}


# Damage


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights.safetensors", "weights.safetensors is damaged, its sha256 is"),
        ("tokenizer.json", "tokenizer.json is damaged, its sha256 is"),
    ],
)
def test_a_flipped_bit_in_a_file_is_told(store, publish, name, said):
    id = publish()
    flip(store.root / id / name)
    with pytest.raises(ArtifactError, match=f"^{id}: {said}"):
        store.open(id)
    (damage,) = store.verify()
    assert damage.id == id
    assert damage.what.startswith(said)


def test_a_changed_manifest_is_told(store, publish):
    id = publish()
    path = store.root / id / "manifest.json"
    path.write_text(path.read_text().replace('"held_out_loss_nats": 2.5', '"held_out_loss_nats": 1.5'))
    with pytest.raises(ArtifactError, match=f"^{id}: manifest.json is damaged, its contents do not give the digest"):
        store.open(id)
    assert [damage.id for damage in store.verify()] == [id]


def read_or_refused(store: Store, id: ArtifactId) -> Manifest | None:
    try:
        return store.manifest(id)
    except ArtifactError:
        return None


def test_a_flipped_bit_anywhere_in_a_manifest_is_refused_unless_it_changes_nothing(store, publish):
    path = store.root / publish() / "manifest.json"
    original, manifest = path.read_bytes(), store.manifest("latest")
    for at in range(0, len(original), 5):
        flip(path, at)
        assert read_or_refused(store, manifest.id) in (None, manifest)  # white space may turn into other
        path.write_bytes(original)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format_version": 1}'])
def test_what_is_no_manifest_is_told_everywhere_and_stops_nothing(store, publish, content):
    broken, kept = publish(), publish("train-monet", kind="monet")
    (store.root / broken / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=f"^{broken}: manifest.json"):
        store.open(broken)
    listing = store.listing()
    assert [m.id for m in listing.manifests] == [kept]
    assert [damage.id for damage in listing.damaged] == [broken]
    assert [damage.id for damage in store.verify()] == [broken]


def test_a_manifest_of_a_later_format_is_told_as_such(store, publish):
    path = store.root / publish() / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ArtifactError, match="has format 2, this code reads format 1"):
        store.open(path.parent.name)


def test_verify_names_every_damaged_artifact_and_goes_on_to_the_end(store, publish):
    ids = [publish(config={"n": n}) for n in range(6)]
    (store.root / ids[0] / "manifest.json").unlink()
    (store.root / ids[1] / "tokenizer.json").unlink()
    (store.root / ids[2] / "extra.txt").write_text("mine")
    (store.root / ids[3] / "weights.safetensors").write_bytes(b"short")
    (store.root / ids[4]).rename(store.root / "train-monet-0123456789ab")
    found = {damage.id: damage.what for damage in store.verify() if "header" not in damage.what}
    assert found.keys() == {ids[0], ids[1], ids[2], ids[3], "train-monet-0123456789ab"}
    assert found[ids[0]] == "manifest.json cannot be read (No such file or directory)"
    assert found[ids[1]] == "tokenizer.json is missing"
    assert found[ids[2]] == "extra.txt was never published with it"
    assert found[ids[3]].startswith("weights.safetensors is damaged, it has 5 bytes and")
    assert "was the folder renamed" in found["train-monet-0123456789ab"]


def test_verify_names_a_child_whose_parent_is_gone_or_another(store, publish):
    corpus = publish(fill=1.0)
    monet = publish("train-monet", kind="monet", corpus=corpus)
    (store.root / corpus).rename(store.root / "aside")
    assert [(d.id, d.what) for d in store.verify()] == [(monet, f"its input 'corpus', {corpus}, is missing")]
    assert publish(fill=2.0) == corpus
    (damage,) = store.verify()
    assert damage.id == monet
    assert "no longer has the contents that it was made from" in damage.what


def test_verify_names_a_tensor_that_stands_twice_though_all_digests_agree(store, publish, monkeypatch, circumstance):
    header = b'{"__metadata__":{"recipe":"{}"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' + (
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    )

    def write(path: Path, tensors: object, *, recipe: str) -> None:
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")

    monkeypatch.setattr("artifacts.store.write_tensors", write)
    id = publish()
    (damage,) = store.verify()
    assert damage.id == id
    assert "the key 'a' stands in it twice" in damage.what
    with pytest.raises(ArtifactError, match="stands in it twice"):
        store.open(id).tensors()
