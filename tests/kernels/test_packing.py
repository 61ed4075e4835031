"""Packing loses nothing, lies as drawn, and refuses what has no place in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.packing import pack_int4, unpack_int4


def test_unpacking_then_packing_gives_back_every_byte():
    every = torch.arange(256, dtype=torch.uint8)[None]
    assert torch.equal(pack_int4(unpack_int4(every)), every)


def test_packing_then_unpacking_gives_back_every_pair_of_nibbles():
    nibbles = torch.arange(-8, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(nibbles, nibbles)
    packed = pack_int4(pairs)
    assert packed.shape == (256, 1)
    assert len(packed.unique()) == 256
    assert torch.equal(unpack_int4(packed), pairs)


def test_a_byte_holds_an_element_low_and_its_partner_half_a_row_on_high():
    row = [-8, 3, -1, 7, 0, -5]
    packed = pack_int4(torch.tensor([row], dtype=torch.int8))[0].tolist()
    assert packed == [(row[j] % 16) + 16 * (row[j + 3] % 16) for j in range(3)]


@given(rows=st.integers(0, 5), half=st.integers(0, 9), seed=st.integers(0, 2**32), leading=st.booleans())
def test_any_shape_survives(rows, half, seed, leading):
    shape = (3, rows, 2 * half) if leading else (rows, 2 * half)
    values = torch.randint(-8, 8, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    packed = pack_int4(values)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], half)
    assert torch.equal(unpack_int4(packed), values)


def test_rows_that_are_not_contiguous_survive():
    values = torch.arange(-8, 7, dtype=torch.int8).repeat(8).view(10, 12).T
    assert torch.equal(unpack_int4(pack_int4(values)), values)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="odd width 7; int4 rows hold an even number"):
        pack_int4(torch.zeros(3, 7, dtype=torch.int8))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_packing_refuses_another_dtype(dtype):
    with pytest.raises(ValueError, match=rf"got values of {dtype}; it takes torch\.int8"):
        pack_int4(torch.zeros(3, 6, dtype=dtype))


def test_unpacking_refuses_another_dtype():
    with pytest.raises(ValueError, match=r"got bytes of torch\.int8; it takes torch\.uint8"):
        unpack_int4(torch.zeros(3, 6, dtype=torch.int8))
