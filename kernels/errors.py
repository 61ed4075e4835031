"""Errors whose one sentence is for the user: what was got, what is wanted, what to do. All others are bugs."""


class Mistake(ValueError):
    """What was asked for cannot be."""


class Failure(RuntimeError):
    """What was asked for did not come about."""
