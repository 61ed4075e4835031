"""Reads experts of a symbols model, writes one as a KAN or all as C: python -m pipeline.symbolic show | kan | export"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sympy
import torch
from torch import Tensor

from artifacts import (
    Artifact,
    ArtifactError,
    CommandParser,
    Store,
    as_command,
    show_every_text,
    store_folder,
    told,
    writing_to_stdout,
)
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows
from pipeline.models import LanguageModel
from pipeline.models.trained_length import trained_length
from pipeline.symbolic.exporting.export import export as write_export
from pipeline.symbolic.exporting.kan_folder import write_kan
from pipeline.symbolic.names.names import FILE as NAMES_FILE
from pipeline.symbolic.names.names import Names, symbol
from pipeline.symbolic.showing.blocks import router_block, symbol_experts
from pipeline.symbolic.showing.expert_data import ExpertData, LogicFiring, ScoreFiring, expert_data
from pipeline.symbolic.showing.fired import Firings, firings, output_energies
from pipeline.symbolic.showing.firing_text import TERMS, left_out, literal_lines, score_lines, score_words
from pipeline.symbolic.showing.magnitudes import DIGITS, coordinates_by_size
from pipeline.symbolic.showing.reading import Reading, latex, read_expert
from pipeline.symbolic.showing.scores import heaviest_features, score_keys, score_sums
from pipeline.symbolic.tiers import TIER_WORDS, Tier

SAMPLE_TOKENS = 2048
CONTEXT_LENGTH = 64
CONTEXTS = 8
TOKENS_BEFORE = 12
"""Tokens shown before the one on which an expert fires."""
LARGEST = 10
LOG_GATES = "A and B are log gates: scores that pass a cut, normalised over those that pass; --expert E gives both"
NAMED = 8
"""Coordinates, or scores of a router, whose names are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opened:
    id: str
    model: LanguageModel
    corpus: Corpus
    names: list[list[str]]
    """Of the literals, block by block."""
    vocabulary: list[str]
    quantities: Names
    """Of scores and coordinates; none in artifacts of before they had names."""
    context: int
    """Tokens that the model was trained to read at once."""


