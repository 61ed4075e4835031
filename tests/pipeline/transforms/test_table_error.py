"""table_errors: the parts agree with the whole, with a row by hand, and with what is known of bits and scales."""

import pytest
import torch

from pipeline.transforms.precision import to_int4, to_int8
from pipeline.transforms.table_error import sqnr_db, table_errors
from tests.tiny import JUMP, tiny_model

PLAIN = "u and v in int4 at absmax"


@pytest.fixture(scope="module")
def peer():
    return tiny_model(JUMP)


def test_errors_are_those_of_the_rows_one_by_one(peer):
    model = to_int8(peer)
    errors = table_errors(model, peer)
    for name in "uv":
        rows = torch.cat([getattr(block.moe, name) for block in peer.blocks()])
        read = torch.cat([getattr(block.moe, name).rows(torch.arange(37)) for block in model.blocks()])
        expected = torch.stack([(b - a).norm() / a.norm() for a, b in zip(rows, read, strict=True)])
        torch.testing.assert_close(errors[name].row_error_E, expected.double(), rtol=1e-4, atol=0)
        assert len(errors[name].sqnr_db) == 3


def test_plain_int4_against_itself_is_the_baseline_and_both_tables_together_are_the_metric(peer):
    model = to_int4(peer, clips=1)
    errors = table_errors(model, peer)
    both = torch.cat([errors["u"].row_error_E, errors["v"].row_error_E])
    assert torch.equal(both.sort().values, errors[PLAIN].row_error_E.sort().values)
    # Blocks are of about the same energy here, so that their mean is nearly the whole.
    assert sum(errors[PLAIN].sqnr_db) / 3 == pytest.approx(sqnr_db(model, peer), abs=0.5)


def test_a_better_scale_and_more_bits_err_less_in_every_block_than_the_baseline(peer):
    plain = table_errors(to_int4(peer, clips=1), peer)
    clipped, int8 = table_errors(to_int4(peer, clips=9), peer), table_errors(to_int8(peer), peer)
    for name in "uv":
        assert (clipped[name].row_error_E <= plain[name].row_error_E).all()
        assert all(more > less + 20 for more, less in zip(int8[name].sqnr_db, plain[name].sqnr_db, strict=True))
    assert clipped[PLAIN].sqnr_db == int8[PLAIN].sqnr_db == plain[PLAIN].sqnr_db


def test_rows_of_zeros_have_no_error(peer):
    silent = tiny_model(JUMP)
    with torch.no_grad():
        for block in silent.blocks():
            block.moe.u.zero_()
    errors = table_errors(to_int8(silent), silent)
    assert errors["u"].row_error_E.tolist() == [0.0] * 3 * 37
    assert errors["u"].sqnr_db == [0.0] * 3
