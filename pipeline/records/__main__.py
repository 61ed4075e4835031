"""`python -m pipeline.records ID --block B --to FILE`: one block of a record as a file that stands by itself."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Writes the file; 2 after one sentence where there is no such record, block or folder."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.records", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("id", metavar="ID", help="the record: an id, its beginning, or 'latest'")
    parser.add_argument("--block", type=int, required=True, metavar="B", help="number of the block, from 0")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="safetensors to write")
    parser.add_argument("--store", type=Path, default=Path("store"), metavar="DIR", help="default: store")
    values = parser.parse_args(arguments)
    # Here and not above, so that --help does not wait for torch.
    from artifacts.terminal import as_command

    return as_command(_run)(values)


def _run(values: argparse.Namespace) -> int:
    from artifacts import ArtifactError, Store, show_every_text, told
    from artifacts.terminal import say
    from kernels.errors import Mistake
    from pipeline import codec
    from pipeline.records.exports import layer_file
    from pipeline.records.record import ActivationRecord

    show_every_text()
    try:
        if not values.to.parent.is_dir():
            raise Mistake(f"--to: there is no folder {values.to.parent} to write {values.to.name} into; make it first")
        record = codec.load_as(ActivationRecord, Store(values.store).open(values.id, kind="record"))
        layer_file(record, values.block, values.to)
    except (ArtifactError, Mistake) as error:
        print(told(error), file=sys.stderr)
        return 2
    say(f"{values.to}: block {values.block}, {record.spec.tokens:,} tokens; python -m pipeline.examining {values.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
