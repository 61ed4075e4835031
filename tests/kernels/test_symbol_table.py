"""symbol_table against its oracle: every tier, function code and gate, tokens without experts, and tables that lie."""

import pytest
import torch

from kernels import backends
from kernels.packing import pack_int4
from kernels.symbol_table import reference, symbol_table
from kernels.symbol_table.checks import check_tables
from kernels.symbol_table.functions import FUNCTIONS, KNOTS, SPLINE_CODE, evaluate_splines
from kernels.symbol_table.tables import SymbolTables, Tier, context_of
from pipeline.symbolic.rules.logic import GATE_OUTPUT_G4
from tests.tolerances import assert_close

# N tokens, D model width, C cells, E experts, K coordinates, L literals, G gates, V vocabulary, W splines, O places,
# P pairs
D, C, K, L, G, V, W, O = 14, 11, 3, 5, 37, 13, 4, 3
CODES = (*range(len(FUNCTIONS)), SPLINE_CODE)
TIERS = tuple(Tier)
EXPERTS_OF_CELLS = [7, 0, 9, 3, 12, 0, 8, 5, 10, 6, 5]
E = sum(EXPERTS_OF_CELLS)
CELLS_OF_TOKENS = [[3, 3, 0], [], [8, 1, 10, 5], [2], [], [4, 4, 4, 7], [6, 9], []]


def tables(seed=0, *, tiers=TIERS, codes=CODES) -> SymbolTables:
    """Random tables in which experts take all of these tiers, codes and all gates in turn."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def below(limit, *shape):
        return torch.randint(limit, shape, generator=generator)

    number_E = torch.arange(E)
    low_W = -1 - torch.rand(W, generator=generator)
    made = SymbolTables(
        cell_start_C1=torch.tensor([0, *torch.tensor(EXPERTS_OF_CELLS).cumsum(0).tolist()], dtype=torch.int32),
        tier_E=torch.tensor(tiers)[below(len(tiers), E)].to(torch.uint8),
        code_E=torch.tensor(codes)[number_E % len(codes)].to(torch.uint8),
        scale_E=normal(E),
        offset_E=normal(E),
        index_EK=below(D, E, K).to(torch.int16),
        coefficient_EK=normal(E, K),
        intercept_E=normal(E),
        dense_row_E=below(E // 2, E).to(torch.int32),
        dense_u_FD=normal(E // 2, D) / 3,
        rule_E=below(G, E).to(torch.int32),
        gate_G=(torch.arange(G) % 16).to(torch.uint8),
        wire_a_G=(torch.rand(G, generator=generator) * (L + torch.arange(G))).to(torch.int32),
        wire_b_G=(torch.rand(G, generator=generator) * (L + torch.arange(G))).to(torch.int32),
        member_LV=torch.rand(L, V, generator=generator) < 0.5,
        literal_offset_L=(torch.arange(L) % O).to(torch.uint8),
        spline_row_E=below(W, E).to(torch.int32),
        spline_low_W=low_W,
        spline_high_W=low_W + 2 * torch.rand(W, generator=generator) + 0.5,
        spline_coefficient_WK=normal(W, KNOTS + 2),
        v_EB=pack_int4((below(16, E, D) - 8).to(torch.int8)),
        v_scale_E=(0.02 + 0.1 * torch.rand(E, generator=generator)).half(),
    )
    check_tables(made, places=O)
    return made


def tokens(cells_of_tokens=CELLS_OF_TOKENS, seed=1):
    """(x_ND, cell_P, start_N1, gate_P, tokens_BT), two windows of tokens where they can be halved."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([0, *map(len, cells_of_tokens)])
    pairs, count = int(counts.sum()), len(cells_of_tokens)
    return (
        torch.randn(count, D, generator=generator),
        torch.tensor([cell for cells in cells_of_tokens for cell in cells], dtype=torch.int64),
        counts.cumsum(0),
        torch.rand(pairs, generator=generator),
        torch.randint(V, (count,), generator=generator).view(1 + (count % 2 == 0 and count > 0), -1),
    )


def run(given, made):
    return symbol_table(*given, made, O)


def oracle(given, made):
    *others, tokens_BT = given
    return reference.symbol_table(*others, context_of(tokens_BT, O), made)


