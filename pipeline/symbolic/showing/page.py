"""symbols.html: one page, complete in itself, that says what the symbols of a model are and how far to trust them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from artifacts.columns import SYMBOLS, columns
from artifacts.meanings import meaning
from pipeline.symbolic.asking.pages import rendered
from pipeline.symbolic.names.names import FILE as NAMES_FILE
from pipeline.symbolic.showing.index import LayerMap, Row
from pipeline.symbolic.showing.plain_words import PLAIN, TIERS
from pipeline.symbolic.showing.reading import latex
from pipeline.symbolic.showing.showcase import Showcase
from pipeline.symbolic.tiers import Tier

FILE = "symbols.html"
_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    metric: str
    value: str
    plain: str
    exactly: str
    beside: tuple[tuple[str, str, str], ...]
    """Name, value and meaning of each control, null or bound."""


def page(
    metrics: Mapping[str, float], layers: Sequence[LayerMap], index: Sequence[Row], shown: Sequence[Showcase]
) -> str:
    """HTML with its style, script and pictures within; every text of model and corpus is escaped."""
    return rendered(
        _HERE / "page.html.jinja",
        _HERE / "page.js",
        metrics=metrics,
        measured=[_measured(metrics, column.metric, column.beside) for column in columns(SYMBOLS)
                  if column.metric in metrics],
        tiers=[(tier.name, TIERS[tier.name]) for tier in Tier],
        layers=layers,
        index=index,
        shown=[_screen(one) for one in shown],
        screens={(one.reading.layer, one.reading.expert) for one in shown},
        names_file=NAMES_FILE,
    )  # fmt: skip


def _measured(metrics: Mapping[str, float], metric: str, beside: Sequence[str]) -> _Measured:
    return _Measured(
        metric=metric,
        value=f"{metrics[metric]:.4g}",
        plain=PLAIN[metric],
        exactly=meaning(metric, "symbols"),
        beside=tuple((name, f"{metrics[name]:.4g}", meaning(name, "symbols")) for name in beside if name in metrics),
    )


def _screen(shown: Showcase) -> dict[str, object]:
    """What the template says of one expert."""
    reading = shown.reading
    uses_z = bool(reading.function.free_symbols)
    return {
        "of": shown,
        "reading": reading,
        "tier": reading.tier.name,
        "tier_words": TIERS[reading.tier.name],
        "formula": [f"magnitude = {reading.function}"] + ([f"z = {reading.argument}"] if uses_z else []),
        "graph": Markup(shown.graph),
        "names": [*shown.scores, *shown.features, *shown.coordinates],
        "longer": None if shown.longer_rule is None else str(shown.longer_rule.rule),
        "most": max((abs(context.strength) for context in shown.contexts), default=1.0) or 1.0,
        "latex": "\n".join(
            [latex(reading.rule), latex(reading.function)]
            + ([f"z = {latex(reading.argument)}"] if uses_z else [])
            + ([] if shown.longer_rule is None else [latex(shown.longer_rule.rule)])
        ),
    }
