"""fired_sum against its oracle: every precision, activation and instruction set, on what a router in C++ left."""

import pytest
import torch

from kernels import backends
from kernels.activations import ACTIVATIONS
from kernels.cells import CellStarts
from kernels.fired_sum import ExpertLayer, reference
from kernels.jump_router.native import FEW, Router
from kernels.jump_router.packed import pack
from kernels.jump_router.tables import AxisStatistics, Rule
from kernels.packing import pack_int4, unpack_int4
from tests.tolerances import assert_close

# N tokens, D model width, E experts, H heads, I sub-keys of the rows, J of the columns, C = I * J cells

H, I, J = 2, 5, 7
SIZES = H, I, J
PRECISIONS = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture
def library(cpu_path):
    if cpu_path == "stock":
        pytest.skip("it is there for the C++ library alone")
    return backends.cpu_library()


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def routed(library, tokens, width, *, threshold=-3.0):
    """States, and what a dense router makes of them."""
    x_ND, weight_SD = normal(tokens, width, seed=tokens), normal(H * (I + J), width, seed=2) / width**0.5
    numbers = torch.zeros(H), torch.ones(H)
    statistics = AxisStatistics(*numbers, *numbers, torch.full((H,), threshold))
    router = Router(library, weight_SD, len(weight_SD), None, statistics, Rule(I, 0.3, 0.0, 1e-5))
    return x_ND, router.route(x_ND)


def layer_of(library, precision, width, *, act="relu2", biased=True):
    """A layer of random tables, some of whose cells are empty, and the oracle's arguments for it."""
    generator = torch.Generator().manual_seed(width)
    count_C = torch.randint(4, (I * J,), generator=generator)
    cell_start_C1 = torch.cat([torch.zeros(1), count_C.cumsum(0)]).int()
    experts = int(count_C.sum())

    def table(seed):
        if precision in ("float32", "bfloat16"):
            made = normal(experts, width, seed=seed).to(getattr(torch, precision)), None
            return made, made[0].double()
        most = 127 if precision == "int8" else 7
        value_ED = torch.randint(-most, most + 1, (experts, width), generator=generator).to(torch.int8)
        scale_E = (0.5 + torch.rand(experts, generator=generator)).half() / most
        stored = value_ED if precision == "int8" else pack_int4(value_ED)
        assert precision == "int8" or torch.equal(unpack_int4(stored), value_ED)
        return (stored, scale_E), value_ED.double() * scale_E.double()[:, None]

    (u, u_ED), (v, v_ED), bias_E = table(3), table(4), normal(experts, seed=5)
    biases = (normal(I, width, seed=6), normal(J, width, seed=7)) if biased else None
    layer = ExpertLayer(library, CellStarts.of(cell_start_C1), u, bias_E, v, act, biases, SIZES)
    return layer, (cell_start_C1, u_ED, bias_E, v_ED, act, biases, H)


def limit(library, precision):
    """AVX-512 rounds tokens to 15 bits where it multiplies int8 and int4."""
    return 1e-4 if precision in ("int8", "int4") and library.instruction_set == "avx512" else 2e-6


def test_offsets_of_four_bytes_give_what_those_of_one_give(library):
    x_ND, packed = routed(library, 67, 34)
    layer, (cell_start_C1, u_ED, bias_E, v_ED, act, biases, _) = layer_of(library, "float32", 34)
    stored = CellStarts.of(cell_start_C1)
    assert stored.offset_C1.dtype == torch.uint8
    wide = CellStarts(stored.offset_C1.int(), stored.block_start_K)
    tables = (u_ED.float(), None), bias_E, (v_ED.float(), None)
    assert torch.equal(ExpertLayer(library, wide, *tables, act, biases, SIZES)(x_ND, packed), layer(x_ND, packed))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("tokens", "width"), [(1, 14), (3, 130), (FEW, 64), (67, 34), (150, 256)])
def test_layers_of_every_precision_are_the_oracle(library, precision, tokens, width):
    x_ND, packed = routed(library, tokens, width)
    layer, given = layer_of(library, precision, width)
    wanted = reference.fired_sum(x_ND, packed.fired, *given)
    assert wanted.norm() > 1
    assert_close(layer(x_ND, packed).double(), wanted, limit(library, precision))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("biased", [True, False])
