"""Philox gives its authors' words, and rows' draws that are uniform and each their own."""

import numpy as np
import pytest
import torch

from kernels.philox import philox, row_uniforms

# The known answers that come with the authors' Random123.
KNOWN = [
    ((0,) * 4, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_words_are_the_authors(counter, key, words):
    got = philox(tuple(np.array([c], dtype=np.uint64) for c in counter), key)
    assert tuple(int(word[0]) for word in got) == words


def test_a_draw_depends_on_its_row_column_step_and_stream_alone():
    rows = torch.tensor([7, 3, 2_000_000_000])
    all_RD = row_uniforms(rows, 10, stream=5, step=9)
    assert torch.equal(row_uniforms(rows[1:2], 10, stream=5, step=9)[0], all_RD[1])
    assert torch.equal(row_uniforms(rows, 7, stream=5, step=9), all_RD[:, :7])
    for other in (row_uniforms(rows, 10, stream=6, step=9), row_uniforms(rows, 10, stream=5, step=10)):
        assert (other != all_RD).all()
    assert all_RD.unique().numel() == 30


def test_draws_are_uniform_and_below_one():
    draws = row_uniforms(torch.arange(500), 400, stream=1, step=0)
    assert 0 <= draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    assert torch.equal(draws * 2**24, (draws * 2**24).round())
    count_10 = torch.histc(draws, 10, 0, 1)
    assert ((count_10 - 20_000) ** 2 / 20_000).sum() < 27.9  # chi squared of 9 degrees, p = .001