def agree(made, given, limit=5e-6):
    wanted = oracle(given, made)
    assert_close(run(given, made).double(), wanted, limit)
    return wanted


@pytest.mark.parametrize("seed", range(3))
def test_all_tiers_functions_and_gates_together_are_the_oracle(cpu_path, seed):
    assert agree(tables(seed), tokens(seed=seed + 10)).norm() > 1


@pytest.mark.parametrize("tier", TIERS, ids=[tier.name for tier in TIERS])
def test_each_tier_alone_is_the_oracle(cpu_path, tier):
    wanted_ND = agree(tables(tiers=(tier,)), tokens())
    silent_N = wanted_ND.norm(dim=1) == 0
    if tier <= Tier.T1:
        assert silent_N.tolist() == [not cells for cells in CELLS_OF_TOKENS]
    else:
        assert bool(silent_N.all()) == (tier == Tier.T4)


@pytest.mark.parametrize("code", CODES)
def test_each_function_is_the_oracle_far_out_too(cpu_path, code):
    x, *others = tokens()
    made = tables(tiers=(Tier.T0, Tier.T1), codes=(code,))
    agree(made, (x, *others))
    # z is twenty times as large, and with it its rounding, which a steep function passes on.
    agree(made, (20 * x, *others), 3e-5)


@pytest.mark.parametrize("kind", range(16))
def test_each_gate_fires_where_its_table_of_truth_says(cpu_path, kind):
    made, given = tables(tiers=(Tier.T3,)), tokens()
    made.gate_G[:] = kind
    agree(made, given)
    made.wire_a_G[17], made.wire_b_G[17], made.rule_E[5] = 3, 1, 17
    context_ON = context_of(given[4], O)
    value_LN = torch.stack(
        [made.member_LV[i][context_ON[i % O].clamp(min=0)] & (context_ON[i % O] >= 0) for i in range(L)]
    )
    made.tier_E[:] = Tier.T4
    made.tier_E[5], made.code_E[5], made.scale_E[5], made.offset_E[5] = Tier.T3, 0, 2.0, 0.0
    fires_N = run(given, made).norm(dim=1) > 0
    assert torch.equal(fires_N, GATE_OUTPUT_G4[kind][2 * value_LN[3].long() + value_LN[1].long()])


@pytest.mark.parametrize("cells_of_tokens", [[[]], [[], []], [[4]], [[1], [5]], []], ids=str)
def test_few_tokens_or_none_and_cells_without_experts(cpu_path, cells_of_tokens):
    given = tokens(cells_of_tokens)
    for tiers in (TIERS, (Tier.T1,)):
        agree(tables(tiers=tiers), given)


def test_more_tokens_than_are_taken_at_once_on_two_threads(cpu_path):
    generator = torch.Generator().manual_seed(3)
    cells = [
        torch.randint(C, (int(n),), generator=generator).tolist() for n in torch.randint(3, (601,), generator=generator)
    ]
    made, given, threads = tables(), tokens(cells), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        got_ND = run(given, made)
        torch.set_num_threads(1)
        assert torch.equal(got_ND, run(given, made))
    finally:
        torch.set_num_threads(threads)
    assert_close(got_ND.double(), oracle(given, made), 5e-6)


def test_tables_without_dense_rows_literals_and_splines_will_do(cpu_path):
    made = tables(tiers=(Tier.T1, Tier.T4), codes=(0, 1))._replace(
        dense_u_FD=torch.zeros(0, D), member_LV=torch.zeros(0, V, dtype=torch.bool),
        literal_offset_L=torch.zeros(0, dtype=torch.uint8), spline_low_W=torch.zeros(0), spline_high_W=torch.zeros(0),
        spline_coefficient_WK=torch.zeros(0, KNOTS + 2), dense_row_E=torch.zeros(E, dtype=torch.int32),
        rule_E=torch.zeros(E, dtype=torch.int32), gate_G=torch.zeros(0, dtype=torch.uint8),
        wire_a_G=torch.zeros(0, dtype=torch.int32), wire_b_G=torch.zeros(0, dtype=torch.int32),
        spline_row_E=torch.zeros(E, dtype=torch.int32),
    )  # fmt: skip
    check_tables(made, places=O)
    agree(made, tokens())


