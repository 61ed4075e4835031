"""ablate: prints what some experts of a model are worth."""

import argparse

from artifacts import Store
from artifacts.terminal import say
from kernels.errors import Mistake
from pipeline.symbolic.asking.ablate import worth
from pipeline.symbolic.asking.told import worth_lines
from pipeline.symbolic.commands.asked import open_asked


def ablate(store: Store, args: argparse.Namespace) -> int:
    if args.tokens < 1:
        raise Mistake(f"--tokens: got {args.tokens}, wanted at least 1")
    opened = open_asked(store, args.id)
    answer = worth(opened, args.layer, args.expert, tokens=args.tokens, prompt=args.prompt)
    say(answer.model_dump_json() if args.json else "\n".join(worth_lines(answer)))
    return 0
