"""find: prints which experts, scores and features a token goes with."""

import argparse

from artifacts import Store
from artifacts.terminal import say
from kernels.errors import Mistake
from pipeline.symbolic.asking.find import find as ask
from pipeline.symbolic.asking.find import token_of
from pipeline.symbolic.asking.told import found_lines
from pipeline.symbolic.asking.words import known_words
from pipeline.symbolic.commands.asked import open_asked


def find(store: Store, args: argparse.Namespace) -> int:
    for name, least in (("back", 0), ("most", 1), ("tokens", 1)):
        if (value := getattr(args, name)) < least:
            raise Mistake(f"--{name}: got {value}, wanted at least {least}")
    opened = open_asked(store, args.id)
    tokens = [token_of(opened.corpus, text) for text in args.token]
    words = known_words(store, opened.id)
    answers = ask(opened, words, tokens, back=args.back, sample=args.tokens, most=args.most)
    for number, answer in enumerate(answers):
        say(answer.model_dump_json() if args.json else "\n".join([*([""] * bool(number)), *found_lines(answer)]))
    return 0