def test_a_state_that_is_not_a_number_stays_so_and_reads_nothing_else(cpu_path):
    x, *others = tokens([[4], [4]])
    made = tables(tiers=(Tier.T1,), codes=(1,))
    x[0] = torch.nan
    y_ND = run((x, *others), made)
    assert bool(y_ND[0].isnan().all())
    assert bool(y_ND[1].isfinite().all())
    y_ND = run((x, *others), tables(tiers=(Tier.T1,), codes=(SPLINE_CODE,)))
    assert bool(y_ND[0].isnan().all())


def test_splines_go_through_the_knots_of_the_recursion():
    made = tables()
    row_P = torch.arange(W).repeat_interleave(50)
    z_P = torch.cat(
        [
            torch.linspace(float(low) - 0.5, float(high) + 0.5, 50)
            for low, high in zip(made.spline_low_W, made.spline_high_W, strict=True)
        ]
    )
    splines = made.spline_low_W, made.spline_high_W, made.spline_coefficient_WK
    found_P = evaluate_splines(*splines, row_P, z_P)
    wanted = [reference.spline(int(row), float(z), made) for row, z in zip(row_P, z_P, strict=True)]
    assert_close(found_P.double(), torch.tensor(wanted, dtype=torch.float64), 2e-6)


def test_it_has_no_gradients_and_says_so(cpu_path):
    x, *others = tokens()
    y_ND = run((x.requires_grad_(), *others), tables())
    with pytest.raises(RuntimeError, match="symbol_table"):
        y_ND.sum().backward()


def test_the_operator_is_one_that_torch_knows():
    given = (*tokens(), O, list(tables()))
    torch.library.opcheck(torch.ops.legible.symbol_table.default, given, test_utils="test_schema")
    torch.library.opcheck(torch.ops.legible.symbol_table.default, given, test_utils="test_faketensor")


