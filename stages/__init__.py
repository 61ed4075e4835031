"""A stage a file, the chain that they make, its presets and its command line. stages/chain.py has the contents.

Nothing is imported here: `--help` is read before any stage, and torch with it, is loaded.
"""
