"""What differs between two artifacts: what was asked for, where it ran, and what came out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artifacts.fingerprint import canonical_json
from artifacts.lineage import ArtifactId
from artifacts.manifest import Manifest

ABSENT = "(absent)"
_CIRCUMSTANCES = ("commit", "dirty", "torch", "python", "device")  # time always differs and explains nothing

Pair = tuple[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Pairs (of the first, of the second), by name; a value that one does not have is ABSENT."""

    recipe: dict[str, Pair]
    """What differs in stage, version, seed, sources, config (dotted, field by field) and inputs."""
    circumstance: dict[str, Pair]
    """What differs in code, libraries and device."""
    metrics: dict[str, Pair]
    """All metrics, equal or not."""
    files: dict[str, Pair]
    """The sha256 of files that differ."""


def compare(first: Manifest, second: Manifest) -> Comparison:
    """The differences of two artifacts; of different stages, in the settings that both have."""
    return Comparison(
        recipe=asked_differently(first, second) | other_inputs(first, second),
        circumstance=made_differently(first, second),
        metrics=dict(_paired(first.metrics, second.metrics)),
        files=_unequal(_paired(_digests(first), _digests(second))),
    )


def asked_differently(first: Manifest, second: Manifest) -> dict[str, Pair]:
    """What differs in the recipe apart from the inputs."""
    pairs = _unequal(_paired(_asked(first), _asked(second)))
    return pairs if first.lineage.stage == second.lineage.stage else _shared(pairs)


def other_inputs(first: Manifest, second: Manifest) -> dict[str, Pair]:
    """The inputs that differ, as `inputs.<role>`."""
    pairs = _unequal(_paired(_inputs(first), _inputs(second)))
    return pairs if first.lineage.stage == second.lineage.stage else _shared(pairs)


def made_differently(first: Manifest, second: Manifest) -> dict[str, Pair]:
    """What differs in code, libraries and device."""
    return _unequal(_paired(_circumstance(first), _circumstance(second)))


def differing(manifests: Sequence[Manifest]) -> dict[str, tuple[Any, ...]]:
    """What differs in the recipes of several artifacts, inputs included: values in order, ABSENT where one lacks it.

    Of different stages only what two of them have.
    """
    one_stage = len({manifest.lineage.stage for manifest in manifests}) == 1
    recipes = [{**_asked(manifest), **_inputs(manifest)} for manifest in manifests]
    found = {}
    for name in dict.fromkeys(name for recipe in recipes for name in recipe):
        values = tuple(recipe.get(name, ABSENT) for recipe in recipes)
        known = [value for value in values if one_stage or value != ABSENT]
        if (one_stage or name != "stage_version") and len({canonical_json(value) for value in known}) > 1:
            found[name] = values
    return found


def measured(manifests: Sequence[Manifest]) -> dict[str, tuple[Any, ...]]:
    """The metrics that two of them have, in the order of the first that has them; ABSENT where one has none."""
    names = dict.fromkeys(name for manifest in manifests for name in manifest.metrics)
    values = {name: tuple(manifest.metrics.get(name, ABSENT) for manifest in manifests) for name in names}
    return {name: found for name, found in values.items() if sum(value != ABSENT for value in found) > 1}


def dotted(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, each by its path with dots between."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from dotted(item, f"{name}.{key}")
    else:
        yield name, value


def _asked(manifest: Manifest) -> dict[str, Any]:
    lineage = manifest.lineage
    fields = {name: getattr(lineage, name) for name in ("stage", "stage_version", "seed", "sources_sha256")}
    return fields | dict(dotted(lineage.config, "config"))


def _inputs(manifest: Manifest) -> dict[str, ArtifactId]:
    return {f"inputs.{role}": ref.id for role, ref in manifest.lineage.inputs.items()}


def _shared(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """Those that both have. Versions count within a stage."""
    return {name: pair for name, pair in pairs.items() if ABSENT not in pair and name != "stage_version"}


def _circumstance(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest.lineage, name) for name in _CIRCUMSTANCES}


def _digests(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.files.items()}


def _paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, Pair]]:
    for name in dict.fromkeys([*first, *second]):
        yield name, (first.get(name, ABSENT), second.get(name, ABSENT))


def _unequal(pairs: Iterator[tuple[str, Pair]]) -> dict[str, Pair]:
    # By their JSON, as recipes are told apart: to Python 1, 1.0 and True are equal.
    return {name: (a, b) for name, (a, b) in pairs if canonical_json(a) != canonical_json(b)}
