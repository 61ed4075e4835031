"""Where and when tests say that their artifacts were made."""

from artifacts import Circumstance

CIRCUMSTANCE = Circumstance(
    commit="c0ffee",
    dirty=False,
    torch="2.13.0",
    python="3.11.7",
    device="cpu",
    seconds=1.5,
    created="2026-01-31T12:00:00+00:00",
)
