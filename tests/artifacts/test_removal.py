"""What a store lets go of: artifacts that nothing was made from, and garbage; never what is held, or not its own."""

import errno
import os
from collections.abc import Collection

import pytest

from artifacts import ArtifactError
from artifacts.board import pin_all
from artifacts.scratch import scratch_folder
from tests.stores import names, recipe


def test_what_others_were_made_from_stays(store, publish):
    corpus = publish()
    monet = publish("train-monet", kind="monet", corpus=corpus)
    with pytest.raises(ArtifactError, match=f"{corpus} stays, it is an input of {monet}; remove those first"):
        store.remove(corpus)
    assert store.remove(monet) == monet
    assert store.remove(corpus) == corpus
    assert names(store) == set()


@pytest.mark.parametrize("act", [lambda store, id: store.remove(id), lambda store, id: store.collect_garbage()])
def test_what_cannot_be_removed_is_told_in_one_sentence(store, publish, monkeypatch, act):
    id = publish()
    (store.root / ".partial-4194305-00000000").mkdir()

    def refuse(*args: object, **named: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        for name in ("rename", "rmdir"):
            patch.setattr(os, name, refuse)
        with pytest.raises(
            ArtifactError, match=r"^could not remove .*: Read-only file system; nothing is half done, see"
        ):
            act(store, id)
    assert store.ids() == [id]


def test_garbage_of_a_living_process_stays(store, publish):
    publish()
    dead = store.root / f".partial-{os.getpid()}-00000000"  # in a container every run may have the same pid
    dead.mkdir()
    with scratch_folder(store.root) as scratch:
        os.utime(scratch, (0, 0))  # the clock was set back, and forward again
        assert store.collect_garbage() == [dead.name]
        assert scratch.is_dir()


def test_checkpoints_of_finished_stages_are_garbage_unless_a_run_holds_them(store, publish):
    checkpoints = store.state_dir / "checkpoints"
    names = {what: recipe(stage).id for what, stage in (("unfinished", "train-dense"), ("begun", "train-peer"))}
    for name in (*names.values(), publish(config={"n": 1})):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "train.pt").write_bytes(b"")
    (checkpoints / names["begun"] / "train.pt").unlink()
    publish(config={"n": 2})
    with store.checkpoints(recipe(n=2), anew=True) as forced:
        (forced / "train.pt").write_bytes(b"")
        os.utime(forced / "train.pt", (0, 0))  # the clock was set back since the artifact was made
        removed = [recipe(n=1).id, names["begun"]]
        assert store.collect_garbage() == [f".state/checkpoints/{name}" for name in removed]
        assert (forced / "train.pt").is_file()
    assert {path.name for path in checkpoints.iterdir()} == {names["unfinished"]}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("name", ["lock", "cards.lock", "cards.json"])
def test_what_is_no_file_in_the_state_is_told_and_not_waited_for(store, publish, name, make):
    id = publish()
    (store.state_dir / name).unlink(missing_ok=True)
    make(store.state_dir / name)
    with pytest.raises(ArtifactError, match=r"regular file|Is a directory"):
        store.remove(id) if name == "lock" else pin_all(store, _NoBoard())
    assert store.ids() == [id]


class _NoBoard:
    """A board that nothing is pinned to."""

    def pin(self, card: str, *, key: str, description: str, of_this_run: bool) -> str:
        raise AssertionError(card)

    def rewrite(self, id: str, card: str) -> None:
        raise AssertionError(id)

    def count(self, ids: Collection[str]) -> int:
        return 0

    def link(self, id: str) -> str:
        return id


def test_garbage_that_is_no_folder_is_removed_and_no_link_is_followed(store, publish, tmp_path):
    publish()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (store.root / ".partial-1-00000000").symlink_to(tmp_path / "precious")
    (store.root / ".partial-2-00000000").symlink_to("nothing")
    os.mkfifo(store.root / ".partial-3-00000000")
    (store.root / ".partial-4-00000000").touch()
    assert store.collect_garbage() == [f".partial-{n}-00000000" for n in (1, 2, 3, 4)]
    assert (tmp_path / "precious" / "file").is_file()
