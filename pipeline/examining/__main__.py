"""`python -m pipeline.examining RECORD.safetensors`: what a record of firings says of superposition among experts."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

LISTED = 30


def main(arguments: Sequence[str]) -> int:
    """Prints a table or JSON; 2 after one sentence for a record that cannot be examined."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.examining", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "record", type=Path, metavar="RECORD", help="safetensors; layout: docs/methods/superposition.md"
    )
    parser.add_argument("--json", action="store_true", help="print every pair and figure as JSON")
    parser.add_argument("--shuffle-labels", action="store_true", help="the null of joint codes: labels in random order")
    parser.add_argument("--seed", type=int, default=0, help="of random pairs, bootstrap and shuffling (default: 0)")
    parser.add_argument("--random", type=int, default=2_000, help="pairs drawn without a lift (default: 2000)")
    parser.add_argument("--most", type=int, default=10_000, help="significant pairs to test for codes (default: 10000)")
    parser.add_argument("--listed", type=int, default=LISTED, help=f"pairs in the table (default: {LISTED})")
    values = parser.parse_args(arguments)
    for name in ("seed", "random", "most", "listed"):
        if getattr(values, name) < 0:
            parser.error(f"--{name}: got {getattr(values, name)}, wanted 0 or more")
    # Here and not above, so that --help does not wait for torch.
    from artifacts.terminal import as_command

    return as_command(_run)(values)


def _run(values: argparse.Namespace) -> int:
    from artifacts import ArtifactError, show_every_text, told
    from artifacts.terminal import say
    from kernels.errors import Mistake
    from pipeline.examining.battery import examine
    from pipeline.examining.printing import as_data, as_text
    from pipeline.examining.record import read_record, with_shuffled_labels

    show_every_text()
    try:
        record = read_record(values.record)
        if values.shuffle_labels:
            record = with_shuffled_labels(record, values.seed)
    except (ArtifactError, Mistake) as error:
        print(told(error), file=sys.stderr)
        return 2
    found = examine(record, seed=values.seed, random_pairs=values.random, most_pairs=values.most)
    say(json.dumps(as_data(found), indent=1) if values.json else as_text(found, values.listed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
