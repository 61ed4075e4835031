"""A scenario is run once undisturbed, which numbers its points; then once for each fault at each point."""

import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from artifacts import Store
from tests.faults.cases import Case, Drill, Outcome
from tests.faults.children import Ending, ending_of
from tests.faults.ledger import Findings, Ledger, inspect, ledger_of, lock_is_free, wrongs
from tests.faults.operations import KILLS, Fault, Operations, Point, faults_at, thinned
from tests.faults.places import same


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault at a point."""

    point: Point
    fault: Fault

    def __str__(self) -> str:
        return f"{self.fault.value} {self.point}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """An undisturbed run: what the store held before and after it, and what it did in between."""

    start: Path
    """The store before it."""
    before: Ledger
    damaged_before: frozenset[str]
    after: Ledger
    damaged_after: frozenset[str]
    value: Any
    points: list[Point]


def _as_undisturbed(known: Known, strike: Strike | None, finished: bool) -> Any:
    return known.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What is in the store, and what is done to it while the faults strike. A second `act` finishes the first."""

    name: str
    act: Callable[[Store], Any]
    """Its result, which JSON can hold, is the same however often it was interrupted."""
    prepare: Callable[[Store], object] = lambda store: None
    spoil: Callable[[Store], object] = lambda store: None
    """Damage that is there before `act`."""
    between: Callable[[Store], Store] = same
    """What becomes of the store between the fault and the next run."""
    chosen: Callable[[Sequence[Point]], list[Point]] = thinned
    faults: tuple[Fault, ...] = tuple(Fault)
    reads: bool = False
    """Whether opening a file to read it is a point as well."""
    wanted: Callable[[Known, Strike | None, bool], Any] = _as_undisturbed
    """What the next run must return; the bool says whether all artifacts are there already."""


def rehearsed(scenario: Scenario, folder: Path) -> Drill:
    """The scenario's cases. What they start from stays in `folder`."""
    known = known_of(scenario, folder)
    points = scenario.chosen(known.points)
    strikes = [Strike(point, fault) for point in points for fault in faults_at(point) if fault in scenario.faults]
    return Drill(
        name=scenario.name,
        points=len({strike.point for strike in strikes}),
        cases=[Case(str(strike), partial(_run, scenario, known, strike)) for strike in strikes],
    )


def known_of(scenario: Scenario, folder: Path) -> Known:
    """Runs the scenario undisturbed, in children."""
    start, end = Store(folder / "start"), Store(folder / "end")
    before, damaged = _value(ending_of(lambda: _prepared(scenario, start)))
    lend(start.root, end)
    points, value, after, damaged_after = _value(ending_of(lambda: _acted(scenario, end)))
    return Known(
        start=start.root,
        before=before,
        damaged_before=frozenset(damaged),
        after={id: before[id] if id in damaged_after else files for id, files in after.items()},
        damaged_after=frozenset(damaged_after),
        value=value,
        points=[Point(**point) for point in points],
    )


def lend(start: Path, store: Store) -> None:
    """Copies a store, if there is one."""
    if start.is_dir():
        shutil.copytree(start, store.root)


def survived(
    scenario: Scenario,
    known: Known,
    strike: Strike | None,
    store: Store,
    *,
    job: Callable[[], Any],
    happened: Callable[[Ending], str | None],
) -> Outcome:
    """Lets a child do the job, in which the fault strikes, and then another do what the scenario does.

    `happened` says why the fault did not happen, or None.
    """
    struck = ending_of(job)
    if struck.hung:
        return Outcome.hung("the struck run hung")
    missed = happened(struck)
    if missed:
        return Outcome.missed(missed)
    untold = [f"the fault is not told in one sentence:\n{struck.raised}"] if struck.raised else []
    after = ending_of(lambda: asdict(_aftermath(scenario, known, strike, scenario.between(store))))
    if after.hung:
        return Outcome.hung("the next run hung")
    if after.value is None:
        return Outcome.of(Findings(failures=[*untold, f"the next run failed: {after.problem}"]))
    found = Findings(**after.value)
    found.failures += untold
    return Outcome.of(found)


def _prepared(scenario: Scenario, store: Store) -> tuple[Ledger, list[str]]:
    scenario.prepare(store)
    published = ledger_of(store)
    scenario.spoil(store)
    return published, [damage.id for damage in store.verify()]


def _acted(scenario: Scenario, store: Store) -> tuple[list[dict[str, Any]], Any, Ledger, list[str]]:
    operations = Operations(store.root, reads=scenario.reads)
    operations.install()
    value = scenario.act(store)
    assert not operations.missed, f"the injector does not see {operations.missed}"
    points = [asdict(point) for point in operations.seen]
    return points, value, ledger_of(store), [damage.id for damage in store.verify()]


def _run(scenario: Scenario, known: Known, strike: Strike, folder: Path) -> Outcome:
    store = Store(folder / "store")
    lend(known.start, store)
    struck = partial(_struck, scenario, store, strike)
    return survived(scenario, known, strike, store, job=struck, happened=partial(_why_missed, strike))


def _struck(scenario: Scenario, store: Store, strike: Strike) -> bool:
    """Whether it came to the fault, and survived it."""
    operations = Operations(store.root, at=strike.point, fault=strike.fault, reads=scenario.reads)
    operations.install()
    scenario.act(store)
    return operations.struck


def _why_missed(strike: Strike, struck: Ending) -> str | None:
    if strike.fault in KILLS:
        return None if struck.signal == signal.SIGKILL else struck.problem or "it ended by itself"
    if struck.raised and "AssertionError" in struck.raised:
        return struck.raised
    return "it was never reached" if struck.value is False else None


def _aftermath(scenario: Scenario, known: Known, strike: Strike | None, store: Store) -> Findings:
    """What the next process finds, and whether it finishes what the struck one began."""
    findings = Findings()
    findings.expect(lock_is_free(store), "the lock is held by nobody who lives")
    damaged = known.damaged_before & {damage.id for damage in store.verify()}  # or healed meanwhile
    kept = known.before.keys() & known.after.keys()
    inspect(
        store, findings, kept=kept, known=[known.before, known.after], damaged=damaged, when="after the fault"
    )  # fmt: skip
    wanted = scenario.wanted(known, strike, set(store.ids()) == known.after.keys())
    value = scenario.act(store)
    findings.expect(value == wanted, f"the next run gave {value}, not {wanted}")
    findings.expect(set(store.ids()) == known.after.keys(), f"the next run left {store.ids()}")
    inspect(store, findings, kept=known.after, known=[known.after], damaged=known.damaged_after, when="in the end")
    store.collect_garbage()
    kept_bytes = {id: files for id, files in known.after.items() if id not in known.damaged_after}
    findings.failures += wrongs(store, kept=kept_bytes)
    return findings


def _value(ending: Ending) -> Any:
    assert ending.problem is None, f"the undisturbed run failed: {ending.problem}"
    return ending.value
