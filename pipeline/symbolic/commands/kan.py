"""kan: writes one expert's formula as a KAN."""

import argparse
from pathlib import Path

from artifacts import Store
from artifacts.terminal import say
from pipeline.symbolic.exporting.kan_folder import write_kan
from pipeline.symbolic.showing.magnitudes import DIGITS
from pipeline.symbolic.showing.opened import open_symbols, sample
from pipeline.symbolic.showing.reading import read_expert


def kan(store: Store, args: argparse.Namespace) -> int:
    opened, layer = open_symbols(store, args.id), args.layer
    # A layer that is not there has no names.
    names = opened.names[layer] if 0 <= layer < len(opened.names) else []
    reading = read_expert(opened.model, layer, args.expert, names, opened.vocabulary, digits=DIGITS)
    states = write_kan(opened.model, reading, sample(opened, [layer]).tokens_WT, Path(args.to), id=opened.id)
    say(f"{args.to}: {reading.tier.name}, {reading.num_coordinates} coordinates, {states:,} states; see its README.md")
    return 0