LIES = [
    ("tier_E", 5, "tier_E"), ("code_E", len(FUNCTIONS), "code_E"),
    ("index_EK", D, "index_EK"), ("index_EK", -1, "index_EK"),
    ("dense_row_E", E // 2, "dense_row_E"), ("dense_row_E", -1, "dense_row_E"), ("rule_E", G, "rule_E"),
    ("rule_E", -1, "rule_E"), ("wire_a_G", L + G, "wire_a_G"), ("wire_a_G", L, "wire_a_G"),
    ("wire_b_G", -2, "wire_b_G"), ("literal_offset_L", O, "literal_offset_L"),
    ("spline_row_E", W, "spline_row_E"),
    ("cell_start_C1", E + 1, "cell_start_C1"), ("cell_start_C1", -1, "cell_start_C1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "named"), LIES)
def test_tables_that_point_outside_themselves_are_refused_by_the_check_and_before_c_reads_them(
    cpu_path, name, value, named
):
    tiers = {"dense_row_E": (Tier.T0,), "wire_a_G": (Tier.T2,), "wire_b_G": (Tier.T3,)}.get(name, (Tier.T1, Tier.T2))
    codes = (SPLINE_CODE,) if name == "spline_row_E" else CODES
    made = tables(tiers=tiers, codes=codes)
    getattr(made, name)[:] = value
    message = f"{named} holds {value} at 0, which is "
    with pytest.raises(ValueError, match=message):
        check_tables(made, places=O)
    if cpu_path != "stock":
        with pytest.raises(ValueError, match=message):
            run(tokens(), made)


CYCLES = [("wire_a_G", 0, L), ("wire_b_G", 0, L), ("wire_a_G", 20, L + 20), ("wire_b_G", 3, L + 30)]


@pytest.mark.parametrize(("name", "gate", "wire"), CYCLES)
def test_a_wire_to_its_own_gate_or_a_later_one_is_a_cycle_and_refused_with_its_place(cpu_path, name, gate, wire):
    made = tables(tiers=(Tier.T1, Tier.T3))
    getattr(made, name)[gate] = wire
    place = f"{name} holds {wire} at {gate}, which is a cycle: the wires of gate g lie below {L} \\+ g"
    with pytest.raises(ValueError, match=place):
        check_tables(made, places=O)
    if cpu_path != "stock":
        with pytest.raises(ValueError, match=place):
            run(tokens(), made)
    made.wire_a_G[30] = L + 30
    if cpu_path == "stock":
        with pytest.raises(ValueError, match="a cycle through gate"):
            run(tokens(), made)


WRONG_ENTRIES = [
    ("gate_G", 9, 16, "outside 0 to 15"),
    ("code_E", 4, len(FUNCTIONS), f"no function: 0 to {len(FUNCTIONS) - 1}, or 255"),
    ("rule_E", 6, G, f"outside 0 to {G - 1}"), ("wire_b_G", 8, L + G, f"outside 0 to {L + G - 1}"),
    ("scale_E", 7, float("nan"), "not finite"), ("coefficient_EK", 11, float("inf"), "not finite"),
    ("spline_low_W", 2, 99.0, "not below spline_high_W"), ("cell_start_C1", 3, 0, "no part of a rise from 0 to"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "at", "value", "why"), WRONG_ENTRIES)
def test_a_wrong_entry_is_named_with_its_place_its_value_and_what_is_allowed(name, at, value, why):
    made = tables()
    getattr(made, name).view(-1)[at] = value
    with pytest.raises(ValueError, match=f"{name} holds {value} at {at}, which is {why}"):
        check_tables(made, places=O)


@pytest.mark.parametrize("name", ["scale_E", "coefficient_EK", "dense_u_FD", "spline_coefficient_WK", "v_scale_E"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(name, value):
    made = tables()
    getattr(made, name).view(-1)[-1] = value
    with pytest.raises(ValueError, match=name):
        check_tables(made, places=O)


WRONG_TOKENS = [
    (1, 2, C, "cell_P with 11 at 2"), (1, 0, -1, "cell_P with -1 at 0"), (2, 0, 1, "start_N1 with 1 at 0"),
    (2, -1, 99, "start_N1 with 99 at 8"), (2, 3, 9, "start_N1 with 9 at 3"),
    (3, 4, float("nan"), "gate_P with a value that is not finite at 4"), (4, 5, V, "tokens_BT with 13 at 5"),
    (4, 0, -1, "tokens_BT with -1 at 0"),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "at", "value", "message"), WRONG_TOKENS)
def test_pairs_and_contexts_out_of_range_are_named_with_their_place(cpu_path, argument, at, value, message):
    given = tokens()
    given[argument].view(-1)[at] = value
    with pytest.raises(ValueError, match=message):
        run(given, tables(tiers=(Tier.T1, Tier.T3)))


WRONG_SHAPES = [
    (lambda g, t: ((g[0].double(), *g[1:]), t), "x_ND"),
    (lambda g, t: ((g[0][:, :13], *g[1:]), t), "x_ND"),
    (lambda g, t: ((g[0], g[1].int(), *g[2:]), t), "cell_P"),
    (lambda g, t: ((*g[:2], g[2][:-1], *g[3:]), t), "start_N1"),
    (lambda g, t: ((*g[:3], g[3][:-1], g[4]), t), "gate_P"),
    (lambda g, t: ((*g[:4], g[4][:, :-1]), t), "tokens_BT"),
    (lambda g, t: ((*g[:4], g[4].flatten()), t), "tokens_BT"),
    (lambda g, t: ((*g[:4], g[4].int()), t), "tokens_BT"),
    (lambda g, t: (g, t._replace(code_E=t.code_E[:-1])), "code_E"),
    (lambda g, t: (g, t._replace(index_EK=t.index_EK.int())), "index_EK"),
    (lambda g, t: (g, t._replace(dense_u_FD=t.dense_u_FD[:, :-1])), "dense_u_FD"),
    (lambda g, t: (g, t._replace(member_LV=t.member_LV.T.contiguous().T)), "member_LV"),
    (lambda g, t: (g, t._replace(v_EB=t.v_EB[:-1])), "v_EB"),
    (lambda g, t: (g, t._replace(v_scale_E=t.v_scale_E.float())), "v_scale_E"),
]


@pytest.mark.parametrize(("change", "named"), WRONG_SHAPES, ids=[named for _, named in WRONG_SHAPES])
def test_shapes_and_dtypes_that_do_not_fit_are_named(cpu_path, change, named):
    given, made = change(tokens(), tables())
    with pytest.raises(ValueError, match=f"symbol_table got {named} with"):
        run(given, made)


def test_without_the_library_stock_ops_run(monkeypatch):
    monkeypatch.setattr(backends, "cpu_library", lambda: None)
    agree(tables(), tokens())
