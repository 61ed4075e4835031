"""`python -m tests.same_artifacts STORE OTHER`: whether two stores hold the same artifacts, by id and content.

What a change that should move no number must show: the chain of one seed on one thread, before and after. A report says
how long its chain took, so its content is not compared.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from artifacts import Store


def differences(ours: Store, theirs: Store) -> tuple[int, list[str]]:
    """How many artifacts were compared, and a line for each of one store alone or of other content."""
    manifests = [{m.id: m for m in store.manifests()} for store in (ours, theirs)]
    lines, compared = [], 0
    for id in sorted(manifests[0].keys() | manifests[1].keys()):
        where = [str(store.root) for store, of in zip((ours, theirs), manifests, strict=True) if id in of]
        if len(where) == 1:
            lines.append(f"{id}: only in {where[0]}")
        elif manifests[0][id].kind != "report":
            compared += 1
            if manifests[0][id].content_sha256 != manifests[1][id].content_sha256:
                lines.append(f"{id}: content differs")
    return compared, lines


def main(arguments: Sequence[str]) -> int:
    """0 where all are the same, 1 where some differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_artifacts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stores", nargs=2, type=Path, metavar="STORE")
    compared, lines = differences(*map(Store, parser.parse_args(arguments).stores))
    print(*lines, f"{compared} artifacts compared, {len(lines)} differ", sep="\n")  # noqa: T201 - what it is for
    return 1 if lines or not compared else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
