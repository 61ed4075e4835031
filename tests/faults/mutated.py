"""Artifacts mutated at random: each is refused with a sentence, or runs to the same numbers by stock ops and by C++.

`python -m tests.faults.mutated KIND SEED` makes one mutation again, in its own process, and says what came of it.
"""

import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from artifacts import ArtifactError, Store
from artifacts.__main__ import main as artifacts
from artifacts.terminal import MOST_CHARACTERS, told
from kernels import backends
from kernels.backends import CpuLibrary, build_cpu_library, load_cpu_library
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows, random_windows, target_positions
from pipeline.models import LanguageModel
from pipeline.report import Report
from stages.errors import is_told
from tests.faults.cases import Case, Drill, Outcome
from tests.faults.children import ending_of
from tests.faults.mutations import MANIFEST, Target, mutate, targets_of
from tests.faults.specimens import SPECIMENS, published

MUTATIONS = 2_000
_A_BATCH = 50
_MEMORY_BYTES = 2**30
"""That a mutated artifact may take beyond what its process has; the specimens take less than a megabyte."""
_SECONDS = 20
"""That it may take, as processes on a busy machine go; a specimen takes a twentieth of one."""
_GOOD = ("refused", "the same", "rounding decides")
_WITHOUT_THREADS = patch.dict(os.environ, TOKENIZERS_PARALLELISM="false")
"""They would stay with the parent of a child."""
_COMMANDS = (["ls"], ["show", "ID"], ["tree"], ["tree", "ID"], ["card", "ID"], ["diff", "ID", "OTHER"], ["verify"])


class Wrong(Exception):
    """What came of a mutation is neither of the two things that may."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A pristine artifact, and what is to be done to its copies."""

    name: str
    folder: Path
    """The artifact in its store."""
    library: CpuLibrary | None
    targets: list[Target]

    def try_one(self, seed: int, work: Path) -> tuple[str, str]:
        """What was done to a copy, and what came of it, one of _GOOD. Wrong, and whatever it raises, if not."""
        store, id = Store(work), self.folder.name
        shutil.copytree(self.folder.parent, work)
        generator = random.Random(f"{self.name} {seed}")
        done = mutate(store.root / id, self.targets[seed % len(self.targets)], generator)
        try:
            _look(store, id, generator)
            return done, self._opened(store, id, sealed=done.endswith("sealed anew"))
        except Exception as error:
            error.add_note(done)
            raise

    def _opened(self, store: Store, id: str, *, sealed: bool) -> str:
        try:
            artifact = store.open(id)
            if not sealed and not _is_pristine(store.root / id, self.folder):
                raise Wrong("it is not sealed, and was opened")
            return _use(codec.load(artifact), self.library)
        except ArtifactError:
            return "refused"


def _is_pristine(folder: Path, wanted: Path) -> bool:
    """Whether the files, and what the manifest says in whatever layout, are the same."""
    if json.loads((folder / MANIFEST).read_bytes()) != json.loads((wanted / MANIFEST).read_bytes()):
        return False
    return all(
        path.read_bytes() == (folder / path.name).read_bytes() for path in wanted.iterdir() if path.suffix != ".json"
    )


def _look(store: Store, id: str, generator: random.Random) -> None:
    """One of the commands that print what a manifest says: they end well, and no control character comes out."""
    other = next(one for one in store.ids() if one != id)
    command = [{"ID": id, "OTHER": other}.get(word, word) for word in generator.choice(_COMMANDS)]
    said, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(complained):
        code = artifacts(["--store", str(store.root), *generator.choice(([], ["--json"])), *command])
    if code not in (0, 1, 2):
        raise Wrong(f"artifacts {' '.join(command)} ended with {code}")
    if raw := [one for one in said.getvalue() + complained.getvalue() if not one.isprintable() and one != "\n"]:
        raise Wrong(f"artifacts {' '.join(command)} printed {raw!r}")
    if too_long := [line for line in complained.getvalue().splitlines() if len(line) > MOST_CHARACTERS + 50]:
        raise Wrong(f"artifacts {' '.join(command)} complained in {len(too_long[0])} characters")


