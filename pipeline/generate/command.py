"""What the command does once its words are read: opens the model, and prints its text."""

import argparse
import sys
from itertools import chain

from artifacts import (
    ArtifactError,
    Store,
    as_command,
    for_stdout,
    show_every_text,
    told,
    writing_to_stdout,
)
from kernels.errors import Mistake
from pipeline.corpus.tokenizer import decoded
from pipeline.generate.sampling import Sampling, generate
from pipeline.opening import open_model


@as_command
def run(args: argparse.Namespace) -> int:
    """Prints the prompt and what follows; 2 after one sentence for what cannot be read."""
    show_every_text()
    try:
        sampling = Sampling(tokens=args.tokens, temperature=args.temperature, top_k=args.top_k, seed=args.seed)
        if not args.prompt:
            raise Mistake("--prompt: got no text, wanted at least one character")
        _check_unicode(args.prompt)
        opened = open_model(Store(args.store), args.id)
    except (ValueError, ArtifactError) as error:
        print(told(error), file=sys.stderr)
        return 2
    tokenizer, context = opened.corpus.tokenizer, opened.context
    ids = tokenizer.encode(args.prompt)
    if len(ids) + sampling.tokens - 1 > context:  # the last token is read by none
        print(
            f"{opened.id} was trained on {context} tokens of context, and the prompt's {len(ids)} with the "
            f"{sampling.tokens} to add are more: each token sees the {context} before it and no older ones",
            file=sys.stderr,
        )
    added = generate(opened.model, ids, sampling, context=context)
    for text in chain(decoded(tokenizer, chain(ids, added)), "\n"):
        with writing_to_stdout(as_it_is=True):  # each as soon as it is there
            print(for_stdout(text), end="")
    return 0


def _check_unicode(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # a byte of the command line that is no text is half a surrogate pair in it
        raise Mistake(
            f"--prompt: got {prompt[error.start]!r} as character {error.start + 1}, a lone surrogate or a byte that is "
            "no UTF-8; wanted Unicode text"
        ) from None
