"""Experts of a model, read and asked: python -m pipeline.symbolic find | read | show | ablate | kan | export"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

Command = Callable[[str, str], argparse.ArgumentParser]
"""Adds one of this name and summary."""


class _Parser(argparse.ArgumentParser):
    """Says what artifacts.CommandParser says; loads it, and pydantic, only where argparse's own words won't do."""

    def error(self, message: str) -> NoReturn:
        if len(message) > 200 or not message.isprintable():
            from artifacts import told

            message = told(message)
        super().error(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0 is well, 2 is an error told in one sentence."""
    args = _parser().parse_args(arguments)
    # Only now: who asks for --help, or mistypes an option, does not wait for torch.
    from pipeline.symbolic.commands.run import run

    return run(args)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pipeline.symbolic", description="Reads and asks the experts of a model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary)
        made.add_argument(
            "id",
            metavar="ID",
            help="an id, its beginning, that of its fingerprint, or 'latest': of symbols, where there are any",
        )
        made.add_argument("--store", default="store", metavar="DIR", help="folder of the store (default: store)")
        return made

    for add in (_find, _read, _show, _ablate, _kan, _export):
        add(command)
    return parser


def _find(command: Command) -> None:
    find = command("find", "Find the experts, scores and features that a token goes with.")
    find.add_argument(
        "--token", action="append", required=True, metavar="TEXT", help="a token, spaces included; again for more"
    )
    find.add_argument("--back", type=int, default=0, metavar="N", help="look N tokens behind it (default: 0, on it)")
    find.add_argument("--most", type=int, default=8, metavar="N", help="so many of a kind (default: 8)")
    find.add_argument("--tokens", type=int, default=8192, help="held-out tokens to count on (default: 8192)")
    find.add_argument("--json", action="store_true", help="all figures as data, a line a token")


def _read(command: Command) -> None:
    read = command("read", "Read a text: which experts fire on each token, and what is known of them.")
    text = read.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", metavar="TEXT", help="the text")
    text.add_argument(
        "--file", metavar="FILE", help="a file of UTF-8, of which as much is read as the model was trained on"
    )
    read.add_argument("--layer", type=int, action="append", metavar="L", help="this layer alone; again for more")
    read.add_argument("--most", type=int, default=3, metavar="N", help="experts a token and layer (default: 3)")
    read.add_argument("--json", action="store_true", help="all of it as data")
    read.add_argument("--to", metavar="FILE.html", help="write a coloured page instead")


def _show(command: Command) -> None:
    summary = "Show one expert of symbols; without --expert list those of a layer, without --layer of every layer."
    show = command("show", summary)
    show.add_argument("--layer", type=int, metavar="L", help="number of the layer, from 0")
    show.add_argument("--expert", type=int, metavar="E", help="number of the expert in its layer, from 0")
    show.add_argument("--most", type=int, default=20, metavar="N", help="experts that are listed (default: 20)")
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


def _ablate(command: Command) -> None:
    summary = "Leave experts out: what the loss on held-out text and a continuation are without them."
    ablate = command("ablate", summary)
    ablate.add_argument("--layer", type=int, required=True, metavar="L", help="number of the layer, from 0")
    ablate.add_argument(
        "--expert", type=int, required=True, nargs="+", metavar="E", help="numbers of experts in it, from 0"
    )
    ablate.add_argument("--tokens", type=int, default=16_384, help="held-out tokens to measure on (default: 16384)")
    ablate.add_argument(
        "--prompt", metavar="TEXT", help="text to go on from (default: before the token that it hurts most)"
    )
    ablate.add_argument("--json", action="store_true", help="all figures as data")


def _kan(command: Command) -> None:
    kan = command("kan", "Write one expert's formula as a KAN that pykan loads, plots, edits and refits.")
    kan.add_argument("--layer", type=int, required=True, metavar="L", help="number of the layer, from 0")
    kan.add_argument("--expert", type=int, required=True, metavar="E", help="number of the expert in it, from 0")
    kan.add_argument("--to", required=True, metavar="DIR", help="folder to write, new or empty")


def _export(command: Command) -> None:
    export = command("export", "Write a model as one C source with tables and a check: it needs no Python.")
    export.add_argument("--to", required=True, metavar="DIR", help="folder to write, new or empty")
    export.add_argument("--tokens", type=int, default=16_384, help="held-out tokens to check it on (default: 16384)")
    export.add_argument(
        "--length", type=int, help="tokens of a window of them (default, and at most: those that it was trained on)"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