def _use(value: codec.Persistent, library: CpuLibrary | None) -> str:
    """What stages do with it."""
    if isinstance(value, LanguageModel):
        return _compare(value, library)
    if isinstance(value, Corpus):
        _read(value)
    else:
        assert isinstance(value, Report)
        json.dumps([row.metrics for row in value.spec.rows])
    return "the same"


def _compare(model: LanguageModel, library: CpuLibrary | None) -> str:
    """The logits of stock ops beside those of C++. Finite numbers may still overflow: then both must say so."""
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(model.spec.transformer.vocab_size, (3, 7), generator=generator)
    stock, native = (_logits(model, tokens_BT, one) for one in (None, library))
    if isinstance(stock, str) or isinstance(native, str):
        if isinstance(stock, str) and isinstance(native, str):
            return "refused"
        raise Wrong(f"stock: {_in_short(stock)}; C++: {_in_short(native)}")
    # A large number magnifies the rounding in which the paths differ.
    most = 1e-3 * max(1.0, float(stock.nan_to_num(0, 0, 0).abs().max()))
    if _are_close(stock, native, most):
        return "the same"
    nudged = _logits(_nudged(model), tokens_BT, None)
    if isinstance(nudged, str) or not _are_close(stock, nudged, most):
        return "rounding decides"  # as between equal scores: stock ops alone give other numbers for as little
    raise Wrong(f"stock: {_in_short(stock)}; C++: {_in_short(native)}; more than {most:.3g} apart")


def _are_close(one: torch.Tensor, other: torch.Tensor, most: float) -> bool:
    return torch.allclose(one, other, rtol=0, atol=most, equal_nan=True)


@torch.no_grad()
def _nudged(model: LanguageModel) -> LanguageModel:
    """Every float of it another by a few times its rounding."""
    generator = torch.Generator().manual_seed(2)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor *= 1 + 1e-6 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    return model


def _in_short(logits: torch.Tensor | str) -> str:
    if isinstance(logits, str):
        return logits
    return f"{int(torch.isfinite(logits).sum())} of {logits.numel()} finite, {logits.flatten()[:4].tolist()}..."


@torch.no_grad()
def _logits(model: LanguageModel, tokens_BT: torch.Tensor, library: CpuLibrary | None) -> torch.Tensor | str:
    """Or the sentence that refuses them."""
    chosen, backends.cpu_library = backends.cpu_library, lambda: library
    try:
        return model(tokens_BT)
    except ValueError as error:
        if not is_told(error):
            raise
        return str(error)
    finally:
        backends.cpu_library = chosen


def _read(corpus: Corpus) -> None:
    """Windows, domains, documents and text of every split that has any."""
    for split in (corpus.train, corpus.validation, corpus.held_out):
        if split.num_tokens > 8:
            tokens_WT, _ = held_out_windows(split, num_tokens=None, length=7)
            random_windows(split, batch=3, length=7, generator=torch.Generator().manual_seed(0))
            positions_WT = target_positions(split, num_tokens=None, length=7)
            names = {corpus.spec.domains[domain] for domain in split.domain_of(positions_WT).unique().tolist()}
            assert names
            assert int(split.document_of(positions_WT).min()) >= 0
            corpus.tokenizer.decode(tokens_WT.reshape(-1).tolist()).encode()
            corpus.token_bytes_V[tokens_WT].sum()
    list(corpus.tokenizer.encode_many(["the cat", "ü \ufffd\x00"]))


# The drill.


def mutations(folder: Path) -> Drill:
    """MUTATIONS of them, the targets of all kinds in turn, in batches that share a process."""
    library = _library(folder)
    return drill_of([bench_of(name, folder, library) for name in SPECIMENS], MUTATIONS)


