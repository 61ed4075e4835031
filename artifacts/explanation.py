"""Why two artifacts differ: in what they were asked for, or in an input, followed up to the first cause."""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from artifacts.comparison import ABSENT, Pair, asked_differently, made_differently, other_inputs
from artifacts.lineage import ArtifactId
from artifacts.manifest import Manifest
from artifacts.names import enumerated

Because = Literal["stage", "recipe", "inputs", "circumstances", "chance", "not in the store"]
"""What sets two artifacts apart; `inputs` if nothing else does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """Two artifacts in the same place of the two lineages that are not one and the same."""

    a: ArtifactId
    b: ArtifactId
    path: tuple[str, ...]
    """The roles that lead from the compared artifacts up to these; none for themselves."""
    because: Because
    differs: dict[str, Pair]
    """What differs here by itself: of the recipe without inputs, or under the same recipe of the circumstances."""
    inputs: tuple[str, ...]
    """The roles in which other artifacts were read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Why two artifacts differ."""

    text: str
    """A sentence or a few."""
    chain: tuple[Link, ...]
    """Every place where the two lineages part, in the order of making; the compared artifacts are the last."""


def explain(first: Manifest, second: Manifest, known: Mapping[ArtifactId, Manifest]) -> Explanation:
    """Why `second` is not `first`; `known` are their ancestors, as far as there are any left."""
    if first.id == second.id:
        return Explanation(text="a and b are the same artifact.", chain=())
    chain = _chain(first, second, known)
    if chain[-1].because == "stage":
        sentences = [_of_two_stages(first, second), _relation(first, second, known)]
    else:
        sentences = [_own(chain[-1], first, second), *_upwards(chain[:-1]), _besides(chain[-1], first, second)]
    return Explanation(text=" ".join(sentence for sentence in sentences if sentence), chain=chain)


def _chain(first: Manifest, second: Manifest, known: Mapping[ArtifactId, Manifest]) -> tuple[Link, ...]:
    """Breadth first, so that each pair is reached on a shortest path; told from the oldest."""
    found: dict[tuple[ArtifactId, ArtifactId], Link] = {}
    waiting: deque[tuple[ArtifactId, ArtifactId, tuple[str, ...]]] = deque([(first.id, second.id, ())])
    manifests = {**known, first.id: first, second.id: second}
    while waiting:
        a, b, path = waiting.popleft()
        if (a, b) in found:
            continue
        found[a, b] = link = _link(a, b, path, manifests)
        for role in link.inputs:
            ours, theirs = (manifests[id].lineage.inputs[role].id for id in (a, b))
            waiting.append((ours, theirs, (*path, role)))
    place = {id: manifest.lineage.sequence for id, manifest in manifests.items()}
    top, *above = found.values()
    return (*sorted(above, key=lambda link: max(place.get(link.a, 0), place.get(link.b, 0))), top)


def _link(a: ArtifactId, b: ArtifactId, path: tuple[str, ...], manifests: Mapping[ArtifactId, Manifest]) -> Link:
    first, second = manifests.get(a), manifests.get(b)
    because, differs, inputs = _parting(first, second) if first and second else ("not in the store", {}, ())
    return Link(a=a, b=b, path=path, because=because, differs=differs, inputs=inputs)


def _parting(first: Manifest, second: Manifest) -> tuple[Because, dict[str, Pair], tuple[str, ...]]:
    """What sets two artifacts apart, what of it differs here, and the roles in which they read others."""
    if first.lineage.stage != second.lineage.stage:
        return "stage", {"stage": (first.lineage.stage, second.lineage.stage)}, ()
    read = other_inputs(first, second)
    roles = tuple(name.removeprefix("inputs.") for name, pair in read.items() if ABSENT not in pair)
    asked = asked_differently(first, second) | {name: pair for name, pair in read.items() if ABSENT in pair}
    if asked or roles:
        return "recipe" if asked else "inputs", asked, roles
    made = made_differently(first, second)
    return "circumstances" if made else "chance", made, ()


def _own(link: Link, first: Manifest, second: Manifest) -> str:
    """What sets the compared artifacts apart, their inputs as far as their names."""
    is_same = first.content_sha256 == second.content_sha256
    what = "the same bytes, another kind or spec" if is_same else "other bytes"
    if link.because == "circumstances":
        return f"Same recipe, {what}: {_circumstances(link.differs)}."
    if link.because == "chance":
        is_hidden = second.lineage.dirty or second.lineage.commit == "unknown"
        hidden = "the code had changes that lineage does not hold, or " if is_hidden else ""
        return (
            f"Same recipe, {what}, and nothing recorded differs: {hidden}the stage is not deterministic, "
            "or it ran on other hardware."
        )
    inputs = f"{'another input' if len(link.inputs) == 1 else 'other inputs'} ({', '.join(link.inputs)})"
    return f"b was asked for with {_and([*_asked(link.differs), *([inputs] if link.inputs else [])])}."


def _upwards(above: Sequence[Link]) -> Iterator[str]:
    """The first cause among the ancestors, and where else they differ by themselves."""
    causes = [link for link in above if link.because != "inputs"]
    if not causes:
        return
    first, *others = causes
    where = f"{_led(first)} ({first.a} -> {first.b})"
    if first.because == "not in the store":
        yield f"What sets {where} apart cannot be told: one of them is no longer there, or damaged."
    else:
        yield f"The first cause is {where}, {_cause(first)}."
    if others:
        yield f"Others differ by themselves, too: {enumerated([_led(link) for link in others], most=5)}."


def _cause(link: Link) -> str:
    if link.because == "stage":
        return "made by different stages"
    if link.because == "circumstances":
        return f"of the same recipe, where {_circumstances(link.differs)}"
    if link.because == "chance":
        return "of the same recipe, with nothing recorded that differs"
    return f"asked for with {_and(list(_asked(link.differs)))}"


def _asked(differs: Mapping[str, Pair]) -> Iterator[str]:
    """Phrases such as `another seed (0 -> 1)`."""
    config = [
        f"{name.removeprefix('config.')} {_arrow(differs[name])}" for name in differs if name.startswith("config")
    ]
    if config:
        yield f"another config ({enumerated(config, most=4)})"
    if "seed" in differs:
        yield f"another seed ({_arrow(differs['seed'])})"
    if "stage_version" in differs:
        yield f"another version of the stage ({_arrow(differs['stage_version'])})"
    if "sources_sha256" in differs:
        yield "other sources"
    roles = [name.removeprefix("inputs.") for name in differs if name.startswith("inputs.")]
    if roles:
        yield f"an input that only one of them has ({', '.join(roles)})"


def _circumstances(differs: Mapping[str, Pair]) -> str:
    """A phrase such as `the commit differs (73180bbf1a00 -> f17f59ec2ab1)`."""
    return _and([_circumstance(name, pair) for name, pair in differs.items()])


def _circumstance(name: str, pair: Pair) -> str:
    if name == "dirty":
        return "the code was changed without a commit for " + ("a" if pair[0] else "b")
    if name == "commit":
        return f"the commit differs ({' -> '.join(commit[:12] for commit in pair)})"
    return f"{name} differs ({_arrow(pair)})"


def _of_two_stages(first: Manifest, second: Manifest) -> str:
    a, b = (f"a {one.kind!r} made by {one.lineage.stage}" for one in (first, second))
    return f"a is {a}, b {b}: different stages, compared in what both have."


def _relation(first: Manifest, second: Manifest, known: Mapping[ArtifactId, Manifest]) -> str:
    """How the lineage of one goes through the other, or what both were made from."""
    for older, newer, sentence in ((first, second, "b was made from a"), (second, first, "a was made from b")):
        path = _path(newer, older.id, known)
        if path:
            return f"{sentence} ({' > '.join(path)})."
    shared = [role for role, ref in first.lineage.inputs.items() if second.lineage.inputs.get(role) == ref]
    return f"Both were made from the same {' and '.join(shared)}." if shared else ""


def _path(newer: Manifest, older: ArtifactId, known: Mapping[ArtifactId, Manifest]) -> tuple[str, ...]:
    """The roles that lead from an artifact up to this ancestor, the fewest there are; none if it is no ancestor."""
    waiting: deque[tuple[tuple[str, ...], Manifest]] = deque([((), newer)])
    seen = {newer.id}
    while waiting:
        path, manifest = waiting.popleft()
        for role, ref in manifest.lineage.inputs.items():
            if ref.id == older:
                return (*path, role)
            if ref.id in known and ref.id not in seen:
                seen.add(ref.id)
                waiting.append(((*path, role), known[ref.id]))
    return ()


def _besides(link: Link, first: Manifest, second: Manifest) -> str:
    """Circumstances that differ beside the recipe, and may have done their part."""
    made = made_differently(first, second) if link.because in ("recipe", "inputs") else {}
    return f"Besides, {_circumstances(made)}." if made else ""


def _led(link: Link) -> str:
    return " > ".join(link.path)


def _arrow(pair: Pair) -> str:
    return " -> ".join(value if isinstance(value, str) else json.dumps(value) for value in pair)


def _and(phrases: Sequence[str]) -> str:
    return ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else "".join(phrases)