@as_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0 is well, 2 is an error told in one sentence."""
    show_every_text()
    args = _parser().parse_args(arguments)
    if args.command == "export":
        return _export(args)
    if args.command == "kan":
        return _kan(args)
    try:
        opened, layers, reading = _chosen(args)
    except (ArtifactError, ValueError) as error:
        print(told(error), file=sys.stderr)
        return 2
    with writing_to_stdout():
        if args.json and reading is not None:
            print(_data(opened, reading).model_dump_json())
        elif reading is None:
            _show_layers(opened, layers)
        else:
            _show_expert(opened, reading, in_latex=args.latex, whole=args.all)
    return 0


def _chosen(args: argparse.Namespace) -> tuple[_Opened, list[int], Reading | None]:
    """What was asked for: an artifact, some of its layers, and where one was named an expert."""
    layer, expert = args.layer, args.expert
    if expert is not None and layer is None:
        raise ValueError("an expert has a number within its layer; give --layer too")
    if args.command == "show" and expert is None and (args.json or args.all):
        raise ValueError(f"--{'json' if args.json else 'all'} is of one expert; give --layer and --expert too")
    opened = _open(Store(args.store), args.id)
    if layer is None:
        return opened, list(range(len(opened.model.blocks()))), None
    symbol_experts(opened.model, layer)
    if expert is None:
        return opened, [layer], None
    digits = None if args.command == "show" and args.all else DIGITS
    names = opened.names[layer]
    return opened, [layer], read_expert(opened.model, layer, expert, names, opened.vocabulary, digits=digits)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m pipeline.symbolic", description="Reads experts as symbols.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    summary = "Show one expert; without --expert the largest of a layer, without --layer those of every layer."
    show = commands.add_parser("show", help=summary, description=summary)
    show.add_argument("id", metavar="ID", help="an id, its beginning, the beginning of its fingerprint, or 'latest'")
    show.add_argument("--layer", type=int, metavar="L", help="number of the layer, from 0")
    show.add_argument("--expert", type=int, metavar="E", help="number of the expert in its layer, from 0")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--latex", action="store_true", help="print rule and formula as LaTeX too")
    form.add_argument(
        "--all", action="store_true", help="drop no term, round no number: all scores, features and coordinates"
    )
    form.add_argument(
        "--json", action="store_true", help="print all that computes the expert as data (pipeline/symbolic/expert_data)"
    )
    show.add_argument(
        "--store", type=store_folder, default="store", metavar="DIR", help="folder of the store (default: store)"
    )
    summary = "Write one expert's formula as a KAN that pykan loads, plots, edits and refits."
    kan = commands.add_parser("kan", help=summary, description=summary)
    kan.add_argument("id", metavar="ID", help="an id, its beginning, the beginning of its fingerprint, or 'latest'")
    kan.add_argument("--layer", type=int, required=True, metavar="L", help="number of the layer, from 0")
    kan.add_argument("--expert", type=int, required=True, metavar="E", help="number of the expert in it, from 0")
    kan.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    kan.add_argument(
        "--store", type=store_folder, default="store", metavar="DIR", help="folder of the store (default: store)"
    )
    summary = "Write a model as one C source with its tables and a check, which needs no Python."
    export = commands.add_parser("export", help=summary, description=summary)
    export.add_argument("id", metavar="ID", help="an id, its beginning, the beginning of its fingerprint, or 'latest'")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    export.add_argument("--tokens", type=int, default=16_384, help="held-out tokens to check it on (default: 16384)")
    export.add_argument(
        "--length", type=int, help="tokens of a window of them (default, and at most: those that it was trained on)"
    )
    export.add_argument(
        "--store", type=store_folder, default="store", metavar="DIR", help="folder of the store (default: store)"
    )
    return parser


def _export(args: argparse.Namespace) -> int:
    try:
        made = write_export(Store(args.store), args.id, args.to, num_tokens=args.tokens, length=args.length)
    except (ArtifactError, ValueError) as error:
        print(told(error), file=sys.stderr)
        return 2
    except OSError as error:
        if not _is_of(args.to, error):
            raise
        return _unwritable(args.to, error)
    if args.length is not None and made.length < args.length:
        print(
            f"--length: got {args.length}, and the model was trained on {made.length} tokens of context: the windows "
            f"are of {made.length}",
            file=sys.stderr,
        )
    with writing_to_stdout():
        print(f"{made.folder}: {made.loss_nats:.6f} nats a token on {made.num_tokens:,} tokens; `make check` compares")
    return 0


def _kan(args: argparse.Namespace) -> int:
    try:
        opened, layers, reading = _chosen(args)
        assert reading is not None
        tokens_WT, _ = _sample(opened, layers)
        states = write_kan(opened.model, reading, tokens_WT, args.to, id=opened.id)
    except (ArtifactError, ValueError) as error:
        print(told(error), file=sys.stderr)
        return 2
    except OSError as error:
        if not _is_of(args.to, error):
            raise
        return _unwritable(args.to, error)
    coordinates = f"{reading.num_coordinates} coordinates"
    with writing_to_stdout():
        print(f"{args.to}: {reading.tier.name}, {coordinates}, {states:,} states; see its README.md")
    return 0


def _is_of(folder: Path, error: OSError) -> bool:
    """Whether it befell the folder that is written, what lies in it, or one above it; a full disk names no file."""
    if error.filename is None:
        return True
    path = Path(error.filename)
    inside = any(part == folder.name or part.startswith(f".{folder.name}.") for part in path.parts)
    return inside or path in folder.parents


def _unwritable(folder: Path, error: OSError) -> int:
    print(f"--to: {folder} cannot be written ({error.strerror or error}); name another folder", file=sys.stderr)
    return 2


def _open(store: Store, id: str) -> _Opened:
    """The symbols artifact and the corpus it comes from."""
    artifact = store.open(id, kind="symbols")
    model = codec.load(artifact)
    corpus_id = next((m.id for m in store.ancestry(artifact.id) if m.kind == "corpus"), None)
    if corpus_id is None or "literals.json" not in artifact.files():
        raise ArtifactError(f"{artifact.id} was made from no corpus, or has no literals.json; distil it again")
    corpus = codec.load(store.open(corpus_id, kind="corpus"))
    assert isinstance(model, LanguageModel)
    assert isinstance(corpus, Corpus)
    return _Opened(
        id=artifact.id,
        model=model.eval(),
        corpus=corpus,
        names=json.loads(artifact.files()["literals.json"].read_text(encoding="utf-8")),
        vocabulary=[corpus.tokenizer.decode([token]) for token in range(corpus.spec.vocab_size)],
        quantities=_quantities(artifact),
        context=trained_length(store, artifact.id),
    )


def _quantities(artifact: Artifact) -> Names:
    path = artifact.files().get(NAMES_FILE)
    return Names(names=()) if path is None else Names.model_validate_json(path.read_bytes())


@torch.no_grad()
def _sample(opened: _Opened, layers: Sequence[int]) -> tuple[Tensor, list[Firings]]:
    """(W, T) held-out tokens, and for each layer where its experts fire on them."""
    length = min(CONTEXT_LENGTH, opened.context, opened.corpus.held_out.num_tokens - 1)
    tokens_WT, _ = held_out_windows(opened.corpus.held_out, num_tokens=SAMPLE_TOKENS, length=length)
    trace = opened.model.trace(tokens_WT)
    return tokens_WT, [
        firings(symbol_experts(opened.model, layer), trace.expert_inputs[layer], trace.routings[layer])
        for layer in layers
    ]


def _show_layers(opened: _Opened, layers: Sequence[int]) -> None:
    tokens_WT, fired = _sample(opened, layers)
    print(f"{opened.id}, on {tokens_WT.numel():,} held-out tokens")
    for layer, layer_fired in zip(layers, fired, strict=True):
        experts = symbol_experts(opened.model, layer)
        energy_E = output_energies(experts, layer_fired)
        count_E = torch.bincount(layer_fired.expert_P, minlength=len(energy_E))
        total = float(energy_E.sum()) or 1.0
        print(f"\nlayer {layer}")
        for tier in Tier:
            of_tier_E = experts.tier_E == tier
            share = float(energy_E[of_tier_E].sum()) / total
            print(f"  {tier.name}  {int(of_tier_E.sum()):6}  {share:6.1%} of the output  {TIER_WORDS[tier]}")
        print("  the experts with most output:")
        for expert in energy_E.topk(min(LARGEST, len(energy_E))).indices.tolist():
            reading = read_expert(opened.model, layer, expert, opened.names[layer], opened.vocabulary)
            print(
                f"  {expert:6}  {reading.tier.name}  {float(energy_E[expert]) / total:6.1%}  "
                f"{int(count_E[expert]):5} firings  if {reading.firing}"
            )
        print(f"  {LOG_GATES}")
        if best := opened.quantities.best_scores(router_block(opened.model, layer), NAMED):
            print("  the scores that tokens say best:")
            for name in best:
                print(f"  {name.symbol:>8}  {name.words}")


def _data(opened: _Opened, reading: Reading) -> ExpertData:
    names = opened.names[reading.layer]
    return expert_data(opened.model, reading.layer, reading.expert, names, opened.vocabulary, id=opened.id)


def _show_expert(opened: _Opened, reading: Reading, *, in_latex: bool, whole: bool) -> None:
    print(f"{opened.id}, layer {reading.layer}, expert {reading.expert}\n")
    print(f"tier         {reading.tier.name}, {TIER_WORDS[reading.tier]}")
    if reading.tier == Tier.T4:
        print("fires        never: its output was worth less than a description")
        return
    print(f"fires if     {reading.firing}")
    data = _data(opened, reading)
    _show_where(opened, data, whole=whole)
    if said := opened.quantities.said(reading.layer, reading.expert):
        print(f"by tokens    {said.words}")
    if reading.tier <= Tier.T1:
        print("then adds    gate * magnitude * v, the router's gate summed over the heads that fire")
    else:
        print("then adds    magnitude * v")
    print(f"magnitude    {reading.function}")
    uses_z = bool(reading.function.free_symbols)
    if uses_z:
        print(f"where z is   {reading.argument if whole else _shortened(reading)}")
    if uses_z and reading.tier >= Tier.T2:
        print(f"x            the state that block {reading.layer} normalises for its experts")
    print(f"coordinates  {reading.num_coordinates if uses_z else 0}")
    print(f"v            {reading.direction}")
    if whole and data.writes is not None:
        print(f"v, whole     {' '.join(map(repr, data.writes.v))}")
    if not whole:
        print(f"digits       {DIGITS}; --all and --json give every term and digit")
    if in_latex:
        print(f"\nLaTeX\n{latex(reading.rule)}\n{latex(reading.function)}")
        if uses_z:
            print(f"z = {latex(reading.argument)}")
    _show_sums(reading.layer, data, whole=whole)
    _show_names(opened, reading)
    _show_contexts(opened, reading)


def _show_where(opened: _Opened, data: ExpertData, *, whole: bool) -> None:
    """What the symbols of the firing rule mean."""
    match data.fires:
        case ScoreFiring():
            lines = score_words(data.fires, data.layer, whole=whole)
        case LogicFiring():
            lines = literal_lines(data.fires, opened.vocabulary, whole=whole)
            lines.append("token[-n] is the token n places back; before the beginning of the text none of these is true")
        case _:
            lines = []
    for label, line in zip(("where", *[""] * len(lines)), lines, strict=False):
        print(f"{label:12} {line}")


def _show_sums(layer: int, data: ExpertData, *, whole: bool) -> None:
    if isinstance(data.fires, ScoreFiring):
        print("\nscores, before cut and normaliser")
        for line in score_lines(data.fires, layer, whole=whole):
            print(f"  {line}")


def _show_names(opened: _Opened, reading: Reading) -> None:
    """Of the scores that its firing compares, and of the coordinates that weigh most in its formula."""
    named = []
    if reading.tier <= Tier.T1:
        block, keys = score_keys(opened.model, reading.layer, reading.expert)
        named += opened.quantities.of(block, [symbol(*key) for key in keys])
        sums = score_sums(opened.model, reading.layer, keys)
        named += opened.quantities.of(block, heaviest_features(sums, NAMED))
    if reading.function.free_symbols:
        largest = coordinates_by_size(symbol_experts(opened.model, reading.layer), reading.expert)[:NAMED]
        named += opened.quantities.of(reading.layer, [symbol("x", None, index) for index in largest])
    if named:
        print("\nhigh where (in words of tokens; null: a random statement of that rate, permuted: the best on noise)")
    for name in named:
        print(f"  {name.symbol:>8}  {name.words}")


def _shortened(reading: Reading) -> str:
    """z, all of it if it is of few coordinates; of a dense one the largest, and what share is left out."""
    if reading.tier != Tier.T0:
        return str(reading.argument)
    intercept = reading.argument.xreplace(dict.fromkeys(reading.argument.free_symbols, sympy.Integer(0)))
    terms = [term for term in sympy.Add.make_args(reading.argument) if term.free_symbols]
    ordered = sorted(terms, key=lambda term: -abs(float(term.as_coeff_Mul()[0])))
    shown = [*map(str, ordered[:TERMS]), *([str(intercept)] if intercept else [])]
    left = left_out([float(term.as_coeff_Mul()[0]) for term in ordered], TERMS)
    return f"{' + '.join(shown)}".replace("+ -", "- ") + left


def _show_contexts(opened: _Opened, reading: Reading) -> None:
    tokens_WT, (fired,) = _sample(opened, (reading.layer,))
    own_P = fired.expert_P == reading.expert
    token_P, strength_P = fired.token_P[own_P], fired.strength_P[own_P]
    print(f"\nfires on {len(token_P):,} of {tokens_WT.numel():,} held-out tokens", end="")
    print("; most on the last token of" if len(token_P) else "")
    length = tokens_WT.shape[1]
    for at in strength_P.abs().topk(min(CONTEXTS, len(token_P))).indices.tolist():
        window, place = divmod(int(token_P[at]), length)
        text = opened.corpus.tokenizer.decode(tokens_WT[window, max(0, place - TOKENS_BEFORE) : place + 1].tolist())
        print(f"  {float(strength_P[at]):10.3g}  {text!r}")


if __name__ == "__main__":
    sys.exit(main())
