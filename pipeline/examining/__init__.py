"""What experts did on a text, recorded, and the tests on such a record that need no model."""
