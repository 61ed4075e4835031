"""One stage without Prefect, for a bare machine or a debugger: python -m stages NAME ..."""

import sys
from collections.abc import Sequence

from stages.help import show_page

PROG = "python -m stages"


def main(arguments: Sequence[str]) -> int:
    show_page(arguments, below=["stage"], prog=PROG)
    # Only now: who asks for --help does not wait for torch.
    from stages.bare import run

    return run(arguments)


if __name__ == "__main__":
    from stages.errors import exit_code

    sys.exit(exit_code(lambda: main(sys.argv[1:])))
