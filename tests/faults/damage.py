"""Damage to what lies in a store: flipped bits, cut, emptied, missing and swapped files, checkpoints among them."""

import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from artifacts import ArtifactError, Store
from pipeline.training.sealed_file import load_sealed, save_sealed
from tests.faults.cases import Case, Drill, Outcome
from tests.faults.chain import STEPS, Library
from tests.faults.children import Ending, ending_of
from tests.faults.ledger import Findings, inspect
from tests.faults.operations import STEP, Fault, Operations
from tests.faults.publishing import flip, publish, publish_twice, recipe
from tests.faults.sweep import Known, Scenario, known_of, lend, survived

Spoil = Callable[[Path], object]
"""Damages the file of this path."""
_SCENARIO = Scenario(name="damage", prepare=publish_twice, act=publish)
_FILES = ("manifest.json", "tokenizer.json", "weights.safetensors")


def flips(folder: Path) -> Drill:
    """A bit in every key and value of the manifest, and all over the other files."""
    known = known_of(_SCENARIO, folder)
    artifact = known.start / recipe().id
    places = [(name, at) for name in _FILES for at in _offsets(artifact / name)]
    cases = [
        _case(f"bit {bit} of byte {at} of {name}", known, name, partial(flip, at=at, bit=bit))
        for name, at in places
        for bit in ((0,) if name == "manifest.json" else (0, 6))
    ]
    return Drill(name="a bit flipped in an artifact", points=len(places), cases=cases)


def broken_files(folder: Path) -> Drill:
    """Every file cut, longer, empty, missing, replaced, or another artifact's."""
    known = known_of(_SCENARIO, folder)
    spoils = _replacements(known.start / recipe(1).id)
    cases = [_case(f"{name} {what}", known, name, spoil) for name in _FILES for what, spoil in spoils(name)]
    return Drill(name="a file of an artifact replaced", points=len(_FILES), cases=cases)


