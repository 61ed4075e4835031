"""The literals that rules are made of: classes of tokens at every place, and the most frequent tokens."""

# V vocabulary

import torch
from torch import Tensor

from pipeline.models.literals import Literals

_CLASSES = {
    "digit": str.isdigit,
    "upper": str.isupper,
    "lower": str.islower,
    "letters": str.isalpha,
    "space": lambda text: bool(text) and text.isspace(),
    "newline": lambda text: "\n" in text,
    "word start": lambda text: text[:1] == " ",
    "punctuation": lambda text: bool(text.strip()) and not any(c.isalnum() for c in text),
    "name part": lambda text: bool(text) and all(c.isalnum() or c == "_" for c in text),
}


def build_literals(
    vocabulary: list[str], counts_V: Tensor, *, places: int, identities: int
) -> tuple[Literals, list[str]]:
    """Class literals at every place, and identity literals of the most frequent tokens at the two nearest.

    Returns the literals and a name for each.
    """
    members, offsets, names = [], [], []
    for back in range(places):
        for name, test in _CLASSES.items():
            members.append(torch.tensor([bool(test(text)) for text in vocabulary]))
            offsets.append(back)
            names.append(f"{name}[{-back}]" if back else name)
    for back in range(min(2, places)):
        for token in counts_V.topk(min(identities, len(vocabulary))).indices.tolist():
            member_V = torch.zeros(len(vocabulary), dtype=torch.bool)
            member_V[token] = True
            members.append(member_V)
            offsets.append(back)
            names.append(f"token[{-back}] is {vocabulary[token]!r}")
    return Literals(torch.stack(members), torch.tensor(offsets, dtype=torch.uint8)), names
