"""PEER experts as formulas and logic: fitting, choosing, reading. What executes them is models/symbols.py."""