def size_limits(folder: Path) -> Drill:
    """The system itself stops a write short, that of safetensors too: with an error, or by a signal that kills."""
    scenario = Scenario(name="limits", prepare=partial(publish, n=1), act=publish)
    known = known_of(scenario, folder)
    sizes = sorted((folder / "end" / recipe().id / name).stat().st_size for name in _FILES)
    limits = sorted({0, 8, *(size * share // 8 for size in sizes for share in range(1, 8)), *(s - 1 for s in sizes)})
    cases = [
        Case(
            f"{'killed' if kills else 'refused'} beyond {limit} bytes", partial(_limited, scenario, known, limit, kills)
        )
        for limit in limits
        for kills in (False, True)
    ]
    return Drill(name="a write stopped by the system", points=len(limits), cases=cases)


def checkpoints(library: Library, folder: Path) -> Drill:
    """The checkpoint of a killed run, damaged: it must be told of, and never be gone on from."""
    store = Store(folder / "killed")
    _kill_in_training(library, store, folder)
    size = _checkpoint(library, store).stat().st_size
    # The digest, the zip's own records at both ends, and the tensors between them.
    places = sorted({0, 31, 32, 40, *(size * i // 24 for i in range(24)), size - 30, size - 1})
    spoils: list[tuple[str, Spoil]] = [
        *((f"bit {at % 8} of byte {at} flipped", partial(flip, at=at, bit=at % 8)) for at in places),
        *(
            (f"cut to {length} bytes", partial(_cut, length=length))
            for length in (0, 1, 31, 32, 33, size // 2, size - 1)
        ),
        ("a byte longer", _lengthen),
        ("replaced by a folder", _make_folder),
        ("that of another run", _other_run),
    ]
    cases = [Case(f"checkpoint {what}", partial(_go_on, library, store.root, spoil)) for what, spoil in spoils]
    return Drill(name="a checkpoint damaged", points=len(places), cases=cases)


def _kill_in_training(library: Library, store: Store, folder: Path) -> None:
    """Kills train-monet before its third step, after two checkpoints."""
    scenario = library.scenario("train-monet")
    known = known_of(scenario, folder)
    lend(known.start, store)
    third = [point for point in known.points if point.name == STEP][2]
    operations = Operations(store.root, at=third, fault=Fault.KILL_BEFORE)

    def job() -> None:
        operations.install()
        scenario.act(store)

    assert ending_of(job).signal == signal.SIGKILL


def _offsets(path: Path) -> list[int]:
    """In a manifest the middle of each word, and some of what is between them; else places all over the file."""
    raw = path.read_bytes()
    if path.name == "manifest.json":
        words = [(m.start() + m.end()) // 2 for m in re.finditer(rb"[\w.+:~-]+", raw)]
        marks = [m.start() for m in re.finditer(rb'["{}:,]', raw)]
        return sorted({*words, *marks[::8]})
    # A safetensors file begins with 8 bytes of length and the names of its tensors.
    return sorted({*range(min(12, len(raw))), *(len(raw) * i // 16 for i in range(16)), len(raw) - 1})


def _replacements(other: Path) -> Callable[[str], Iterator[tuple[str, Spoil]]]:
    def of(name: str) -> Iterator[tuple[str, Spoil]]:
        yield "emptied", partial(_cut, length=0)
        yield "cut to half", _halve
        yield "cut short", partial(_cut, length=-3)
        yield "longer", _lengthen
        yield "missing", Path.unlink
        yield "replaced by a folder", _make_folder
        yield "a link to nothing", _make_link
        if name == "manifest.json":  # the other files of the two are the same
            yield "swapped with another's", partial(_swap, other=other / name)

    return of


def _case(what: str, known: Known, name: str, spoil: Spoil) -> Case:
    return Case(what, partial(_spoiled, known, name, spoil))


def _spoiled(known: Known, name: str, spoil: Spoil, folder: Path) -> Outcome:
    store = Store(folder / "store")
    lend(known.start, store)
    path = store.root / recipe().id / name
    before = path.read_bytes()
    spoil(path)
    if path.is_file() and path.read_bytes() == before:
        return Outcome.missed("the file is as it was")
    return _outcome(ending_of(lambda: asdict(_after_damage(known, store, name))))


def _after_damage(known: Known, store: Store, name: str) -> Findings:
    """The artifact is refused and named; made again it is healed, or has another beside it if its manifest is gone."""
    findings, id = Findings(), recipe().id
    damaged = {id} | {other for other in known.before if _manifest(store.root, other) != _manifest(known.start, other)}
    inspect(store, findings, kept=known.before, known=[known.before], damaged=damaged, when="after the damage")
    is_record = name == "manifest.json"
    findings.expect(store.find(recipe()) == (None if is_record else id), "a damaged manifest was taken for an artifact")
    store.latest()
    made, wanted = publish(store), f"{id}~2" if is_record else id
    findings.expect(made == wanted, f"made again it is {made}, not {wanted}")
    known_then = {**known.before, wanted: known.before[id]}
    inspect(
        store, findings, kept=known_then, known=[known_then], damaged=damaged if is_record else set(), when="in the end"
    )  # fmt: skip
    return findings


def _manifest(root: Path, id: str) -> bytes | None:
    path = root / id / "manifest.json"
    return path.read_bytes() if path.is_file() else None


def _limited(scenario: Scenario, known: Known, limit: int, kills: bool, folder: Path) -> Outcome:
    store = Store(folder / "store")
    lend(known.start, store)

    def job() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kills else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            scenario.act(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def happened(ending: Ending) -> str | None:
        hit = ending.signal == signal.SIGXFSZ if kills else ending.told is not None and "too large" in ending.told
        return None if hit else ending.problem or "nothing went beyond the limit"

    return survived(scenario, known, None, store, job=job, happened=happened)


def _go_on(library: Library, start: Path, spoil: Spoil, folder: Path) -> Outcome:
    store = Store(folder / "store")
    lend(start, store)
    path = _checkpoint(library, store)
    before = path.read_bytes()
    spoil(path)
    if path.is_file() and path.read_bytes() == before:
        return Outcome.missed("the checkpoint is as it was")
    return _outcome(ending_of(lambda: asdict(_after_checkpoint(library, store, path))))


def _after_checkpoint(library: Library, store: Store, path: Path) -> Findings:
    """The next run stops and says which file; without that file it begins anew."""
    findings = Findings()
    try:
        gave = library.run("train-monet", store)
        findings.corrupt.append(f"a damaged checkpoint was loaded, the run gave {gave}")
    except ArtifactError as error:
        findings.expect(str(path) in str(error), f"the checkpoint is not named: {error}")
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    gave = library.run("train-monet", store)
    wanted = {"id": library.made["train-monet"], "steps": STEPS}
    findings.expect(gave == wanted, f"begun anew it gave {gave}, not {wanted}")
    findings.expect(
        store.manifest(gave["id"]).content_sha256 == library.store.manifest(gave["id"]).content_sha256,
        "begun anew it gave other bytes",
    )
    return findings


def _checkpoint(library: Library, store: Store) -> Path:
    return store.state_dir / "checkpoints" / library.made["train-monet"] / "train-monet.pt"


def _outcome(after: Ending) -> Outcome:
    if after.hung:
        return Outcome.hung("what came after the damage hung")
    if after.value is None:
        return Outcome.of(Findings(failures=[f"what came after the damage failed: {after.problem}"]))
    return Outcome.of(Findings(**after.value))


def _cut(path: Path, length: int) -> None:
    """To so many bytes, or by so many if negative."""
    raw = path.read_bytes()
    path.write_bytes(raw[:length])


def _halve(path: Path) -> None:
    _cut(path, path.stat().st_size // 2)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def _swap(path: Path, other: Path) -> None:
    theirs = path.parent.parent / other.parent.name / other.name
    mine, yours = path.read_bytes(), theirs.read_bytes()
    path.write_bytes(yours)
    theirs.write_bytes(mine)


def _other_run(path: Path) -> None:
    """The same state, as a run of another recipe would have left it."""
    theirs = path.parent.with_name("train-monet-0123456789ab") / path.name
    theirs.parent.mkdir()
    save_sealed(load_sealed(path), theirs)
    path.write_bytes(theirs.read_bytes())
    shutil.rmtree(theirs.parent)
