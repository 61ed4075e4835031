"""Symbols as C and as pykan models."""
