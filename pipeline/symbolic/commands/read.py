"""read: prints which experts fire on each token of a text, or writes it as a page."""

import argparse
import sys
from pathlib import Path

from artifacts import Store
from artifacts.terminal import say, told
from kernels.errors import Mistake
from pipeline.symbolic.asking.read import read as ask
from pipeline.symbolic.asking.read_page import read_page
from pipeline.symbolic.asking.told import read_lines
from pipeline.symbolic.asking.words import known_words
from pipeline.symbolic.commands.asked import open_asked


def read(store: Store, args: argparse.Namespace) -> int:
    if args.most < 1:
        raise Mistake(f"--most: got {args.most}, wanted at least 1")
    if args.json and args.to:
        raise Mistake("--json prints, and --to writes a page; give one of them")
    text = _text(args.text, args.file)
    opened = open_asked(store, args.id)
    answer = ask(opened, known_words(store, opened.id), text, most=args.most, layers=args.layer)
    if answer.tokens_given > len(answer.tokens):
        cut = f"the first {len(answer.tokens)} of {answer.tokens_given:,} tokens are read"
        print(told(f"{opened.id} was trained on {opened.context} tokens of context: {cut}"), file=sys.stderr)
    if args.to:
        Path(args.to).write_text(read_page(answer), encoding="utf-8")
        say(f"{args.to}: {len(answer.tokens)} tokens; open it in a browser")
    else:
        say(answer.model_dump_json() if args.json else "\n".join(read_lines(answer)))
    return 0


def _text(text: str | None, file: str | None) -> str:
    """ValueError for what is no Unicode text, and for a file that cannot be read."""
    if text is not None:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a byte of the command line that is no text is half a surrogate pair
            raise Mistake(
                f"--text: got {text[error.start]!r} as character {error.start + 1}, a lone surrogate or a byte that is "
                "no UTF-8; wanted Unicode text"
            ) from None
        return text
    assert file is not None, "argparse wants one of them"
    try:
        return Path(file).read_bytes().decode()
    except OSError as error:
        raise Mistake(f"--file: {file} cannot be read ({error.strerror or error}); name a file of text") from None
    except UnicodeDecodeError as error:
        raise Mistake(f"--file: byte {error.start} of {file} is no UTF-8; wanted a file of Unicode text") from None
