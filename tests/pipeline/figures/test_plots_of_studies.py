"""The pictures of studies: small PNGs on white, the same bytes for the same numbers, each value where it belongs."""

import math
from io import BytesIO

import pytest
from matplotlib.image import imread

from pipeline.figures.studies import Measurement, intervals, lines_by_size
from tests.pictures import assert_picture

ARMS = {"fp32": (-0.02, 0.01), "int4_accumulator": (0.013, 0.02), "int4_nearest_small_lr": (0.4, 0.05)}


def line(*values, first=4096, half_width=0.02):
    return [Measurement(x=first * 2.0**i, y=y, half_width=half_width) for i, y in enumerate(values)]


def panels(**changes):
    lines = {"fp32": line(3.4, 3.3, 3.25), "bf16": line(3.41, 3.3, 3.26, first=2048)} | changes
    return {"bytes of tables, training": lines, "bytes of tables, inference": lines}


def drawn_lines(**changes):
    return lines_by_size("loss against bytes", panels(**changes), "nats a token")


FOUR = {"int8": line(3.5, 3.4, first=1024), "int4": line(3.6, 3.5, first=512)}
PICTURES = {
    "intervals": lambda: intervals("differences", ARMS, "nats a token"),
    "one interval": lambda: intervals("a change", {"change": (1e-7, 0.002)}, "nats a token"),
    "intervals of no width around zero": lambda: intervals("nothing", {"a": (0.0, 0.0), "b": (0.0, 0.0)}, "nats"),
    "an interval of what was not measured": lambda: intervals("a", {"a": (math.nan, math.nan), "b": (1.0, 0.1)}, "x"),
    "very many intervals": lambda: intervals("many", {f"arm_{i}": (i / 10, 0.1) for i in range(30)}, "nats a token"),
    "lines": drawn_lines,
    "four lines": lambda: drawn_lines(**FOUR),
    "a line of one point": lambda: lines_by_size("a", {"bytes": {"fp32": line(3.4)}}, "nats"),
    "equal values of no width": lambda: drawn_lines(fp32=line(3.0, 3.0, half_width=0.0)),
    "from kilobytes to terabytes": lambda: drawn_lines(fp32=[*line(3.0), *line(2.0, first=10**12)]),
    "a loss that is not a number": lambda: drawn_lines(fp32=line(3.0, math.nan, 2.0)),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES.keys())
def test_a_picture_of_a_study_is_a_small_opaque_png_on_white(draw):
    data = draw()
    assert_picture(data)
    pixels_YXC = imread(BytesIO(data))
    assert pixels_YXC.shape[1] >= 700
    assert (pixels_YXC[0, 0] == 1).all()  # a corner: white, and where there is an alpha, opaque
    assert pixels_YXC.shape[2] == 3 or (pixels_YXC[..., 3] == 1).all()


@pytest.mark.parametrize("name", ["intervals", "four lines"])
def test_the_same_numbers_give_the_same_bytes(name):
    assert PICTURES[name]() == PICTURES[name]()


def test_every_value_name_and_width_is_seen():
    drawn = [
        intervals("t", values, "nats")
        for values in (
            {"a": (0.1, 0.2), "b": (0.3, 0.1)},
            {"a": (0.15, 0.2), "b": (0.3, 0.1)},
            {"a": (0.1, 0.25), "b": (0.3, 0.1)},
            {"a": (0.1, 0.2), "c": (0.3, 0.1)},
            {"b": (0.3, 0.1), "a": (0.1, 0.2)},
        )
    ]
    assert len(set(drawn)) == len(drawn)


def test_every_point_size_and_width_of_a_line_is_seen():
    lines = [line(3.4, 3.3), line(3.4, 3.2), line(3.4, 3.3, first=5000), line(3.4, 3.3, half_width=0.03)]
    drawn = {drawn_lines(fp32=points) for points in lines}
    assert len(drawn) == len(lines)


def test_each_of_four_lines_is_seen_in_each_panel():
    """Whichever of the eight is moved, the picture is another."""
    whole = drawn_lines(**FOUR)
    for panel in panels():
        for name in ("fp32", "bf16", "int8", "int4"):
            changed = {p: dict(lines) for p, lines in panels(**FOUR).items()}
            first, *others = changed[panel][name]
            changed[panel][name] = [Measurement(x=first.x, y=first.y - 0.05, half_width=first.half_width), *others]
            assert lines_by_size("loss against bytes", changed, "nats a token") != whole


def test_a_picture_grows_by_its_intervals():
    heights = [imread(BytesIO(PICTURES[name]())).shape[0] for name in ("one interval", "intervals")]
    assert heights[0] < heights[1]
