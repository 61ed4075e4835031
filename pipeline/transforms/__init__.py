"""A model into another model: from Monet, to another precision, sparser, or grown."""
