"""Contexts are spread over strengths and documents, and no text stands there twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.symbolic.showing.contexts import spread


def test_with_documents_enough_they_are_the_quantiles():
    strength_P = torch.tensor([5.0, -9, 1, 7, 3, 8, -2, 6, 4, 0.5])
    chosen = spread(strength_P, torch.arange(10), str, 4)
    assert [float(strength_P[at]) for at in chosen] == [-9, 6, 3, 0.5]


def test_a_document_that_is_shown_gives_way_to_the_nearest_firing_of_another():
    strength_P = torch.tensor([9.0, 8, 7, 6, 5, 4])
    document_P = torch.tensor([0, 0, 0, 0, 1, 2])
    assert spread(strength_P, document_P, str, 3) == [0, 4, 5]


def test_one_document_is_shown_by_texts_that_differ():
    texts = ["a", "a", "b", "a", "c", "a"]
    chosen = spread(torch.arange(6.0), torch.zeros(6), texts.__getitem__, 5)
    assert sorted(texts[at] for at in chosen) == ["a", "b", "c"]


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 5), st.sampled_from("abcdefgh")), max_size=30))
def test_they_are_strongest_first_and_as_far_apart_as_there_are_documents(firings):
    strength_P = torch.tensor([strength for strength, _, _ in firings], dtype=torch.float64)
    document_P = torch.tensor([document for _, document, _ in firings])
    chosen = spread(strength_P, document_P, lambda at: firings[at][2], 4)
    sizes = [abs(firings[at][0]) for at in chosen]
    assert sizes == sorted(sizes, reverse=True)
    texts = [firings[at][2] for at in chosen]
    assert len(set(texts)) == len(texts) == min(4, len({text for _, _, text in firings}))


@pytest.mark.parametrize("count", [1, 8])
def test_of_none_and_of_one_there_are_as_many(count):
    assert spread(torch.zeros(0), torch.zeros(0), str, count) == []
    assert spread(torch.ones(1), torch.zeros(1), str, count) == [0]
