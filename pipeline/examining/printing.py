"""An examination as data and as a table of 80 columns."""

from collections import Counter
from dataclasses import asdict

from pipeline.examining.battery import Examination, Pair, SecondScreen
from pipeline.examining.chance import FALSE_DISCOVERY_RATE
from pipeline.examining.classes import NOT_TESTABLE
from pipeline.examining.headlines import Headline
from pipeline.examining.joint_code import DEVIATIONS, LEAST_BITS
from pipeline.examining.siblings import NEITHER

NEEDS_A_MODEL = "not testable: needs the model, a record does not say what follows from an ablation"


def as_data(found: Examination) -> dict[str, object]:
    """What --json prints."""
    return {
        "pairs": [pair.row() for pair in found.pairs],
        "headlines": {
            "jcs": asdict(found.jcs),
            "jcs_not_testable": asdict(found.not_testable_share),
            "hs": asdict(Headline(value=None, not_testable=NEEDS_A_MODEL)),
            "additivity_r2": asdict(Headline(value=None, not_testable=NEEDS_A_MODEL)),
            "pairs_counted": found.pairs_counted,
            "pairs_significant": found.pairs_significant,
            "pairs_tested": sum(pair.significant for pair in found.pairs),
            "random_pairs": found.random_pairs,
            "partial": asdict(found.second_screen),
            "geometry": {kind: asdict(of) for kind, of in found.geometry.items()},
            "siblings": {row.relation: asdict(row) for row in found.siblings},
            "classes": dict(Counter(pair.kind for pair in found.pairs)),
        },
        "bookkeeping": asdict(found.bookkeeping),
    }


def as_text(found: Examination, listed: int) -> str:
    """Bookkeeping, headlines, classes, then the first pairs."""
    kept = found.bookkeeping
    classes = Counter((pair.kind, pair.significant) for pair in found.pairs)
    rows = [
        ("tokens, documents, strata", f"{kept.tokens:,}, {kept.documents:,}, {kept.strata:,}"),
        ("tokens with a label", f"{kept.labelled_tokens:,}"),
        ("experts, of them fired", f"{kept.experts:,}, {kept.experts_fired:,}"),
        ("active on a token", f"{kept.active_mean:.2f} ({kept.active_least} to {kept.active_most})"),
        ("Gini of firings, of contributions", f"{kept.firing_gini:.3f}, {kept.contribution_gini:.3f}"),
        *([] if kept.omitted_share_mean is None else [("output left out", f"{kept.omitted_share_mean:.4f}")]),
        ("pairs counted", f"{found.pairs_counted:,}"),
        (f"pairs beyond chance, FDR {FALSE_DISCOVERY_RATE:.0%}", f"{found.pairs_significant:,}"),
        ("of them linked beside all others", _agreement(found.second_screen)),
        ("random co-active pairs", f"{found.random_pairs:,}"),
        ("JCS, share of co-activity in codes", _share(found.jcs)),
        ("share that could not be tested", _share(found.not_testable_share)),
    ]
    lines = [f"{name:<36}{value:>44}" for name, value in rows]
    lines += ["", f"{'class':<36}{'beyond chance':>22}{'drawn, not beyond':>22}"]
    for kind in sorted({kind for kind, _ in classes}):
        lines.append(f"{kind:<36}{classes[kind, True]:>22,}{classes[kind, False]:>22,}")
    lines += _geometry(found)
    lines += _siblings(found)
    lines += ["", f"{'i':>9}{'j':>10}{'count':>9}{'lift':>10}{'J bits':>8}  class"]
    lines += [_line(pair) for pair in found.pairs[:listed]]
    if len(found.pairs) > listed:
        lines.append(f"and {len(found.pairs) - listed:,} more: --listed, or --json for all")
    lines += [
        "",
        f"J: bits beyond chance and {DEVIATIONS:.0f} deviations; from {LEAST_BITS} a joint code. No",
        "class knows what an ablation does: codes are not told readable from hidden.",
    ]
    return "\n".join(lines)


def _agreement(of: SecondScreen) -> str:
    null = f"; by chance {of.null_stable:,} of {of.null_links:,}"
    return f"{of.stable:,} of {of.pairs:,}{null}" if of.pairs else "none asked"


def _geometry(found: Examination) -> list[str]:
    """None where the vectors are not known."""
    if all(of.cos_output is None for of in found.geometry.values()):
        return []
    lines = [
        "",
        f"{'means of pairs beyond chance':<32}{'cos v':>8}{'matched':>9}{'cos u':>8}{'matched':>9}{'Var r':>9}",
    ]
    for kind, of in found.geometry.items():
        means = (of.cos_output, of.cos_output_matched, of.cos_input, of.cos_input_matched, of.ratio_variance)
        words = ["" if mean is None else f"{mean:.3f}" for mean in means]
        lines.append(f"{kind:<32}" + "".join(f"{w:>{n}}" for w, n in zip(words, (8, 9, 8, 9, 9), strict=True)))
    return lines


def _siblings(found: Examination) -> list[str]:
    """None where no two experts share a sub-key."""
    if not any(row.pairs_counted for row in found.siblings if row.relation != NEITHER):
        return []
    lines = ["", f"{'share of the key grid':<28}{'counted':>13}{'beyond chance':>15}{'tested':>12}{'codes':>12}"]
    for row in found.siblings:
        figures = f"{row.pairs_counted:>13,}{row.pairs_significant:>15,}{row.pairs_tested:>12,}{row.joint_codes:>12,}"
        lines.append(f"{row.relation:<28}{figures}")
    return lines


def _share(of: Headline) -> str:
    if of.value is None:
        return of.not_testable or ""
    if of.low is None or of.high is None:
        return f"{of.value:.4f} (one document: no interval)"
    return f"{of.value:.4f} ({of.low:.4f} to {of.high:.4f})"


def _line(pair: Pair) -> str:
    bits = "" if pair.joint_code_bits is None else f"{pair.joint_code_bits:.2f}"
    word = pair.not_testable or pair.kind
    if pair.not_testable is not None and pair.kind != NOT_TESTABLE:
        word = f"{pair.kind} ({pair.not_testable.removeprefix('not testable: ')})"
    lift = f"{pair.lift:.2f}" if pair.lift < 1e5 else f"{pair.lift:.1e}"
    return f"{pair.i:>9}{pair.j:>10}{pair.count:>9,}{lift:>10}{bits:>8}  {word}"
