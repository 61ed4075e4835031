"""What tokens are, as text: the classes that label them beside the next token and the domain."""

# V vocabulary

import string
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.tokenizer import TextTokenizer

CLASSES: Mapping[str, Callable[[str], bool]] = {
    "newline": lambda text: "\n" in text,
    "space": lambda text: bool(text) and text.isspace(),
    "digits": lambda text: text.strip().isdigit(),
    "opening": lambda text: text.strip()[-1:] in tuple("([{<"),
    "closing": lambda text: text.strip()[:1] in tuple(")]}>"),
    "quote": lambda text: text.strip() in ('"', "'", "`", '"""', "'''"),
    "punctuation": lambda text: bool(text.strip()) and all(of in string.punctuation for of in text.strip()),
    "word": lambda text: text[:1] == " " and text[1:].isalpha(),
    "capital": lambda text: text[:1].isupper(),
    "letters": str.isalpha,
}
"""The first that is true of a token is its class; one more is for all others."""


def classes_of_tokens(tokenizer: TextTokenizer) -> NDArray[np.int64]:
    """(V) place in CLASSES of each token, len(CLASSES) for one that is of none."""
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer.token_bytes))]
    tests = list(CLASSES.values())
    return np.array([next((at for at, test in enumerate(tests) if test(text)), len(tests)) for text in texts])
