"""A running stage on its page in the UI: a tile of short lines, and a card with the curve of its loss so far."""

import base64
from dataclasses import dataclass, field

from pipeline.run import Progress
from pipeline.running.progress import first_of_loop, said_numbers, time_left

MOST_POINTS = 240
"""Of a curve, as far apart from each other as its steps allow, so that a card of days stays a few kB."""
WIDTH, HEIGHT, LEFT, BOTTOM = 600, 220, 56, 24
LINE, AXIS = "#0d9488", "#64748b"


def tile(first: Progress, now: Progress) -> str:
    """A paragraph a line: a tile shows each on one line, and cuts off what is longer than forty letters or so."""
    lines = [f"**{now.what}**", f"{now.step:,} of {now.total:,}", time_left(first, now), *said_numbers(now)]
    return "\n\n".join(line for line in lines if line)


@dataclass(slots=True)
class LiveCurve:
    """What a stage has told of its current loop: the first of its numbers, over steps."""

    stage: str
    first: Progress | None = None
    now: Progress | None = None
    points: list[tuple[float, float]] = field(default_factory=list)

    def add(self, progress: Progress) -> None:
        first = first_of_loop(self.first, progress)
        if first is not self.first:
            self.points.clear()
        self.first, self.now = first, progress
        name = self._name()
        if name is not None:
            self._keep((progress.step, progress.numbers[name]), spacing=progress.total / MOST_POINTS)

    def _keep(self, point: tuple[float, float], *, spacing: float) -> None:
        """The last point is always the latest; each of the others is far enough from the one before it."""
        if len(self.points) > 1 and self.points[-1][0] - self.points[-2][0] < spacing:
            self.points[-1] = point
        else:
            self.points.append(point)

    def card(self) -> str | None:
        """Markdown with the curve; None where there is none to draw yet."""
        name = self._name()
        if self.first is None or self.now is None or name is None or len(self.points) < 2:
            return None
        picture = base64.b64encode(self._svg(name).encode()).decode()
        said = tile(self.first, self.now).replace("\n\n", " · ")
        return f"# {self.stage}\n\n{said}\n\n![{name} over steps](data:image/svg+xml;base64,{picture})\n"

    def _name(self) -> str | None:
        numbers = self.now.numbers if self.now else {}
        return next((name for name in numbers if name != "tokens_per_second"), None)

    def _svg(self, name: str) -> str:
        # The card keeps its size while the stage runs: steps go to the loop's last one.
        last = max(self.now.total if self.now else 1, 1)
        values = [value for _, value in self.points]
        low, high = min(values), max(values)
        span = (high - low) or 1.0
        floor = HEIGHT - BOTTOM
        line = " ".join(
            f"{LEFT + step / last * (WIDTH - LEFT - 8):.1f},{floor - (value - low) / span * (floor - 12):.1f}"
            for step, value in self.points
        )
        texts = (
            (LEFT - 6, 18, f"{high:.4g}", "end"),
            (LEFT - 6, floor, f"{low:.4g}", "end"),
            (LEFT, HEIGHT - 6, f"{name} by step", "start"),
            (WIDTH - 8, HEIGHT - 6, f"{last:,}", "end"),
        )
        words = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, text, anchor in texts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"><rect width="100%" '
            f'height="100%" fill="#fff"/><path d="M{LEFT},8 V{floor} H{WIDTH - 8}" fill="none" stroke="{AXIS}"/>'
            f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2"/>'
            f'<g font-family="sans-serif" font-size="12" fill="{AXIS}">{words}</g></svg>'
        )
