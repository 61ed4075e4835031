"""Text into tokens: reading sources, splitting documents, tokenizers, the splits and their windows."""
