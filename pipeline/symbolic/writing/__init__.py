"""Which statement each expert gets, the model that executes them, and how well it does on held-out text."""
