"""Reads experts of a symbols model, writes one as a KAN or all as C: python -m pipeline.symbolic show | kan | export"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from artifacts import (
    ArtifactError,
    CommandParser,
    Store,
    as_command,
    show_every_text,
    store_folder,
    told,
    writing_to_stdout,
)
from kernels.errors import Mistake
from pipeline.symbolic.exporting.export import export as write_export
from pipeline.symbolic.exporting.kan_folder import write_kan
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.magnitudes import DIGITS
from pipeline.symbolic.showing.opened import OpenedSymbols, open_symbols, sample
from pipeline.symbolic.showing.printed import data_of, show_expert, show_layers
from pipeline.symbolic.showing.reading import Reading, read_expert


@as_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0 is well, 2 is an error told in one sentence."""
    show_every_text()
    args = _parser().parse_args(arguments)
    if args.command == "export":
        return _export(args)
    if args.command == "kan":
        return _kan(args)
    try:
        opened, layers, reading = _chosen(args)
    except (ArtifactError, ValueError) as error:
        print(told(error), file=sys.stderr)
        return 2
    with writing_to_stdout():
        if args.json and reading is not None:
            print(data_of(opened, reading).model_dump_json())
        elif reading is None:
            show_layers(opened, layers)
        else:
            show_expert(opened, reading, in_latex=args.latex, whole=args.all)
    return 0


def _chosen(args: argparse.Namespace) -> tuple[OpenedSymbols, list[int], Reading | None]:
    """What was asked for: an artifact, some of its layers, and where one was named an expert."""
    layer, expert = args.layer, args.expert
    if expert is not None and layer is None:
        raise Mistake("an expert has a number within its layer; give --layer too")
    if args.command == "show" and expert is None and (args.json or args.all):
        raise Mistake(f"--{'json' if args.json else 'all'} is of one expert; give --layer and --expert too")
    opened = open_symbols(Store(args.store), args.id)
    if layer is None:
        return opened, list(range(len(opened.model.blocks()))), None
    symbol_experts(opened.model, layer)
    if expert is None:
        return opened, [layer], None
    digits = None if args.command == "show" and args.all else DIGITS
    names = opened.names[layer]
    return opened, [layer], read_expert(opened.model, layer, expert, names, opened.vocabulary, digits=digits)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m pipeline.symbolic", description="Reads experts as symbols.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary)
        made.add_argument(
            "id", metavar="ID", help="an id, its beginning, the beginning of its fingerprint, or 'latest'"
        )
        made.add_argument(
            "--store", type=store_folder, default="store", metavar="DIR", help="folder of the store (default: store)"
        )
        return made

    summary = "Show one expert; without --expert the largest of a layer, without --layer those of every layer."
    show = command("show", summary)
    show.add_argument("--layer", type=int, metavar="L", help="number of the layer, from 0")
    show.add_argument("--expert", type=int, metavar="E", help="number of the expert in its layer, from 0")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--latex", action="store_true", help="print rule and formula as LaTeX too")
    form.add_argument(
        "--all", action="store_true", help="drop no term, round no number: all scores, features and coordinates"
    )
    form.add_argument(
        "--json",
        action="store_true",
        help="print all that computes the expert as data (pipeline/symbolic/showing/expert_form)",
    )
    summary = "Write one expert's formula as a KAN that pykan loads, plots, edits and refits."
    kan = command("kan", summary)
    kan.add_argument("--layer", type=int, required=True, metavar="L", help="number of the layer, from 0")
    kan.add_argument("--expert", type=int, required=True, metavar="E", help="number of the expert in it, from 0")
    kan.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    summary = "Write a model as one C source with its tables and a check, which needs no Python."
    export = command("export", summary)
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    export.add_argument("--tokens", type=int, default=16_384, help="held-out tokens to check it on (default: 16384)")
    export.add_argument(
        "--length", type=int, help="tokens of a window of them (default, and at most: those that it was trained on)"
    )
    return parser


def _export(args: argparse.Namespace) -> int:
    try:
        made = write_export(Store(args.store), args.id, args.to, num_tokens=args.tokens, length=args.length)
    except (ArtifactError, ValueError) as error:
        print(told(error), file=sys.stderr)
        return 2
    except OSError as error:
        if not _is_of(args.to, error):
            raise
        return _unwritable(args.to, error)
    if args.length is not None and made.length < args.length:
        print(
            f"--length: got {args.length}, and the model was trained on {made.length} tokens of context: the windows "
            f"are of {made.length}",
            file=sys.stderr,
        )
    with writing_to_stdout():
        print(f"{made.folder}: {made.loss_nats:.6f} nats a token on {made.num_tokens:,} tokens; `make check` compares")
    return 0


def _kan(args: argparse.Namespace) -> int:
    try:
        opened, layers, reading = _chosen(args)
        assert reading is not None
        tokens_WT, _ = sample(opened, layers)
        states = write_kan(opened.model, reading, tokens_WT, args.to, id=opened.id)
    except (ArtifactError, ValueError) as error:
        print(told(error), file=sys.stderr)
        return 2
    except OSError as error:
        if not _is_of(args.to, error):
            raise
        return _unwritable(args.to, error)
    coordinates = f"{reading.num_coordinates} coordinates"
    with writing_to_stdout():
        print(f"{args.to}: {reading.tier.name}, {coordinates}, {states:,} states; see its README.md")
    return 0


def _is_of(folder: Path, error: OSError) -> bool:
    """Whether it befell the folder that is written, what lies in it, or one above it; a full disk names no file."""
    if error.filename is None:
        return True
    path = Path(error.filename)
    inside = any(part == folder.name or part.startswith(f".{folder.name}.") for part in path.parts)
    return inside or path in folder.parents


def _unwritable(folder: Path, error: OSError) -> int:
    print(f"--to: {folder} cannot be written ({error.strerror or error}); name another folder", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
