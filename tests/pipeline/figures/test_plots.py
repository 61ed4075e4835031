"""Pictures: small PNGs on white, the same bytes for the same numbers, and no complaint about numbers that are odd."""

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pipeline.figures.chain import chain_costs
from pipeline.figures.corpus import MOST_GROUPS, corpus_mix
from pipeline.figures.style import drawable
from pipeline.figures.symbols import length_against_fidelity, symbol_tiers
from pipeline.figures.tables import quantization_error
from pipeline.figures.training import Panel, training_curve
from pipeline.training.training_curve import Point
from pipeline.transforms.table_error import TableErrors
from tests.benchmarks.loss_by_speed import ModelPoint, loss_by_speed
from tests.pictures import assert_picture

ROOT = Path(__file__).resolve().parents[3]


def curve(*values, number="nats"):
    return [Point(step=i + 1, tokens=700 * (i + 1), numbers={number: value}) for i, value in enumerate(values)]


def noisy(points=200):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(points, generator=generator).tolist()
    return [4 * math.exp(-i / 20) + 3 + 0.1 * noise[i] for i in range(points)]


def errors(*rows, db=20.0, blocks=1):
    return TableErrors(sqnr_db=[db] * blocks, row_error_E=torch.tensor(rows, dtype=torch.float64))


def tables(**changes):
    rows = torch.linspace(0.09, 0.2, 5000, dtype=torch.float64)
    usual = TableErrors(sqnr_db=[18.0, 19.0, 17.0], row_error_E=rows)
    return {"u": usual, "v": usual, "plain": usual} | changes


def panels(**changes):
    return [Panel(number="nats", label="loss, nats a token", **changes)]


LEVELS = {"dense": 2.1} | {
    f"{name}, {how}": 1.7 + 0.1 * len(name + how) for name in "abc" for how in ("cold", "primed")
}


def costs(bits=(2.0, 1.9), sizes=(600.0, 300.0), **changes):
    options = {"levels": LEVELS, "width": 8.0, "dots_per_inch": 120} | changes
    return chain_costs(["int8", "int4"], bits_per_byte=bits, expert_bytes=sizes, **options)


def tiers(shares=(0.2, 0.5, 0.0, 0.1, 0.2), recovered=0.99):
    return symbol_tiers(
        "symbols",
        [f"T{i}\nwords" for i in range(5)],
        {"experts": shares, "energy": shares[::-1]},
        {"symbols": recovered, "constant": 0.7, "permuted": 0.3},
    )