def drill_of(benches: Sequence[Bench], count: int) -> Drill:
    """So many, shared out by how many targets each has; from as many as there are on, each target comes up."""
    total, before, cases = sum(len(bench.targets) for bench in benches), 0, []
    for bench in benches:
        after = before + len(bench.targets)
        seeds = range(round(count * after / total) - round(count * before / total))
        for batch in (seeds[at : at + _A_BATCH] for at in range(0, len(seeds), _A_BATCH)):
            cases.append(Case(f"{bench.name} {batch[0]} to {batch[-1]}", partial(run_batch, bench, batch)))
        before = after
    return Drill(name="an artifact mutated", points=total, cases=cases)


@_WITHOUT_THREADS
def bench_of(name: str, folder: Path, library: CpuLibrary | None) -> Bench:
    """With the specimen in a store of its own in this folder, tried once: what torch imports then, children have."""
    store = Store(folder / f"pristine-{name}")
    pristine = published(name, store)
    _use(codec.load(store.open(pristine.name)), library)
    return Bench(name, pristine, library, targets_of(pristine))


def _library(folder: Path) -> CpuLibrary | None:
    """None where there is no compiler: then stock ops alone are tried."""
    found = backends.cpu_library()
    if found is not None:
        return found
    try:
        return load_cpu_library(build_cpu_library(folder / "library"))
    except RuntimeError as error:
        if "no C++ compiler" not in str(error):
            raise
        return None


@_WITHOUT_THREADS
def run_batch(bench: Bench, seeds: Sequence[int], folder: Path) -> Outcome:
    """In a child, under its limits; what kills the child is told of the mutation at hand, and another goes on."""
    ledger, left, outcomes = folder / "ledger.jsonl", list(seeds), dict[int, str]()
    hangs = 0
    while left:
        ledger.write_text("")
        ending = ending_of(partial(_work, bench, left, folder, ledger), seconds=_SECONDS * (len(left) + 1))
        begun = None
        for line in ledger.read_text().splitlines():
            seed, word = json.loads(line)
            begun = seed if word is None else None
            if word is not None:
                outcomes[seed] = word
        if begun is None and ending.problem is not None:
            raise AssertionError(f"the harness failed: {ending.problem}")
        if begun is not None:
            hung = ending.hung or ending.signal == signal.SIGALRM
            hangs += hung
            outcomes[begun] = f"hung for {_SECONDS} s" if hung else f"died: {ending.problem}"
        left = [seed for seed in left if seed not in outcomes]
    said = tuple(f"{bench.name} {seed}: {word}" for seed, word in outcomes.items() if word not in _GOOD)
    return Outcome(injected=len(outcomes), hangs=hangs, failures=len(said) - hangs, said=said)


def _work(bench: Bench, seeds: Sequence[int], folder: Path, ledger: Path) -> None:
    with limited(), ledger.open("a", buffering=1) as told_to:
        for seed in seeds:
            told_to.write(json.dumps((seed, None)) + "\n")
            signal.alarm(_SECONDS)
            word = _outcome(bench, seed, folder / f"work-{seed}")
            signal.alarm(0)
            told_to.write(json.dumps((seed, word)) + "\n")


def _outcome(bench: Bench, seed: int, work: Path) -> str:
    try:
        return bench.try_one(seed, work)[1]
    except BaseException as error:  # noqa: BLE001 - looked for are all of them, panics of Rust's among them
        notes = "; ".join(getattr(error, "__notes__", ()))
        where = "" if isinstance(error, Wrong) else "\n" + "".join(traceback.format_tb(error.__traceback__)[-3:])
        return f"{notes}: {type(error).__name__}: {told(str(error))[:400]}{where}"
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def limited() -> Iterator[None]:
    """Memory as much more than now as a mutation may take."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def main(words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    name, seed = words[0], int(words[1])
    with tempfile.TemporaryDirectory(prefix="mutated-") as place:
        bench = bench_of(name, Path(place), _library(Path(place)))
        with limited():
            print(*bench.try_one(seed, Path(place) / "work"), sep=": ")  # noqa: T201 - this is the command's output


if __name__ == "__main__":
    main(sys.argv[1:])
