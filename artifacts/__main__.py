"""The store on the command line: python -m artifacts ls | show | tree | diff | card | verify | rm | gc."""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts.ancestry import known_ancestry
from artifacts.cards import headline, number, signed
from artifacts.comparison import ABSENT, compare
from artifacts.errors import ArtifactError
from artifacts.explanation import Link, explain
from artifacts.layout import aligned, terminal_width
from artifacts.manifest import Manifest
from artifacts.model_card import model_card
from artifacts.store import Listing, Store
from artifacts.terminal import CommandParser, as_command, on_one_line, say, show_every_text, store_folder, told
from artifacts.tree import family, text_tree
from artifacts.verification import Damage


@as_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0 is well, 1 is damage found by `verify`, 2 is an error told in one sentence."""
    show_every_text()
    args = _parser().parse_args(arguments)
    try:
        store = Store(args.store)
        if args.command in (_ls, _tree, _gc):  # the others tell by themselves that what they are to open is not there
            store.require_folder()
        return args.command(store, args)
    except OSError as error:
        print(told(f"cannot use the store at {args.store}: {error}"), file=sys.stderr)
        return 2
    except ArtifactError as error:
        print(told(error), file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m artifacts", description="Looks into a store of artifacts.")
    _add_common(parser, store="store", json=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        # Without SUPPRESS a subcommand's default would overwrite what stood before the subcommand.
        _add_common(sub, store=argparse.SUPPRESS, json=argparse.SUPPRESS)
        sub.set_defaults(command=command)
        return sub

    id_help = "an id, its beginning, the beginning of its fingerprint, or 'latest'"
    add("ls", _ls, "List all artifacts, oldest first.").add_argument("--kind", help="only artifacts of this kind")
    add("show", _show, "Show one artifact.").add_argument("id", metavar="ID", help=id_help)
    tree = add("tree", _tree, "Show what was made from what: the whole store, or one artifact's family.")
    tree.add_argument("id", metavar="ID", nargs="?", help=id_help)
    diff = add("diff", _diff, "Show what differs between two artifacts, and why.")
    diff.add_argument("first", metavar="A", help=id_help)
    diff.add_argument("second", metavar="B", help=id_help)
    card = add(
        "card", _card, "Print an artifact's card for the Hugging Face Hub: python -m artifacts card ID > README.md"
    )
    card.add_argument("id", metavar="ID", help=id_help)
    verify = add("verify", _verify, "Check every byte of every artifact; exit 1 if anything is damaged.")
    verify.add_argument(
        "--measure",
        action="store_true",
        help="also measure every model anew from its file, and compare with what its manifest says (minutes)",
    )
    add("rm", _rm, "Remove an artifact that nothing was made from.").add_argument("id", metavar="ID", help=id_help)
    add("gc", _gc, "Remove what killed runs left behind; artifacts stay.")
    return parser


def _add_common(parser: argparse.ArgumentParser, *, store: str, json: bool | str) -> None:
    parser.add_argument(
        "--store", type=store_folder, default=store, metavar="DIR", help="folder of the store (default: store)"
    )
    parser.add_argument("--json", action="store_true", default=json, help="print JSON")


def _ls(store: Store, args: argparse.Namespace) -> int:
    listing = store.listing()
    if args.kind is not None:
        _require_kind(args.kind, listing)
    manifests = [m for m in listing.manifests if args.kind in (None, m.kind)]
    if args.json:
        _print_json([_summary(m) for m in manifests])
    elif manifests:
        rows = [(m.id, m.kind, f"{m.bytes:,} B", m.lineage.created, headline(m)) for m in manifests]
        _print_columns(rows, optional=(3, 2, 1))
    else:
        say(f"{store.root} holds no artifact yet.")
    _name(listing.damaged)
    return 0


def _require_kind(kind: str, listing: Listing) -> None:
    """ArtifactError for a kind of which the store has nothing; one that is empty or damaged throughout knows none."""
    known = sorted({manifest.kind for manifest in listing.manifests})
    if known and kind not in known:
        raise ArtifactError(f"the store holds no artifact of kind {kind!r}; it has: {', '.join(known)}")


def _show(store: Store, args: argparse.Namespace) -> int:
    manifest = store.manifest(args.id)
    if args.json:
        _print_json(_summary(manifest))
        return 0
    lineage = manifest.lineage
    say(f"{manifest.id}\n")
    rows = [
        ("kind", manifest.kind),
        ("folder", str(store.root / manifest.id)),
        ("bytes", f"{manifest.bytes:,}"),
        ("contents", f"sha256 {manifest.content_sha256}"),
        ("stage", f"{lineage.stage}, version {lineage.stage_version}, seed {lineage.seed}"),
        ("made", f"{lineage.created}, in {lineage.seconds:,.1f} s on {lineage.device}"),
        ("sequence", str(lineage.sequence)),
        ("code", f"{lineage.commit}{', with changes' if lineage.dirty else ''}"),
        ("with", f"torch {lineage.torch}, Python {lineage.python}"),
    ]
    rows += [(f"from {role}", ref.id) for role, ref in lineage.inputs.items()]
    rows += [(name, f"{record.bytes:,} B") for name, record in manifest.files.items()]
    _print_columns([*rows, *((name, number(value)) for name, value in manifest.metrics.items())])
    say(f"\nconfig {json.dumps(lineage.config, indent=2)}\nspec {json.dumps(manifest.spec, indent=2)}")
    return 0


def _tree(store: Store, args: argparse.Namespace) -> int:
    listing = store.listing()
    manifests, damaged, id = listing.manifests, listing.damaged, None
    if args.id is not None:
        id = store.manifest(args.id).id
        ancestry = known_ancestry(store, [id])
        manifests, damaged = family(id, ancestry.manifests, manifests), ancestry.missing
    if args.json:
        _print_json([_summary(m) for m in manifests])
    elif manifests:
        say(text_tree(manifests, id))
    _name(damaged)
    return 0


def _diff(store: Store, args: argparse.Namespace) -> int:
    first, second = store.manifest(args.first), store.manifest(args.second)
    comparison, ancestry = compare(first, second), known_ancestry(store, [first.id, second.id])
    why = explain(first, second, {ancestor.id: ancestor for ancestor in ancestry.manifests})
    if args.json:
        sides = {"a": first.id, "b": second.id, "why": dataclasses.asdict(why)}
        _print_json({**sides, **dataclasses.asdict(comparison)})
        return 0
    say(f"a  {first.id}\nb  {second.id}\n\n{on_one_line(why.text)}")
    if len(why.chain) > 1:
        say("\nfrom the first difference on:")
        _print_columns([_linked(link) for link in why.chain])
    for title, pairs in (("recipe", comparison.recipe), ("circumstances", comparison.circumstance)):
        _print_part(title, [(f"  {name}", _shown(a), "->", _shown(b)) for name, (a, b) in pairs.items()])
    _print_part("files", [(f"  {name}",) for name in comparison.files])
    unequal = {name: pair for name, pair in comparison.metrics.items() if pair[0] != pair[1]}
    _print_part("metrics: a, b, change", [(f"  {name}", *_measured(a, b)) for name, (a, b) in unequal.items()])
    return 0


def _print_part(title: str, rows: Sequence[Sequence[str]]) -> None:
    """What differs, under its title; nothing of what is equal."""
    if rows:
        say(f"\n{title}")
        _print_columns(rows)


def _card(store: Store, args: argparse.Namespace) -> int:
    manifest = store.manifest(args.id)
    ancestry = known_ancestry(store, [manifest.id])
    card = model_card(manifest, ancestry.manifests, ancestry.missing)
    _print_json({"id": manifest.id, "card": card}) if args.json else say(card.removesuffix("\n"))
    _name(ancestry.missing)
    return 0


def _verify(store: Store, args: argparse.Namespace) -> int:
    if not store.root.is_dir():
        raise ArtifactError(f"there is no store at {store.root} to verify; name its folder with --store")
    checked, damaged = len(store.ids()), store.verify()
    report = {"checked": checked, "damaged": [dataclasses.asdict(damage) for damage in damaged]}
    if not args.json:
        _name(damaged)
        broken = len({damage.id for damage in damaged})
        verdict = f"{broken} damaged" if broken else "none damaged"
        say(f"{checked} checked, {verdict}.")
    code = 1 if damaged else 0
    if args.measure and not damaged:
        done = _measured_anew(store, args.json)
        code = done.returncode
        if args.json and code in (0, 1):
            report["measured"] = json.loads(done.stdout)
    if args.json:
        _print_json(report)
    return code


def _measured_anew(store: Store, as_json: bool) -> subprocess.CompletedProcess[str]:
    """By a process of its own: what a model is, this package does not know."""
    command = [sys.executable, "-m", "stages.remeasure", "--store", str(store.root.resolve()), *["--json"] * as_json]
    application = Path(__file__).resolve().parents[1]
    return subprocess.run(command, cwd=application, check=False, text=True, stdout=subprocess.PIPE if as_json else None)


def _rm(store: Store, args: argparse.Namespace) -> int:
    id = store.remove(args.id)
    _print_json({"removed": id}) if args.json else say(f"{id} removed.")
    return 0


def _gc(store: Store, args: argparse.Namespace) -> int:
    removed = store.collect_garbage()
    if args.json:
        _print_json({"removed": removed})
    else:
        say("\n".join(f"{name} removed." for name in removed) or "Nothing to remove.")
    return 0


def _summary(manifest: Manifest) -> dict[str, Any]:
    """The manifest with what a script asks for most at the top."""
    lineage = manifest.lineage
    asked = {"stage": lineage.stage, "created": lineage.created, "sequence": lineage.sequence}
    return {
        "id": manifest.id,
        "kind": manifest.kind,
        **asked,
        "bytes": manifest.bytes,
    } | manifest.model_dump()


def _name(damaged: Sequence[Damage]) -> None:
    for damage in damaged:
        print(told(f"damaged: {damage.id}: {damage.what}"), file=sys.stderr)


def _measured(a: Any, b: Any) -> tuple[str, str, str]:
    shown_a, shown_b = (value if value == ABSENT else number(value) for value in (a, b))
    return shown_a, shown_b, "" if ABSENT in (a, b) else signed(b - a)


def _linked(link: Link) -> tuple[str, ...]:
    own = [f"{name} {' -> '.join(map(_shown, pair))}" for name, pair in link.differs.items()]
    read = [f"inputs {', '.join(link.inputs)}"] if link.inputs else []
    return f"  {link.a}", "->", link.b, "; ".join([*own, *read] or [link.because])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _print_columns(rows: Sequence[Sequence[str]], *, optional: Sequence[int] = ()) -> None:
    """In columns, the optional ones as far as the terminal is wide enough."""
    if rows:
        say(aligned(rows, width=terminal_width(), optional=optional))


def _print_json(value: object) -> None:
    say(json.dumps(value, indent=2))


if __name__ == "__main__":
    sys.exit(main())