PICTURES: dict[str, Callable[[], bytes]] = {
    "a noisy curve": lambda: training_curve(
        "a loss", curve(*noisy()), panels(held_out=3.1, baseline=("without", 5.0), from_zero=False)
    ),
    "two noisy curves": lambda: training_curve("a loss", curve(*noisy()), panels(held_out=3.1) * 2),
    "one step": lambda: training_curve("a loss", curve(3.0), panels(held_out=3.0)),
    "a constant": lambda: training_curve("a loss", curve(0.0, 0.0, 0.0), panels(held_out=0.0)),
    "rounded below 0": lambda: training_curve("a KL", curve(-1e-9, -2e-9), panels(held_out=-1e-9)),
    "not a number in between": lambda: training_curve("a loss", curve(3.0, math.nan, 2.0), panels()),
    "a panel without a number": lambda: training_curve("a loss", curve(3.0), [*panels(), Panel(number="x", label="x")]),
    "a panel with its end alone": lambda: training_curve("a loss", curve(3.0, number="y"), panels(held_out=2.0)),
    "domains": lambda: corpus_mix("text", {"code": 900, "prose": 100}, {"prose": 30, "code": 7}),
    "one domain": lambda: corpus_mix("text", {"text": 900}, {"text": 3}),
    "nothing held out": lambda: corpus_mix("text", {"text": 900}, {}),
    "very many domains": lambda: corpus_mix("text", {f"{i}_{'x' * 300}": 10**9 - i for i in range(256)}, {"prose": 5}),
    "quantized": lambda: quantization_error("int4", tables()),
    "quantized, a baseline far off": lambda: quantization_error("int8", tables(u=errors(0.005, 0.006, 0.007))),
    "quantized without an error": lambda: quantization_error("int8", {n: errors(0.0, 0.0, db=300.0) for n in "uvw"}),
    "quantized, one row": lambda: quantization_error("int8", {name: errors(0.1) for name in "uvw"}),
    "quantized, very many blocks": lambda: quantization_error("int8", {n: errors(0.1, 0.2, blocks=48) for n in "uvw"}),
    "tiers": tiers,
    "all in one tier": lambda: tiers(shares=(1.0, 0.0, 0.0, 0.0, 0.0)),
    "less than nothing recovered": lambda: tiers(recovered=-3.0),
    "loss by speed": lambda: loss_by_speed(
        "a batch", [ModelPoint(name=name, microseconds=3.0 * len(name), loss_nats=2.0) for name in ("symbols", "b")]
    ),
    "one model by speed": lambda: loss_by_speed("a", [ModelPoint(name="b", microseconds=3.0, loss_nats=2.0)]),
    "length": lambda: length_against_fidelity("a", [9.0, 3.0], [(0.1, 0.01), (0.5, 0.02)], [1.0, 0.8], 5.0),
    "one length": lambda: length_against_fidelity("a", [9.0], [(-0.1, 0.0)], [0.0], 9.0),
    "the chain": costs,
    "a chain beside the dense baseline alone": lambda: costs(levels={"dense": 2.1}),
    "a chain of what was not measured": lambda: costs(bits=(math.nan, math.nan), sizes=(0.0, 0.0)),
}  # fmt: skip


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES.keys())
def test_a_picture_is_a_small_opaque_png_on_white(draw):
    data = draw()
    assert_picture(data)
    pixels_YXC = imread(BytesIO(data))
    assert pixels_YXC.shape[1] >= 700
    assert (pixels_YXC[0, 0] == 1).all()  # a corner: white, and where there is an alpha, opaque
    assert pixels_YXC.shape[2] == 3 or (pixels_YXC[..., 3] == 1).all()


def _digest() -> str:
    """Of a picture of every function."""
    names = ("a noisy curve", "domains", "quantized", "tiers", "the chain")
    return hashlib.sha256(b"".join(PICTURES[name]() for name in names)).hexdigest()


def test_the_same_numbers_give_the_same_bytes_in_another_process():
    code = "from tests.pipeline.figures.test_plots import _digest; print(_digest())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _digest()


def test_nobodys_settings_change_a_picture_nor_does_it_change_them():
    before = costs()
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.transparent": True}):
        assert costs() == before
        assert mpl.rcParams["font.size"] == 20
    assert not mpl.rcParams["axes.grid"]


def test_other_numbers_give_other_bytes():
    drawn = [training_curve("a loss", curve(3.0, last), panels()) for last in (2.0, 2.5)]
    assert drawn[0] != drawn[1]
    assert len({costs(levels=LEVELS | {name: 1.95}) for name in LEVELS} | {costs()}) == 1 + len(LEVELS)


def test_small_domains_share_the_last_bar():
    """Which of them is which makes no difference to it."""
    few, many = (
        {f"d{i}": 10**9 - i for i in range(MOST_GROUPS - 1)} | rest for rest in ({"x": 3, "y": 4}, {"z": 7, "w": 0})
    )
    assert corpus_mix("text", few, {}) == corpus_mix("text", many, {})


def test_arrays_of_errors_are_not_changed_by_drawing_them():
    table = errors(0.0, 0.1)
    quantization_error("int8", {name: table for name in "uvw"})
    assert np.array_equal(table.row_error_E.numpy(), [0.0, 0.1])


def test_a_name_in_a_script_that_the_font_has_not_is_drawn_by_its_numbers(recwarn):
    assert drawable("über тексты 2") == "über тексты 2"
    assert drawable("中a") == "\\u4e2da"
    assert_picture(corpus_mix("text", {"中国": 900, "тексты": 100}, {"中国": 30}))
    assert not recwarn.list


def test_a_home_that_cannot_be_written_is_no_concern_of_whoever_draws(tmp_path):
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-c", "import pipeline.figures.corpus"], cwd=ROOT, capture_output=True, check=False,
        env={**os.environ, "HOME": str(tmp_path / "file"), "MPLCONFIGDIR": str(tmp_path / "file")},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
