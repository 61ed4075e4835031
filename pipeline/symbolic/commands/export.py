"""export: writes a model as one C source."""

import argparse
import sys
from pathlib import Path

from artifacts import Store
from artifacts.terminal import say
from pipeline.symbolic.exporting.export import export as write_export


def export(store: Store, args: argparse.Namespace) -> int:
    made = write_export(store, args.id, Path(args.to), num_tokens=args.tokens, length=args.length)
    if args.length is not None and made.length < args.length:
        print(
            f"--length: got {args.length}, and the model was trained on {made.length} tokens of context: the windows "
            f"are of {made.length}",
            file=sys.stderr,
        )
    say(f"{made.folder}: {made.loss_nats:.6f} nats a token on {made.num_tokens:,} tokens; `make check` compares")
    return 0
