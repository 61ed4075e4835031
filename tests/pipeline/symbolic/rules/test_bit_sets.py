"""Sets of tokens as words of bits: there and back, counted, and those of literals."""

import pytest
import torch

from kernels.symbol_table.tables import context_of
from pipeline.models.literals import Literals
from pipeline.symbolic.rules.bit_sets import LiteralWords, count, everything, packed, unpacked

# X sets, N tokens, L literals, V vocabulary


def sets(tokens, seed=0):
    return torch.rand(3, 5, tokens, generator=torch.Generator().manual_seed(seed)) < 0.3


@pytest.mark.parametrize("tokens", [1, 7, 63, 64, 65, 200])
def test_packing_and_unpacking_gives_back_the_set_and_its_size(tokens):
    true_XN = sets(tokens)
    words = packed(true_XN)
    assert words.shape == (3, 5, -(-tokens // 64))
    assert torch.equal(unpacked(words, tokens), true_XN)
    assert torch.equal(count(words), true_XN.sum(-1).float())


def test_logic_of_words_is_logic_of_sets():
    a, b = sets(131, 1), sets(131, 2)
    every = everything(131)
    assert torch.equal(unpacked(packed(a) & ~packed(b) & every, 131), a & ~b)
    assert torch.equal(count((~packed(a)) & every), (~a).sum(-1).float())


def test_the_words_of_literals_are_those_of_their_values():
    generator = torch.Generator().manual_seed(3)
    vocabulary, shared = 19, 4
    member_LV = torch.rand(shared + 6, vocabulary, generator=generator) < 0.2
    member_LV[7] = False
    literals = Literals(member_LV, torch.randint(3, (shared + 6,), generator=generator).to(torch.uint8))
    context_ON = context_of(torch.randint(vocabulary, (3, 37), generator=generator), 3)
    words = LiteralWords(literals, shared, context_ON)
    for which in ([9, 0, 4, 7, 3, 3, 5], [1, 2], [8, 6]):
        literal_X = torch.tensor(which)
        assert torch.equal(unpacked(words.of(literal_X), 111), literals.values(context_ON, literal_X))
