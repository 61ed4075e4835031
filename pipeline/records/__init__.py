"""What a model's experts did on text, kept: which fired on each token, and how much each contributed."""