def test_activations_and_layers_without_biases_are_the_oracle(library, act, biased):
    x_ND, packed = routed(library, 20, 18)
    layer, given = layer_of(library, "float32", 18, act=act, biased=biased)
    assert_close(
        layer(x_ND, packed).double(), reference.fired_sum(x_ND, packed.fired, *given), limit(library, "float32")
    )


def test_tokens_that_reach_nothing_have_their_biases_alone_and_none_at_all_will_do(library):
    for tokens in (0, 1, 9):
        x_ND, packed = routed(library, tokens, 18, threshold=99.0)
        layer, given = layer_of(library, "int8", 18)
        assert packed.pairs == 0
        assert_close(
            layer(x_ND, packed).double(), reference.fired_sum(x_ND, packed.fired, *given), limit(library, "int8")
        )


def test_threads_change_nothing(library):
    x_ND, packed = routed(library, 150, 34)
    layer, _ = layer_of(library, "int4", 34)
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outputs.append(layer(x_ND, packed))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outputs)


def test_a_state_that_is_not_a_number_stays_so_and_spoils_no_other(library):
    x_ND, packed = routed(library, 4, 18)
    layer, _ = layer_of(library, "float32", 18, act="gelu")
    x_ND[2] = torch.nan
    y_ND = layer(x_ND, packed)
    assert bool(y_ND[2].isnan().all())
    assert bool(y_ND[[0, 1, 3]].isfinite().all())


def test_what_does_not_fit_is_refused(library):
    x_ND, packed = routed(library, 4, 18)
    layer, (cell_start_C1, *_) = layer_of(library, "float32", 18)
    with pytest.raises(ValueError, match=r"x_ND of shape \(3, 18\) for 4 tokens"):
        layer(x_ND[:3], packed)
    with pytest.raises(ValueError, match=r"it takes their states, 18 wide"):
        layer(x_ND[:, :16].contiguous(), packed)
    none = torch.zeros(0)
    with pytest.raises(ValueError, match=r"rows and columns \(2, 7, 5\)"):
        layer(x_ND, pack(none.long(), torch.zeros(5, dtype=torch.int64), none, (H, J, I)))
    tables = (normal(len(cell_start_C1), 18, seed=1), None), torch.zeros(36), (normal(36, 18, seed=1), None)
    offset_C1, block_start_K = CellStarts.of(torch.arange(37))
    for cells, message in (
        (CellStarts.of(cell_start_C1), "rise from 0 to 36"),
        (CellStarts.of(torch.arange(37).flip(0)), "rise from 0 to 36"),
        (CellStarts.of(torch.arange(35)), "starts of 34 cells from 0 to 34; it takes those of 35 cells"),
        (CellStarts(offset_C1.long(), block_start_K), "int64"),
        (CellStarts(offset_C1, block_start_K[:1]), r"blocks of shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ExpertLayer(library, cells, *tables, "relu", None, SIZES)
    cells = CellStarts.of(torch.cat([torch.arange(35), torch.tensor([36])]))
    for biases, message in (
        ((normal(I, 17, seed=1), normal(J, 18, seed=1)), r"row_ID of shape \(5, 17\)"),
        ((normal(I, 18, seed=1), normal(J, 18, seed=1).double()), "column_JD.*float64"),
    ):
        with pytest.raises(ValueError, match=message):
            ExpertLayer(library, cells, *tables, "relu", biases, SIZES)
    numbers = torch.zeros(H), torch.ones(H)
    statistics, rule = AxisStatistics(*numbers, *numbers, torch.zeros(H)), Rule(I, 0.3, 0.0, 1e-5)
    for weight_SD, message in (
        (torch.ones(H * (I + J), 18, device="meta"), r"shape \(24, 18\) on meta"),
        (torch.ones(H * (I + J), 18, dtype=torch.float64), "weight_XD.*float64"),
        (torch.ones(H * (I + J) + 1, 18), r"weight_XD of shape \(25, 18\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Router(library, weight_SD, H * (I + J), None, statistics, rule)
    with pytest.raises(ValueError, match="bias_E"):
        ExpertLayer(library, cells, tables[0], torch.zeros(35), tables[2], "relu", None, SIZES)
