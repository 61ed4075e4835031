"""show: prints one expert of a symbols model, or lists those of its layers."""

import argparse

from artifacts import Store, writing_to_stdout
from artifacts.terminal import say
from kernels.errors import Mistake
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.layers import layer_lines
from pipeline.symbolic.showing.opened import OpenedSymbols, open_symbols


def show(store: Store, args: argparse.Namespace) -> int:
    layer, expert = args.layer, args.expert
    if expert is not None and layer is None:
        raise Mistake("an expert has a number within its layer; give --layer too")
    if expert is None and (args.json or args.all):
        raise Mistake(f"--{'json' if args.json else 'all'} is of one expert; give --layer and --expert too")
    if args.most < 1:
        raise Mistake(f"--most: got {args.most}, wanted at least 1")
    opened = open_symbols(store, args.id)
    if layer is not None:
        symbol_experts(opened.model, layer)
    if layer is None or expert is None:
        layers = range(len(opened.model.blocks())) if layer is None else [layer]
        say("\n".join(layer_lines(opened, layers, most=args.most)))
    else:
        _show_expert(opened, layer, expert, args)
    return 0


def _show_expert(opened: OpenedSymbols, layer: int, expert: int, args: argparse.Namespace) -> None:
    # Here, and not above: lists do without sympy.
    from pipeline.symbolic.showing.magnitudes import DIGITS
    from pipeline.symbolic.showing.printed import data_of, show_expert
    from pipeline.symbolic.showing.reading import read_expert

    digits = None if args.all else DIGITS
    reading = read_expert(opened.model, layer, expert, opened.names[layer], opened.vocabulary, digits=digits)
    with writing_to_stdout():
        if args.json:
            print(data_of(opened, reading).model_dump_json())
        else:
            show_expert(opened, reading, in_latex=args.latex, whole=args.all)
