"""`python -m pipeline.compare A B C`: several artifacts side by side: which settings differ, metrics, training curves.

Settings that are equal are not shown; metrics that two of them have are. Of artifacts of different stages what two of
them have is compared. `python -m artifacts diff A B` says why two artifacts differ, up to the first cause.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import (
    ArtifactError,
    ArtifactId,
    CommandParser,
    Manifest,
    Store,
    as_command,
    show_every_text,
    store_folder,
    told,
)
from artifacts.cards import number
from artifacts.comparison import ABSENT, differing, measured
from artifacts.layout import grid, reading_width
from artifacts.names import short
from artifacts.terminal import say
from kernels.errors import Mistake

if TYPE_CHECKING:
    from pipeline.training.training_curve import Curve

_ABOUT = "Artifacts side by side: which settings differ, metrics, and with --to their training curves in one picture."
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_PANELS = 4
CURVE_FILE = "training.csv"


def comparison(manifests: Sequence[Manifest], width: int) -> str:
    """The text: a letter for each artifact, then tables with a column for each letter."""
    letters = LETTERS[: len(manifests)]
    parts = ["\n".join(f"{letter}  {manifest.id}" for letter, manifest in zip(letters, manifests, strict=True))]
    settings = {
        name.removeprefix("config."): [_setting(name, value) for value in values]
        for name, values in differing(manifests).items()
    }
    metrics = {name: list(map(_metric, values)) for name, values in measured(manifests).items()}
    for title, found, none in (
        ("settings that differ", settings, "no setting differs"),
        ("metrics", metrics, "no metric that two of them have"),
    ):
        rows = [(name, *values) for name, values in found.items()]
        parts.append(grid((title, *letters), rows, width=width) if rows else none)
    return "\n\n".join(parts)


def _setting(name: str, value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if value == ABSENT:
        return ""
    return short(ArtifactId(value)) if name.startswith("inputs.") else value


def _metric(value: Any) -> str:
    return "" if value == ABSENT else number(value)


def curves_of(store: Store, manifests: Sequence[Manifest]) -> dict[str, "Curve"]:
    """The training curves of those that have one, by letter and stage."""
    from pipeline.training.training_curve import from_csv

    named = {f"{letter}  {manifest.id}": manifest for letter, manifest in zip(LETTERS, manifests, strict=False)}
    return {
        label: from_csv(store.open(manifest.id).files()[CURVE_FILE].read_bytes())
        for label, manifest in named.items()
        if CURVE_FILE in manifest.files
    }


def shared_numbers(curves: Mapping[str, "Curve"]) -> list[str]:
    """What is drawn: the numbers that two curves have; where they share none, those that any has."""
    reported = [dict.fromkeys(name for point in curve for name in point.numbers) for curve in curves.values()]
    names = list(dict.fromkeys(name for of_one in reported for name in of_one))
    shared = [name for name in names if sum(name in of_one for of_one in reported) > 1]
    return (shared or names)[:MOST_PANELS]


def _draw(store: Store, manifests: Sequence[Manifest], to: Path) -> str:
    """Writes the picture; what is said of it."""
    curves = curves_of(store, manifests)
    if not curves:
        raise Mistake(f"--to: none of them has a training curve ({CURVE_FILE}); only what was trained has one")
    from pipeline.figures.overlay import overlaid

    numbers = shared_numbers(curves)
    picture = overlaid(f"Training curves of {len(curves)} artifacts", curves, numbers)
    try:
        to.write_bytes(picture)
    except OSError as error:
        raise Mistake(f"--to: {to} cannot be written ({error.strerror}); name another file") from error
    without = len(manifests) - len(curves)
    return f"{to}: {', '.join(numbers)} of {len(curves)} artifacts" + (f", {without} have no curve" if without else "")


@as_command
def main(arguments: Sequence[str]) -> int:
    show_every_text()
    parser = CommandParser(prog="python -m pipeline.compare", description=_ABOUT)
    parser.add_argument(
        "ids", nargs="+", metavar="ID", help="two artifacts or more: ids, their beginnings, or 'latest'"
    )
    parser.add_argument("--to", type=Path, metavar="FILE.png", help="draw their training curves into this file")
    parser.add_argument("--store", type=store_folder, default="store", help="folder of the artifacts (default: store)")
    values = parser.parse_args(arguments)
    try:
        text = _compared(Store(values.store), values.ids, values.to)
    except (ArtifactError, Mistake) as error:
        print(told(error), file=sys.stderr)  # noqa: T201
        return 2
    say(text)
    return 0


def _compared(store: Store, ids: Sequence[str], to: Path | None) -> str:
    if not 2 <= len(ids) <= len(LETTERS):
        raise Mistake(f"got {len(ids)} artifacts, wanted 2 to {len(LETTERS)}")
    manifests = [store.manifest(id) for id in ids]
    text = comparison(manifests, reading_width())
    return text if to is None else f"{text}\n\n{_draw(store, manifests, to)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
