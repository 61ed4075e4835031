"""What differs between two artifacts: what was asked for, where it ran, and what came out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    """The differences of two artifacts of any stages."""
    metrics = _paired(dict(first.metrics), dict(second.metrics))
    return Comparison(
        recipe=_unequal(_paired(_recipe(first), _recipe(second))),
        circumstance=_unequal(_paired(_circumstance(first), _circumstance(second))),
        metrics=dict(metrics),
        files=_unequal(_paired(_digests(first), _digests(second))),
    )


def _recipe(manifest: Manifest) -> dict[str, Any]:
    lineage = manifest.lineage
    fields = {name: getattr(lineage, name) for name in ("stage", "stage_version", "seed", "sources_sha256")}
    fields |= dict(_dotted(lineage.config, "config"))
    return fields | {f"inputs.{role}": ref.id for role, ref in lineage.inputs.items()}


def _dotted(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _dotted(item, f"{name}.{key}")
    else:
        yield name, value


def _circumstance(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest.lineage, name) for name in _CIRCUMSTANCES}


def _digests(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.files.items()}


def _paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, Pair]]:
    for name in dict.fromkeys([*first, *second]):
        yield name, (first.get(name, ABSENT), second.get(name, ABSENT))


def _unequal(pairs: Iterator[tuple[str, Pair]]) -> dict[str, Pair]:
    return {name: (a, b) for name, (a, b) in pairs if a != b}
