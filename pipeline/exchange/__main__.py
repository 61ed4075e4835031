"""`python -m pipeline.exchange export ID --to DIR`: a model as a folder that transformers opens."""

import sys
from collections.abc import Sequence
from pathlib import Path

from artifacts import ArtifactError, CommandParser, Store, as_command, show_every_text, store_folder, told
from artifacts.terminal import say
from kernels.errors import Mistake


@as_command
def main(arguments: Sequence[str]) -> int:
    """Writes the folder; 2 after one sentence where there is no such model, or the folder is there."""
    show_every_text()
    parser = CommandParser(prog="python -m pipeline.exchange", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "a model of any kind as a folder for AutoModelForCausalLM, with its tokenizer and card"
    command = commands.add_parser("export", help=about, description=about)
    command.add_argument("id", metavar="ID", help="the model: an id, its beginning, or 'latest'")
    command.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to make")
    command.add_argument("--shard-bytes", type=int, default=4 * 10**9, help="most of one file (default: 4e9)")
    command.add_argument("--store", type=store_folder, default="store", metavar="DIR", help="default: store")
    values = parser.parse_args(arguments)
    # Here and not above, so that --help does not wait for torch.
    from pipeline.exchange.exporting import export

    try:
        if values.shard_bytes < 1:
            raise Mistake(f"--shard-bytes: got {values.shard_bytes}, wanted at least 1")
        exported = export(Store(values.store), values.id, values.to, values.shard_bytes)
    except (ArtifactError, Mistake, OSError) as error:
        print(told(error), file=sys.stderr)
        return 2
    say(
        f"{exported.folder}: {exported.num_bytes:,} bytes in {len(exported.files)} files; "
        f'AutoModelForCausalLM.from_pretrained("{exported.folder}", trust_remote_code=True)'
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
