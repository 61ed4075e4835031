"""symbols.html: one page, complete in itself, that says what the symbols of a model are and how far to trust them."""

from collections.abc import Mapping, Sequence
from html import escape

from artifacts.columns import SYMBOLS, columns
from artifacts.meanings import meaning
from pipeline.symbolic.names.names import FILE as NAMES_FILE
from pipeline.symbolic.names.names import Name
from pipeline.symbolic.showing.reading import latex
from pipeline.symbolic.showing.showcase import Context, LongerRule, Showcase
from pipeline.symbolic.tiers import TIER_WORDS

FILE = "symbols.html"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #0f172a;
       background: #fff }
table { border-collapse: collapse; margin: .6rem 0 } td, th { padding: .2rem .7rem; text-align: left;
       border-bottom: 1px solid #e2e8f0; vertical-align: top } td.number { text-align: right;
       font-variant-numeric: tabular-nums }
article { border-top: 2px solid #0d9488; margin-top: 2rem } code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { white-space: pre-wrap; background: #f8fafc; padding: .5rem; margin: .3rem 0 }
mark { background: #fde68a } .note { color: #64748b }
"""


def page(metrics: Mapping[str, float], shown: Sequence[Showcase]) -> str:
    """HTML with its style and pictures within; every text of model and corpus is escaped."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Symbols</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>Experts as symbols</h1>\n"
        f"{_tiers(metrics)}\n{_metrics(metrics)}\n"
        f"<h2>{len(shown)} experts, chosen by rule</h2>\n"
        '<p class="note">Names say when a score or coordinate is high, by tokens alone. Beside each F1 stand that of a '
        "random statement of the same rate (null) and that of the best statement on permuted tokens. What fires the "
        "expert is the exact comparison or logic, not the names. F1s are of held-out tokens; those of statements at "
        "more length are of the train tokens that chose them. Long sets of tokens are cut here and whole in "
        f"{NAMES_FILE}.</p>\n"
        f"{''.join(map(_article, shown))}</body></html>\n"
    )


def _tiers(metrics: Mapping[str, float]) -> str:
    rows = [
        (tier.name, words, f"{metrics[f'expert_share_{key}']:.1%}", f"{metrics[f'energy_share_{key}']:.1%}")
        for tier, words in TIER_WORDS.items()
        for key in (tier.name.lower(),)
    ]
    return f"<h2>Tiers</h2>{_table(('tier', 'an expert is', 'of the experts', 'of the output energy'), rows)}"


def _metrics(metrics: Mapping[str, float]) -> str:
    rows = [
        (
            column.metric,
            f"{metrics[column.metric]:.4g}",
            "; ".join(f"{other} {metrics[other]:.4g}" for other in column.beside if other in metrics),
            meaning(column.metric, "symbols"),
        )
        for column in columns(SYMBOLS)
        if column.metric in metrics
    ]
    return f"<h2>How far to trust them</h2>{_table(('metric', 'value', 'read beside', 'what it is'), rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _article(shown: Showcase) -> str:
    reading = shown.reading
    uses_z = bool(reading.function.free_symbols)
    formula = [f"magnitude = {reading.function}"] + ([f"z = {reading.argument}"] if uses_z else [])
    source = [latex(reading.rule), latex(reading.function)] + ([f"z = {latex(reading.argument)}"] if uses_z else [])
    names = [*shown.scores, *shown.features, *shown.coordinates]
    return (
        f"<article><h3>Layer {reading.layer}, expert {reading.expert}: {reading.tier.name}, "
        f"{TIER_WORDS[reading.tier]}</h3>"
        f'<p class="note">{escape(shown.why)}; {shown.energy_share:.2%} of its block\'s output energy</p>'
        f"<p>fires if <code>{escape(reading.firing)}</code></p>"
        f"<p>by tokens alone: <code>{escape(shown.token_statement)}</code> "
        f"(F1 {shown.token_f1:.2f}; null {shown.rate:.3f})</p>{_longer(shown.longer_rule)}"
        f"<pre>{escape(chr(10).join([*shown.sums, *formula]))}</pre>{shown.graph}"
        f"{_names(names)}<p>{escape(reading.direction)}</p>"
        f"<p>The neuron fires most on</p>{''.join(map(_context, shown.contexts))}"
        f"<details><summary>LaTeX</summary><pre>{escape(chr(10).join(source))}</pre></details></article>\n"
    )


def _longer(found: LongerRule | None) -> str:
    if found is None:
        return ""
    return (
        f"<p>by tokens at more length: <code>{escape(str(found.rule))}</code> ({found.learner}, "
        f"{found.num_gates} gates, F1 {found.f1:.2f}; best gate of two {found.gate_f1:.2f})</p>"
        f"<details><summary>LaTeX</summary><pre>{escape(latex(found.rule))}</pre></details>"
    )


def _names(names: Sequence[Name]) -> str:
    rows = [
        (
            name.symbol,
            name.brief,
            f"{name.f1:.2f}",
            f"{name.null_f1:.2f}, {name.permuted_f1:.2f}",
            " ".join(f"{token.text!r} ×{token.lift:.1f}" for token in name.top_tokens),
        )
        for name in names
    ]
    head = ("name of", "high where", "F1", "null, permuted", "tokens by lift")
    return _table(head, rows) if rows else ""


def _context(context: Context) -> str:
    before, token = (escape(repr(text)[1:-1]) for text in (context.before, context.token))
    return f"<pre>{context.strength:10.3g}  {before}<mark>{token}</mark></pre>"
