"""Every stage of the chain at shapes of a second, killed in the midst, then run again by another process."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from matplotlib.figure import Figure

import pipeline.training.loop
from artifacts import ArtifactId, Store
from pipeline.run import Progress
from pipeline.stage import run_stage
from stages.chain import CHAIN, made_from, step_of
from stages.command import RunCommand, read
from stages.plan import Plan
from tests.faults.operations import STEP, Fault, Point, thinned
from tests.faults.places import copied, moved
from tests.faults.sweep import Known, Scenario, Strike, lend
from tests.shapes import SMALL, flags

STEPS = 4
STAGES = tuple(step for step in CHAIN if not step.name.startswith("study-") and not step.of)
"""Studies train in processes of their own, which no fault reaches; test_trials.py has what they keep. What is made of
several artifacts of one stage keeps nothing on its way."""

_PRETRAINED = ("train-dense", "train-monet", "train-peer")
TRAINED = (*_PRETRAINED, "distill-peer", "finetune-int4")
_MEASURED = (*TRAINED, "quantize-int8", "quantize-int4", "grow-int4", "distill-symbols")
_SHAPES: dict[str, object] = {
    **SMALL,
    **{
        f"{name}.transformer.{field}": value
        for name in _PRETRAINED
        for field, value in (("d-model", 16), ("num-layers", 1), ("num-heads", 2), ("num-kv-heads", 2))
    },
    **{f"{name}.training.steps": STEPS for name in TRAINED},
    **{f"{name}.training.checkpoint-seconds": 1e-9 for name in TRAINED},
    **{f"{name}.measure.tokens": 256 for name in _MEASURED},
    "train-peer.peer.num-keys": 5,
    "train-peer.peer.num-experts": 30,
    "train-peer.peer.num-heads": 2,
    "train-peer.peer.d-key": 4,
    "train-peer.peer.pairs-per-head": 2,
    "train-peer.peer.active-keys": 2,
}
_SENTENCES = ("The miller's cat sleeps.", "def add(a, b):\n    return a + b", "In 1848 the river froze twice.")


@dataclass(frozen=True, slots=True)
class Library:
    """A store in which the whole chain has been made."""

    store: Store
    plan: Plan
    made: Mapping[str, ArtifactId]

    @classmethod
    def made_in(cls, folder: Path, names: Sequence[str] = tuple(step.name for step in STAGES)) -> "Library":
        """Runs these stages, in this process, so that its children find torch warmed up."""
        text = folder / "text.txt"
        text.write_text("\n".join(f"{i % 397}. {_SENTENCES[i * i % 3]} {_SENTENCES[i % 3]}" for i in range(500)))
        command = read(["run", "--corpus", f"mixed={text}", *flags(_SHAPES)])
        assert isinstance(command, RunCommand)
        store, made = Store(folder / "library"), {}
        with _quick():
            for name in names:
                step = step_of(name)
                inputs = {role: made[maker] for role, maker in step.inputs.items()}
                made[name] = run_stage(step.stage, command.plan.config_of(step), inputs=inputs, store=store).id
        return cls(store, command.plan, made)

    def lend(self, name: str, store: Store) -> None:
        """Copies everything but what this stage makes, and what is made from that."""
        missing = {self.made[below] for below in made_from(name) & self.made.keys()}
        shutil.copytree(self.store.root, store.root, ignore=lambda folder, names: missing & set(names))

    def scenario(self, name: str, *, force: bool = False, **options: Any) -> Scenario:
        """The stage is run, and run again after the fault."""
        prepare = (lambda store: lend(self.store.root, store)) if force else partial(self.lend, name)
        act = partial(self.run, name, force=force)
        return Scenario(name=name, prepare=prepare, act=act, wanted=_wanted, **options)

    def run(
        self,
        name: str,
        store: Store,
        *,
        force: bool = False,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> dict[str, Any]:
        """Runs the stage in a child: its artifact, and the training steps that it took."""
        taken = _count_steps()
        step = step_of(name)
        inputs = {role: self.made[maker] for role, maker in step.inputs.items()}
        config = self.plan.config_of(step)
        with _quick():
            made = run_stage(step.stage, config, inputs=inputs, store=store, force=force, report=report)
        return {"id": made.id, "steps": len(taken)}


def scenarios(library: Library) -> Iterator[Scenario]:
    """One for each stage. Of the training stages, the first meets all faults and the others kills."""
    for step in STAGES:
        is_first = step.name == TRAINED[0]
        yield library.scenario(
            step.name,
            chosen=_landmarks if step.name in TRAINED else _publishing,
            faults=tuple(Fault) if is_first else (Fault.KILL_BEFORE, Fault.KILL_WITHIN),
        )
    for between in (moved, copied):
        yield replace(
            library.scenario("train-monet", chosen=_landmarks, faults=(Fault.KILL_BEFORE,)),
            name=f"train-monet, store {between.__name__}",
            between=between,
        )


@contextmanager
def _quick() -> Iterator[None]:
    """No pictures, which would take most of the time; no threads, which would stay with the parent of a child."""
    with (
        patch.object(Figure, "savefig", lambda self, file, **named: file.write(b"a picture")),
        patch.dict(os.environ, TOKENIZERS_PARALLELISM="false"),
    ):
        yield


def _count_steps() -> list[None]:
    """Grows by one entry a training step from now on."""
    taken: list[None] = []
    draw: Callable[..., Any] = pipeline.training.loop.random_windows

    def counted(*args: Any, **named: Any) -> Any:
        taken.append(None)
        return draw(*args, **named)

    pipeline.training.loop.random_windows = counted
    return taken


def _wanted(known: Known, strike: Strike | None, finished: bool) -> dict[str, Any]:
    """The same artifact; in as many steps as there are after the last checkpoint that was saved whole."""
    assert strike is not None
    saved = sum(is_saved(point, strike) for point in known.points)
    return {**known.value, "steps": 0 if finished else known.value["steps"] - saved}


def is_saved(point: Point, strike: Strike) -> bool:
    """Whether a checkpoint of training was put in its place at this point, and before the strike.

    What a recording seals is none: it takes no training steps, and test_recording.py has what it goes on from.
    """
    done = point.number < strike.point.number or (point == strike.point and strike.fault is Fault.KILL_AFTER)
    return done and point.name == "rename" and point.path.endswith(".pt") and not point.path.endswith("rows.pt")


def _landmarks(points: Sequence[Point]) -> list[Point]:
    """Every training step, the operations of one checkpoint in the middle, and a selection of those of publishing."""
    steps = [point for point in points if point.name == STEP]
    saving = [point for point in points if steps[1].number < point.number < steps[2].number]
    return steps + thinned(saving) + _publishing(points[steps[-1].number + 1 :])


def _publishing(points: Sequence[Point]) -> list[Point]:
    """The first operation, the ones that matter most for publishing, and the last."""
    chosen = [point for point in points if point.name in ("native write", "rename")]
    return sorted({points[0], *chosen, points[-1]}, key=lambda point: point.number)
