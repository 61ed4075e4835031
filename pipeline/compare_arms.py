"""`python -m pipeline.compare_arms STUDY A B`: the difference of two arms of a study, paired by seed.

Without A and B it lists the arms. Reads a report that a study made; nothing is trained.
"""

import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from artifacts import ArtifactError, CommandParser, Store, as_command, show_every_text, store_folder, told
from artifacts.layout import terminal_width, wrapped
from artifacts.terminal import say
from kernels.errors import Mistake

if TYPE_CHECKING:
    from pipeline.report import Report

LOSS = "held_out_loss_nats"


def losses_by_seed(report: "Report") -> dict[str, dict[int, float]]:
    """Held-out loss, nats a token, of every arm and seed. ValueError names a trial that is no such thing."""
    found: dict[str, dict[int, float]] = {}
    for row in report.spec.rows:
        if row.kind != "trial":
            continue
        named = re.fullmatch(r"(.+), seed (-?[0-9]{1,20})", row.name, re.DOTALL)
        if named is None or LOSS not in row.metrics:
            lacks = "no metric " + repr(LOSS) if named else "a name that does not end in ', seed NUMBER'"
            raise Mistake(f"the study's trial {row.name[:200]!r} has {lacks}; make the study again")
        arm, seed = named[1], int(named[2])
        if seed in found.setdefault(arm, {}):
            raise Mistake(f"the study has two trials of {arm[:200]!r} with seed {seed}; make the study again")
        found[arm][seed] = row.metrics[LOSS]
    return found


def difference(arms: Mapping[str, Mapping[int, float]], arm: str, baseline: str) -> str:
    """One sentence. ValueError for arms that the study has not, or that share fewer than two seeds."""
    from pipeline.studies.intervals import paired

    for name in (arm, baseline):
        if name not in arms:
            raise Mistake(f"the study has no arm {name!r}; it has {', '.join(arms)}")
    seeds = sorted(arms[arm].keys() & arms[baseline].keys())
    if len(seeds) < 2:
        raise Mistake(f"{arm} and {baseline} share {len(seeds)} seeds; an interval takes two at least")
    found = paired([arms[arm][seed] for seed in seeds], [arms[baseline][seed] for seed in seeds])
    return f"{arm} minus {baseline}: {found} nats a token (95 %, paired over {len(seeds)} seeds)"


def _list(arms: Mapping[str, Mapping[int, float]]) -> str:
    def mean(losses: Mapping[int, float]) -> str:
        return f"{statistics.fmean(losses.values()):.4f} nats a token over {len(losses)} seeds"

    return "\n".join(f"{name}: {mean(losses)}" for name, losses in arms.items())


@as_command
def main(arguments: Sequence[str]) -> int:
    show_every_text()
    parser = CommandParser(prog="python -m pipeline.compare_arms", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", metavar="STUDY", help="id of a study's report, or its beginning")
    parser.add_argument("arms", nargs="*", metavar="A B", help="the two arms; none lists them")
    parser.add_argument("--store", type=store_folder, default="store", help="folder of the artifacts (default: store)")
    values = parser.parse_intermixed_args(arguments)
    # Only now: who asks for --help does not wait for torch.
    from pipeline import codec
    from pipeline.report import Report

    report = codec.load_as(Report, Store(values.store).open(values.study, kind="report"))
    arms = losses_by_seed(report)
    if len(values.arms) not in (0, 2) or not arms:
        got = f"{len(values.arms)} arms" if arms else "a report without trials"
        raise Mistake(f"got {got}, wanted the id of a study and none or two of its arms")
    text = difference(arms, *values.arms) if values.arms else _list(arms)
    say(wrapped(text, terminal_width()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ArtifactError, ValueError) as error:
        print(told(error), file=sys.stderr)  # noqa: T201
        sys.exit(2)
