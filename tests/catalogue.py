"""Functions of the catalogue by their names."""

from pipeline.symbolic.formulas.functions import CATALOGUE

BY_NAME = {function.name: function for function in CATALOGUE}
