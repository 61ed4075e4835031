"""Answers as lines of a terminal of 80 columns."""

from collections.abc import Iterator

from artifacts.terminal import on_one_line
from pipeline.symbolic.asking.find import Answer, Found
from pipeline.symbolic.asking.lines import COLUMNS, fitted, padded
from pipeline.symbolic.asking.read import FiredExpert, TextRead


def found_lines(answer: Answer) -> Iterator[str]:
    """One table a kind, a thing on two lines: the figures with what it writes, and what tokens say of it."""
    where = "" if answer.back == 0 else f", {answer.back} place{'s' if answer.back > 1 else ''} back"
    yield fitted(f"{answer.token}{where}: {answer.occurrences:,} of {answer.sample_tokens:,} held-out tokens")
    yield fitted(f"model {answer.model}")
    if not answer.occurrences:
        yield "too rare to say anything: count on more text with --tokens"
        return
    for kind, compared in answer.compared.items():
        best = answer.permuted_best_f1[kind]
        yield ""
        yield f"{kind}s by F1, each beside its null; best of all {compared:,} on permuted tokens: {best:.2f}"
        yield f"layer {kind:>8}     F1        precision    recall       {'raises' if kind == 'expert' else 'says'}"
        for one in answer.found:
            if one.kind == kind:
                yield from _found(one)


def _found(one: Found) -> Iterator[str]:
    figures = (
        f"{one.f1:.2f} ({one.null_f1:.2f})  {one.precision:.2f} ({one.null_precision:.2f})  "
        f"{one.recall:.2f} ({one.null_recall:.2f})"
    )
    head = f"{one.layer:5} {one.symbol:>8}  {figures}  "
    said = _said(one.said, one.said_f1, one.said_null_f1)
    if one.kind != "expert":
        yield fitted(head + said)
        return
    yield fitted(head + ", ".join(one.raises))
    if said:
        yield fitted(f"{'fires if':>14}  {said}")


def _said(statement: str | None, f1: float | None, null_f1: float | None, columns: int = COLUMNS - 16) -> str:
    """The statement, cut so that its figures stay; nothing where there is none."""
    if statement is None or f1 is None or null_f1 is None:
        return ""
    figures = f" F1 {f1:.2f} ({null_f1:.2f})"
    return fitted(on_one_line(statement), columns - len(figures)) + figures


def read_lines(text: TextRead) -> Iterator[str]:
    """A token's text, then a line for each expert."""
    yield fitted(f"{text.model}, {len(text.tokens)} tokens")
    yield "layer, expert, its share of the lengths that all of the layer add, when it fires"
    if text.names_of not in (None, text.model):
        yield fitted(f"statements of {text.names_of}")
    for place, token in enumerate(text.tokens):
        chance = "" if token.probability is None else f"probability {token.probability:.3f}"
        yield ""
        yield f"{place:4}  {padded(token.text, 52)}  {chance}".rstrip()
        for of_layer in token.layers:
            rest = of_layer.fired - len(of_layer.experts)
            for one in of_layer.experts:
                yield fitted(_expert(of_layer.layer, one))
            left = 1 - sum(one.share for one in of_layer.experts)
            if rest:
                yield f"{of_layer.layer:6} {'':6} {left:5.0%}  {rest} more"
            elif not of_layer.fired:
                yield f"{of_layer.layer:6} {'none':>6}"


def _expert(layer: int, one: FiredExpert) -> str:
    said = _said(one.said, one.said_f1, one.said_null_f1, COLUMNS - 21)
    return f"{layer:6} {one.expert:6} {one.share:5.0%}  {said}".rstrip()
