"""Several processes on one store, one of which is killed; and a reader that looks at it all the while."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from artifacts import ArtifactError, Store
from pipeline.run import Progress
from tests.faults.cases import Case, Drill, Outcome
from tests.faults.chain import STEPS, Library, is_saved
from tests.faults.children import ending_of, started
from tests.faults.ledger import Findings, Ledger, contents, inspect, ledger_of, lock_is_free, wrongs
from tests.faults.operations import STEP, Fault, Operations, Point
from tests.faults.publishing import publish, recipe
from tests.faults.sweep import Known, Strike, known_of, lend

# As many as publishing comes to at the least, which is when another has just published the same bytes.
_POINTS = 20
_ONE, _KEPT, _REMOVED, _ANOTHER = range(4)
"""Numbers of recipes."""


def publishers(folder: Path) -> Drill:
    """Publishers of one recipe with equal and other bytes, one of another recipe, a remover, a collector, a reader."""
    start = folder / "start"
    ends, removed = ending_of(lambda: _prepare(start, folder / "whole")).value
    strikes = [
        Strike(Point(number, "operation", ""), fault)
        for number in range(_POINTS)
        for fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER)
    ]
    cases = [Case(str(strike), partial(_meet, start, ends, removed, strike)) for strike in strikes]
    return Drill(name="seven processes on one store", points=_POINTS, cases=cases)


def runs(library: Library, folder: Path) -> Drill:
    """Two processes at one stage: the first is killed while the other waits for it, which goes on from there."""
    known = known_of(library.scenario("train-monet"), folder)
    last = [point for point in known.points if point.name == STEP][-1]
    points = [p for p in known.points if p.name in (STEP, "rename", "fsync") and 0 < p.number <= last.number]
    strikes = [Strike(point, Fault.KILL_BEFORE) for point in points]
    cases = [Case(str(strike), partial(_relieve, library, known, strike)) for strike in strikes]
    return Drill(name="two processes at one stage", points=len(strikes), cases=cases)


def clocks(library: Library, folder: Path) -> Drill:
    """Garbage is collected beside a forced run, while the clock makes all that it wrote older than the artifact."""
    known = known_of(library.scenario("train-monet", force=True), folder)
    # From the first step on it holds its checkpoints, later its scratch folder as well.
    first = next(point for point in known.points if point.name == STEP)
    points = [p for p in known.points if p.name in (STEP, "rename", "native write") and p.number >= first.number]
    strikes = [Strike(point, Fault.KILL_BEFORE) for point in points]
    cases = [Case(str(strike), partial(_collect_beside, library, known, strike)) for strike in strikes]
    return Drill(name="garbage collected, clock set back", points=len(strikes), cases=cases)


def _prepare(start: Path, whole: Path) -> tuple[list[Ledger], Ledger]:
    """What the store may hold in the end, in either order of the two attempts; and what is removed."""
    for n in (_KEPT, _REMOVED):
        publish(Store(start), n)
    publish(Store(whole), _ANOTHER)
    one = contents(whole / publish(Store(whole), _ONE))
    two = contents(whole / publish(Store(whole), _ONE, fill=2.0))
    kept = {
        recipe(_KEPT).id: contents(start / recipe(_KEPT).id),
        recipe(_ANOTHER).id: contents(whole / recipe(_ANOTHER).id),
    }
    id = recipe(_ONE).id
    removed = {recipe(_REMOVED).id: contents(start / recipe(_REMOVED).id)}
    return [{**kept, id: a, f"{id}~2": b} for a, b in ((one, two), (two, one))], removed


def _meet(start: Path, ends: Sequence[Ledger], removed: Ledger, strike: Strike, folder: Path) -> Outcome:
    store, stop = Store(folder / "store"), folder / "stop"
    lend(start, store)
    known = [{**end, **removed} for end in ends]
    begin = time.monotonic() + 0.2
    victim = started(_at(begin, lambda: _struck_publisher(store, strike)))
    jobs: list[Callable[[], Any]] = [
        lambda: publish(store, _ONE),
        lambda: publish(store, _ONE, fill=2.0),
        lambda: publish(store, _ANOTHER),
        lambda: store.remove(recipe(_REMOVED).id),
        lambda: [store.collect_garbage() for _ in range(5)],
    ]
    others = [started(_at(begin, job)) for job in jobs]
    reader = started(_at(begin, lambda: _read_on(store, known, stop)))
    endings = [victim.wait(), *(other.wait() for other in others)]
    stop.touch()
    read = reader.wait()
    if read.hung or any(ending.hung for ending in endings):
        return Outcome.hung(f"of the processes there hung {[i for i, ending in enumerate(endings) if ending.hung]}")
    if endings[0].signal != signal.SIGKILL:
        return Outcome.missed(endings[0].problem or "the publisher ended by itself")
    findings = Findings(failures=[ending.problem for ending in endings[1:] if ending.problem])
    if read.value is None:
        findings.failures.append(f"the reader: {read.problem}")
    else:
        findings.corrupt += read.value
    after = ending_of(lambda: asdict(_after_meeting(store, ends)))
    if after.value is None:
        return Outcome.of(Findings(failures=[*findings.failures, f"afterwards: {after.problem}"]))
    found = Findings(**after.value)
    found.failures += findings.failures
    found.corrupt += findings.corrupt
    return Outcome.of(found)


def _at(begin: float, job: Callable[[], Any]) -> Callable[[], Any]:
    """The job, begun at that time of the monotonic clock."""

    def waited() -> Any:
        time.sleep(max(0.0, begin - time.monotonic()))
        return job()

    return waited


def _struck_publisher(store: Store, strike: Strike) -> None:
    operations = Operations(store.root, at=strike.point, fault=strike.fault, is_alone=False)
    operations.install()
    publish(store, _ONE)


def _read_on(store: Store, known: Sequence[Ledger], stop: Path) -> list[str]:
    """Opens everything again and again: nothing half written may ever be seen, nothing whole may be refused."""
    wrong: list[str] = []
    while not stop.exists():
        for id in store.ids():
            with suppress(FileNotFoundError):  # removed since it was opened
                try:
                    found = contents(store.open(id).path)
                except ArtifactError as error:
                    if id != recipe(_REMOVED).id:
                        wrong.append(f"a reader was refused {id}: {error}")
                    continue
                if id != recipe(_REMOVED).id and found not in [ledger.get(id) for ledger in known]:
                    wrong.append(f"a reader was given {id} with bytes that nobody published")
    return wrong


def _after_meeting(store: Store, ends: Sequence[Ledger]) -> Findings:
    findings = Findings()
    findings.expect(lock_is_free(store), "the lock is held by nobody who lives")
    inspect(store, findings, kept=ends[0], known=ends, when="after the meeting")
    publish(store, _ONE)
    store.collect_garbage()
    findings.expect(ledger_of(store) in ends, f"in the end the store holds {store.ids()}")
    findings.failures += wrongs(store, kept={})
    return findings


def _relieve(library: Library, known: Known, strike: Strike, folder: Path) -> Outcome:
    store, waits = Store(folder / "store"), folder / "waits"
    lend(known.start, store)
    first = started(lambda: _struck_run(library, store, strike, begun=folder / "begun", until=waits))
    _await(folder / "begun")
    second = started(lambda: library.run("train-monet", store, report=lambda progress: _say(progress, waits)))
    endings = first.wait(), second.wait()
    if any(ending.hung for ending in endings):
        return Outcome.hung("one of the two hung")
    if endings[0].signal != signal.SIGKILL:
        return Outcome.missed(endings[0].problem or "the first run ended by itself")
    findings = Findings()
    saved = sum(is_saved(point, strike) for point in known.points)
    wanted = {**known.value, "steps": STEPS - saved}
    findings.expect(
        endings[1].value == wanted, f"the second gave {endings[1].value or endings[1].problem}, not {wanted}"
    )
    return _in_the_end(findings, store, known)


def _collect_beside(library: Library, known: Known, strike: Strike, folder: Path) -> Outcome:
    store, done = Store(folder / "store"), folder / "done"
    lend(known.start, store)
    run = started(lambda: _struck_run(library, store, strike, begun=folder / "begun", until=done, force=True))
    _await(folder / "begun")
    collected = ending_of(lambda: _collect_in_the_past(store))
    done.touch()
    struck = run.wait()
    if struck.hung or collected.hung:
        return Outcome.hung("the forced run, or the garbage collection beside it, hung")
    if struck.signal != signal.SIGKILL:
        return Outcome.missed(struck.problem or "the forced run ended by itself")
    findings = Findings()
    findings.expect(collected.value == [], f"of a living run was removed {collected.value or collected.problem}")
    again = ending_of(lambda: library.run("train-monet", store, force=True))
    findings.expect(again.value == known.value, f"forced again it gave {again.value or again.problem}")
    return _in_the_end(findings, store, known)


def _struck_run(
    library: Library, store: Store, strike: Strike, *, begun: Path, until: Path, force: bool = False
) -> None:
    """Halts at the point, says so, and dies when it may."""

    def pause() -> None:
        begun.touch()
        _await(until)

    operations = Operations(store.root, at=strike.point, fault=strike.fault, pause=pause)
    operations.install()
    library.run("train-monet", store, force=force)


def _collect_in_the_past(store: Store) -> list[str]:
    for path in (*store.root.glob(".partial-*/**/*"), *store.root.glob(".partial-*"), *store.state_dir.rglob("*")):
        os.utime(path, (0, 0))
    return store.collect_garbage()


def _say(progress: Progress, waits: Path) -> None:
    if progress.what.startswith("wait"):
        waits.touch()


def _await(path: Path) -> None:
    """Until the file is there; whoever waits for ever is killed by who waits for it."""
    patience = time.monotonic() + 30
    while not path.exists() and time.monotonic() < patience:
        time.sleep(0.005)


def _in_the_end(findings: Findings, store: Store, known: Known) -> Outcome:
    def job() -> dict[str, Any]:
        found = Findings()
        found.expect(lock_is_free(store), "the lock is held by nobody who lives")
        inspect(store, found, kept=known.after, known=[known.after], when="in the end")
        store.collect_garbage()
        found.failures += wrongs(store, kept=known.after)
        return asdict(found)

    after = ending_of(job)
    if after.value is None:
        return Outcome.of(Findings(failures=[*findings.failures, f"afterwards: {after.problem}"]))
    found = Findings(**after.value)
    found.failures += findings.failures
    return Outcome.of(found)
