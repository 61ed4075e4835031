"""Contents: PEER experts as formulas and logic."""
