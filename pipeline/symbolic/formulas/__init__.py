"""Magnitudes as functions of few coordinates: the catalogue, fits, splines, KANs."""
