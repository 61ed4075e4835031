"""Superposition among experts: tests on what experts did on a text, recorded, and on the model that did it."""
