"""Answers as lines of a terminal of 80 columns."""

from collections.abc import Iterator

from artifacts.terminal import on_one_line
from pipeline.symbolic.asking.ablate import Worth
from pipeline.symbolic.asking.find import Answer, Found
from pipeline.symbolic.asking.lines import COLUMNS, fitted, padded
from pipeline.symbolic.asking.read import FiredExpert, TextRead


def found_lines(answer: Answer) -> Iterator[str]:
    """One table a kind, a thing on two lines: the figures with what it writes, and what tokens say of it."""
    where = "" if answer.back == 0 else f", {answer.back} place{'s' if answer.back > 1 else ''} back"
    yield fitted(f"{answer.token}{where}: {answer.occurrences:,} of {answer.sample_tokens:,} held-out tokens")
    yield fitted(f"model {answer.model}")
    yield from _source(answer.names_of, answer.model)
    if not answer.occurrences:
        yield "too rare to say anything: count on more text with --tokens"
        return
    for kind, compared in answer.compared.items():
        best = answer.permuted_best_f1[kind]
        yield ""
        yield f"{kind}s by F1, each beside its null; best of all {compared:,} on permuted tokens: {best:.2f}"
        yield f"layer {kind:>8}  F1            precision     recall" + "        output" * (kind == "expert")
        for one in answer.found:
            if one.kind == kind:
                yield from _found(one)


def _found(one: Found) -> Iterator[str]:
    figures = (
        f"{one.f1:.2f} ({one.null_f1:.3f})  {one.precision:.2f} ({one.null_precision:.3f})  "
        f"{one.recall:.2f} ({one.null_recall:.3f})"
    )
    share = "" if one.output_share is None else f"  {one.output_share:6.2%}"
    yield f"{one.layer:5} {one.symbol:>8}  {figures}{share}"
    if said := _said(one.said, one.said_f1, one.said_null_f1):
        yield fitted(f"{'fires if' if one.kind == 'expert' else 'is high if':>14}  {said}")
    if one.raises:
        yield fitted(f"{'raises':>14}  {', '.join(one.raises)}")


def _source(names_of: str | None, model: str) -> Iterator[str]:
    """Whose statements these are, and what their F1 is of: nothing where there are none."""
    if names_of is None:
        return
    if names_of != model:
        yield fitted(f"statements of {names_of}")
    yield "F1 (null) of a statement: in the model that was distilled, on held-out text"


def _said(statement: str | None, f1: float | None, null_f1: float | None, columns: int = COLUMNS - 16) -> str:
    """The statement, cut so that its figures stay; nothing where there is none."""
    if statement is None or f1 is None or null_f1 is None:
        return ""
    figures = f" F1 {f1:.2f} ({null_f1:.3f})"
    return fitted(on_one_line(statement), columns - len(figures)) + figures


def worth_lines(worth: Worth) -> Iterator[str]:
    """The increase beside that of random sets, then where it hurts, whose probability moves, and how text goes on."""
    numbers = ", ".join(map(str, worth.experts))
    yield fitted(f"{worth.model}, layer {worth.layer} without expert{'s' if len(worth.experts) > 1 else ''} {numbers}")
    fires = f"adds on {worth.fires_on:,} of {worth.sample_tokens:,} held-out tokens, {worth.documents:,} documents"
    yield fitted(f"{fires}; loss {worth.loss_nats:.4f}")
    half = worth.increase_half_width_nats
    interval = "" if half is None else f" ± {_nats(half)[1:]} (nominal 95 %, over documents)"
    yield f"loss {_nats(worth.increase_nats)}{interval}, nats a token"
    where = (("where it adds", worth.increase_where_it_fires_nats), ("elsewhere", worth.increase_elsewhere_nats))
    yield "  " + ", ".join(f"{words} {_nats(increase)}" for words, increase in where if increase is not None)
    yield from map(fitted, _controls(worth))
    yield "hurts most, the token in brackets"
    for one in worth.hurts_most:
        yield f"  {one.increase_nats:+8.2f}  {_ending(one.before, COLUMNS - 14 - len(one.token))}[{one.token}]"
    for words, shifts in (("less likely", worth.falls), ("likelier", worth.rises)):
        yield fitted(f"{words:<11}  {', '.join(f'{one.token} {one.change:+.4f}' for one in shifts)}")
    yield fitted(f"{'prompt':<11}  {worth.continued.prompt}")
    yield fitted(f"{'goes on':<11}  {worth.continued.whole}")
    yield fitted(f"{'without':<11}  {worth.continued.ablated}")


def _controls(worth: Worth) -> Iterator[str]:
    if not worth.controls:
        yield "  no other expert of the layer adds so little: there is nothing to compare with"
        return
    increases, sizes, fires_on = (
        [getattr(one, name) for one in worth.controls] for name in ("increase_nats", "experts", "fires_on")
    )
    output = sum(one.output for one in worth.controls) / len(worth.controls)
    mean = sum(increases) / len(increases)
    yield f"  {len(increases)} random sets: {_nats(mean)} ({_nats(min(increases))} to {_nats(max(increases))})"
    yield (
        f"    of {min(sizes)}-{max(sizes)} experts that add {output:.2f} of its output, on "
        f"{min(fires_on):,}-{max(fires_on):,} tokens"
    )


def _nats(value: float) -> str:
    """With its sign and two digits at least."""
    return f"{value:+.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:+.1e}"


def _ending(text: str, columns: int) -> str:
    """The text, its beginning left out where it takes more columns."""
    cut = fitted(text[::-1], columns)
    return cut[::-1]


def read_lines(text: TextRead) -> Iterator[str]:
    """A token's text, then a line for each expert."""
    yield fitted(f"{text.model}, {len(text.tokens)} tokens")
    yield "layer, expert, its share of the lengths that all of the layer add, when it fires"
    yield from _source(text.names_of, text.model)
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
