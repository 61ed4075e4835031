"""Which of an expert's firings are shown: over all strengths, each of another document, no text twice."""

# P firings of the expert, C of them that are shown

from collections.abc import Callable

import torch
from torch import Tensor


def spread(strength_P: Tensor, document_P: Tensor, text_of: Callable[[int], str], count: int) -> list[int]:
    """(C) places, the strongest first, about as many firings between each two.

    Near each quantile of |strength| the nearest firing whose document and text are not shown yet; where the documents
    run out, whose text is not.
    """
    order = torch.argsort(strength_P.abs(), descending=True, stable=True).tolist()
    document, texts = document_P.tolist(), {}

    def text(place: int) -> str:
        if place not in texts:
            texts[place] = text_of(place)
        return texts[place]

    chosen: dict[int, str] = {}
    for rank in _quantiles(len(order), count):
        near = sorted(range(len(order)), key=lambda other, rank=rank: (abs(other - rank), other))
        shown, known = {document[place] for place in chosen}, set(chosen.values())
        free = [order[at] for at in near if order[at] not in chosen]
        apart = next((place for place in free if document[place] not in shown and text(place) not in known), None)
        place = next((place for place in free if text(place) not in known), None) if apart is None else apart
        if place is not None:
            chosen[place] = text(place)
    return sorted(chosen, key=order.index)


def _quantiles(length: int, count: int) -> list[int]:
    if length <= count:
        return list(range(length))
    return [round(at * (length - 1) / (count - 1)) for at in range(count)] if count > 1 else [0]
