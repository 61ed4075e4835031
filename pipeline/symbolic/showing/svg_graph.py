"""The graph of an expert's function as a small SVG: its curve over the range of the data, with some of the data."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 38
"""Margins, in pixels."""
LINE, POINT, AXIS = "#0d9488", "#94a3b8", "#64748b"


def graph(
    curve: Sequence[tuple[float, float]], points: Sequence[tuple[float, float]], x_label: str, y_label: str
) -> str:
    """One <svg> element; the axes bear the least and the largest value of curve and points."""
    xs, ys = zip(*curve, *points, strict=True)
    (x_low, x_high), (y_low, y_high) = _range(xs), _range(ys)

    def at(x: float, y: float) -> tuple[str, str]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f}", f"{down:.1f}"

    dots = "".join('<circle cx="{}" cy="{}" r="2"/>'.format(*at(x, y)) for x, y in points)
    line = " ".join(",".join(at(x, y)) for x, y in curve)
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    texts = (
        _text(LEFT, floor + 14, f"{x_low:.3g}", "start"),
        _text(right, floor + 14, f"{x_high:.3g}", "end"),
        _text((LEFT + right) / 2, floor + 28, x_label, "middle"),
        _text(LEFT - 5, floor, f"{y_low:.3g}", "end"),
        _text(LEFT - 5, TOP + 9, f"{y_high:.3g}", "end"),
        _text(LEFT - 5, (TOP + floor) / 2, y_label, "end"),
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img"><path d="M{LEFT},{TOP} V{floor} H{right}" fill="none" stroke="{AXIS}"/>'
        f'<g fill="{POINT}">{dots}</g>'
        f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2"/>'
        f'<g font-size="11" fill="{AXIS}">{"".join(texts)}</g></svg>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Least and largest; a little around them where they are one."""
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(1.0, abs(low)):
        return low, high
    return low - 0.5, high + 0.5
