"""Many small trainings that differ in one thing, and the intervals between them."""
