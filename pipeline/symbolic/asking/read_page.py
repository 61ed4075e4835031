"""A text as one coloured page: how much the experts add at each token, and which they are."""

from pathlib import Path

from pipeline.symbolic.asking.pages import rendered
from pipeline.symbolic.asking.read import TextRead

_HERE = Path(__file__).parent


def read_page(text: TextRead) -> str:
    """HTML, with style and script within."""
    layers = [of_layer.layer for of_layer in text.tokens[0].layers]
    most = [max(token.layers[at].contribution for token in text.tokens) or 1.0 for at in range(len(layers))]
    strength = [[token.layers[at].contribution / most[at] for at in range(len(layers))] for token in text.tokens]
    return rendered(_HERE / "read.html.jinja", _HERE / "read.js", text=text, layers=layers, strength=strength)
