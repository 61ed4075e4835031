"""Text from a trained model: python -m pipeline.generate ID --prompt TEXT."""

import sys
from collections.abc import Sequence

from artifacts import CommandParser, store_folder


def main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m pipeline.generate", description=__doc__)
    parser.add_argument("id", metavar="ID", help="the model: an id, its beginning, or 'latest'")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to go on from")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to add (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is the likeliest token (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="sample among this many (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument("--store", type=store_folder, default="store", metavar="DIR", help="default: store")
    args = parser.parse_args(arguments)
    # Only now: who asks for --help, or mistypes an option, does not wait for torch.
    from pipeline.generate.command import run

    return run(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
