"""Questions to a model about its experts: which a token or a text fires, and what they are worth."""
