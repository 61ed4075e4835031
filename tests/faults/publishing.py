"""Publishing, healing, removing and collecting garbage, with a fault at every file operation."""

import os
import time
from functools import partial
from pathlib import Path

import torch

from artifacts import ArtifactId, Recipe, Store
from tests.circumstance import CIRCUMSTANCE
from tests.faults.operations import KILLS, Fault
from tests.faults.places import copied, moved
from tests.faults.sweep import Scenario


def recipe(n: int = 0) -> Recipe:
    return Recipe(stage="prepare-corpus", stage_version=1, config={"n": n}, seed=0, inputs={})


def publish(store: Store, n: int = 0, fill: float = 1.0, created: str = CIRCUMSTANCE.created) -> ArtifactId:
    """An artifact of recipe `n`, with tensors that hold `fill` and a file."""
    return store.publish(
        recipe=recipe(n),
        kind="corpus",
        spec={"d_model": 12},
        tensors={"keys": torch.full((7, 12), fill), "index": torch.arange(9, dtype=torch.int32)},
        metrics={"held_out_loss_nats": 2.5},
        files={"tokenizer.json": b'{"model": "bytes"}'},
        circumstance=CIRCUMSTANCE.model_copy(update={"created": created}),
    )


def spoil_every_file(store: Store) -> None:
    """Another byte in one file, the other is a folder now."""
    folder = store.root / recipe().id
    flip(folder / "tokenizer.json")
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").mkdir()
    (folder / "weights.safetensors" / "mine.txt").write_text("mine")


def flip(path: Path, at: int = -1, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def remove(store: Store) -> list[str]:
    if recipe().id in store.ids():
        store.remove(recipe().id)
    return list(store.ids())


def leave_rubbish(store: Store) -> None:
    """What two killed publications and a killed run of a finished stage leave."""
    id = publish(store)
    for name in (".partial-4194305-00000000", ".partial-4194305-00000001"):
        (store.root / name).mkdir()
        (store.root / name / "weights.safetensors").write_bytes(b"half")
    checkpoints = store.state_dir / "checkpoints" / id
    checkpoints.mkdir(parents=True)
    for path in (checkpoints / "train.pt", checkpoints / "train.partial"):
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    os.utime(checkpoints, (0, 0))


def publish_with_the_clock_set_back(store: Store) -> list[str | None]:
    """Published last though made first: what is latest?"""
    time.time = lambda: 0.0  # in a child, which ends afterwards
    id = publish(store, created="1970-01-01T00:00:00+00:00")
    return [id, store.latest(), *(manifest.id for manifest in store.manifests())]


def open_all(store: Store) -> list[str]:
    """Reads every byte, and what verify has to say."""
    ids = [store.open(id).id for id in store.ids()]
    for id in ids:
        store.open(id).tensors()
    return ids


def collect(store: Store) -> list[str]:
    store.collect_garbage()
    return list(store.ids())


def publish_twice(store: Store) -> None:
    publish(store)
    publish(store, n=1)


SCENARIOS = (
    Scenario(name="publish first", act=publish),
    Scenario(name="publish beside others", prepare=partial(publish, n=1), act=publish),
    Scenario(name="publish equal bytes", prepare=publish_twice, act=publish),
    Scenario(name="publish other bytes", prepare=publish, act=partial(publish, fill=2.0)),
    Scenario(name="publish heals", prepare=publish_twice, spoil=spoil_every_file, act=publish),
    Scenario(name="publish, store moved", prepare=partial(publish, n=1), act=publish, faults=KILLS, between=moved),
    Scenario(name="publish, store copied", prepare=partial(publish, n=1), act=publish, faults=KILLS, between=copied),
    Scenario(name="publish, clock set back", prepare=publish_twice, act=publish_with_the_clock_set_back, faults=KILLS),
    Scenario(name="open", prepare=publish_twice, act=open_all, reads=True, faults=(Fault.BROKEN,)),
    Scenario(name="remove", prepare=publish_twice, act=remove),
    Scenario(name="collect garbage", prepare=leave_rubbish, act=collect),
)
