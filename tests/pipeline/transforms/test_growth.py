"""A grown pool computes what it did: old experts in their cells at twice the v, silent new ones in the cells beside."""

import itertools

import pytest
import torch

from kernels.packing import unpack_int4
from kernels.pairs import starts
from pipeline.models import LanguageModel
from pipeline.models.peer.router import PeerRouter
from pipeline.run import Run, running
from pipeline.training.losses import next_token
from pipeline.training.table_start import draw_tables
from pipeline.training.table_updates import Int4Tables, table_layers
from pipeline.transforms.growth import TIE_MARGIN, doubled
from pipeline.transforms.precision import requantized, to_int4
from tests.tiny import DENSE, INT4, INT8, JUMP, SHAPE, SOFTMAX, TRAINABLE, tiny_model, tiny_tokens
from tests.tolerances import assert_close

D = SHAPE.d_model
SAME = 1e-5
"""Relative RMS. Matrix products of twice as many keys sum in another order, 1e-7 a product, and sums over pairs have
zeros of the new experts between their terms; three blocks of them make up to 1e-6 (2026-11)."""

# Seven sub-keys, so that three pairs can be doubled; 83 experts in 49 cells, 31 in as many.
SPECS = {
    f"{gate}, {keys}, {plane}, {experts} experts": base.model_copy(
        update={
            "num_keys": 7, "num_experts": experts, "sub_keys": keys, "d_key": 7 if keys == "identity" else 6,
            "precision": "int4", "accumulator": plane == "accumulator",
        }
    )
    for (gate, base), keys, (plane, experts) in itertools.product(
        (("softmax", SOFTMAX), ("jumprelu", JUMP)),  # JUMP has axis biases, and two blocks to a router
        ("identity", "shared", "per-head"),
        (("accumulator", 83), ("plain", 31)),
    )
}  # fmt: skip

every_model = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(spec, seed=0):
    """Everything nontrivial, and cells of very different numbers of experts: the first has none."""
    model = tiny_model(spec, seed=seed)
    with torch.no_grad():
        for layer, experts in enumerate(table_layers(model)):
            cell_E = torch.randint(1, spec.num_cells, (spec.num_experts,), generator=generator(layer))
            experts.index.place(starts(torch.bincount(cell_E, minlength=spec.num_cells)))
    return model


def drawn_model(spec):
    """With tables as training starts from."""
    model = model_of(spec)
    draw_tables(model)
    return model


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens(batch=5, length=9))


def grown(model, times=1):
    for _ in range(times):
        model = doubled(model, generator())
    return model


def members(experts):
    """The experts of each cell (row, column), in order."""
    start, columns = experts.index.stored.row().tolist(), experts.spec.num_columns
    return {divmod(cell, columns): list(range(a, b)) for cell, (a, b) in enumerate(itertools.pairwise(start))}


def places(new, old, axis):
    """Where each old expert and its twin must lie: in its cell, and in the one as many rows or columns further."""
    of_cell, old_place, twin_place = members(new), {}, {}
    shift = (old.spec.num_keys, 0) if axis == 0 else (0, old.spec.num_columns)
    for (row, column), experts in members(old).items():
        twin = row + shift[0], column + shift[1]
        assert len(of_cell[row, column]) == len(of_cell[twin]) == len(experts)
        old_place |= dict(zip(experts, of_cell[row, column], strict=True))
        twin_place |= dict(zip(experts, of_cell[twin], strict=True))
    in_order = range(old.spec.num_experts)
    return torch.tensor([old_place[e] for e in in_order]), torch.tensor([twin_place[e] for e in in_order])


def layers_after(spec, times):
    """Pairs of a layer before and after the last of some doublings, and the axis that it doubled."""
    before = grown(drawn_model(spec), times - 1)
    after = grown(before)
    return list(zip(table_layers(after), table_layers(before), strict=True)), 2 - times


@every_model
def test_one_and_two_doublings_change_no_logit_but_by_rounding(spec):
    model = model_of(spec)
    wanted = logits(model)
    for times in (1, 2):
        larger = grown(model, times)
        assert_close(logits(larger), wanted, SAME)
        assert not larger.training


@every_model
def test_every_block_adds_what_it_added(spec):
    """Each on the states of its own model."""
    model, tokens = model_of(spec), tiny_tokens()
    with torch.no_grad():
        before, after = model.trace(tokens), grown(model, 2).trace(tokens)
    for got, wanted in zip(after.expert_outputs, before.expert_outputs, strict=True):
        assert wanted.square().mean().sqrt() > 1e-3
        assert_close(got, wanted, SAME)


@every_model
def test_the_function_rests_on_the_experts(spec):
    """A control: without the doubling of v the logits would move by far more than rounding."""
    larger = grown(model_of(spec))
    wanted = logits(larger)
    for experts in table_layers(larger):
        experts.v.scale_E /= 2
    with pytest.raises(AssertionError, match="relative RMS"):
        assert_close(logits(larger), wanted, 100 * SAME)


@every_model
def test_the_pool_doubles_by_columns_then_by_rows(spec):
    once, twice = grown(model_of(spec)), grown(model_of(spec), 2)
    shapes = [(m.spec.experts.num_keys, m.spec.experts.aspect, m.spec.experts.num_columns) for m in (once, twice)]
    assert shapes == [(7, 2, 14), (14, 1, 14)]
    for model, factor in ((once, 2), (twice, 4)):
        experts = model.spec.experts
        assert (experts.num_experts, experts.num_cells) == (factor * spec.num_experts, factor * spec.num_cells)
        assert experts.pairs_per_head == factor * spec.pairs_per_head
        assert experts.tie_margin == TIE_MARGIN
        assert experts.d_key == (experts.num_keys if spec.sub_keys == "identity" else 6)
        assert model.kind == "peer-int4"
        assert model.spec.experts.accumulator == spec.accumulator
        assert all(len(layer.bias) == factor * spec.num_experts for layer in table_layers(model))


def test_a_pool_of_twice_the_columns_doubles_by_rows_and_of_thrice_by_columns():
    for aspect, wanted in ((2, (14, 1)), (3, (7, 6)), (6, (14, 3))):
        spec = SPECS["softmax, shared, plain, 31 experts"].model_copy(update={"aspect": aspect})
        model = model_of(spec)
        larger = grown(model)
        assert (larger.spec.experts.num_keys, larger.spec.experts.aspect) == wanted
        assert_close(logits(larger), logits(model), SAME)


@pytest.mark.parametrize("times", [1, 2])
@every_model
def test_old_experts_are_in_their_cells_with_the_same_u_and_twice_the_v(spec, times):
    layers, axis = layers_after(spec, times)
    for new, old in layers:
        place_E, _ = places(new, old, axis)
        assert torch.equal(new.bias[place_E], old.bias)
        every = torch.arange(old.spec.num_experts)
        assert torch.equal(new.u.rows(place_E), old.u.rows(every))
        assert torch.equal(new.v.rows(place_E), 2 * old.v.rows(every))
        if spec.accumulator:
            assert torch.equal(new.u.latent_rows(place_E), old.u.latent_rows(every))
            assert torch.equal(new.v.latent_rows(place_E), 2 * old.v.latent_rows(every))


@pytest.mark.parametrize("times", [1, 2])
@every_model
def test_new_experts_are_in_the_cells_beside_with_a_u_as_large_and_a_v_of_zero(spec, times):
    layers, axis = layers_after(spec, times)
    ratios = []
    for new, old in layers:
        old_E, twin_E = places(new, old, axis)
        assert sorted([*old_E.tolist(), *twin_E.tolist()]) == list(range(new.spec.num_experts))
        assert new.v.rows(twin_E).eq(0).all()
        assert torch.equal(new.bias[twin_E], old.bias)
        drawn_ED, beside_ED = new.u.rows(twin_E), new.u.rows(old_E)
        if spec.accumulator:
            assert new.v.latent_rows(twin_E).eq(0).all()
            drawn_ED, beside_ED = new.u.latent_rows(twin_E), new.u.latent_rows(old_E)
        voiced_E = beside_ED.square().sum(1) > 0
        ratios.append((drawn_ED.square().sum(1) / beside_ED.square().sum(1))[voiced_E])
        assert len(drawn_ED.unique(dim=0)) == len(drawn_ED)
        correlation = torch.corrcoef(torch.stack([drawn_ED.flatten(), beside_ED.flatten()]))[0, 1]
        assert abs(correlation) < 5 / drawn_ED.numel() ** 0.5
    # The mean square of 12 normal values has a relative deviation of sqrt(2 / 12); 4 standard errors, and 6 % for the
    # few values beyond 7.5 steps, which are clipped, and for rounding to whole steps, which adds a twelfth of one's
    # square: 1 to 3 % where w alone is drawn.
    ratio = torch.cat(ratios)
    assert ratio.mean().item() == pytest.approx(1, abs=4 * (2 / D) ** 0.5 / len(ratio) ** 0.5 + 0.06)


def test_the_cells_of_all_experts_are_those_of_the_old_ones_and_as_many_further_on():
    spec = SPECS["jumprelu, per-head, plain, 31 experts"]
    for times in (1, 2):
        layers, axis = layers_after(spec, times)
        for new, old in layers:
            old_E, twin_E = places(new, old, axis)
            cell_F, cell_E, columns = new.index.cell_of_experts(), old.index.cell_of_experts(), old.spec.num_columns
            row_E, column_E = cell_E // columns, cell_E % columns
            assert torch.equal(cell_F[old_E], row_E * new.spec.num_columns + column_E)
            if axis == 0:
                row_E = row_E + old.spec.num_keys
            else:
                column_E = column_E + columns
            assert torch.equal(cell_F[twin_E], row_E * new.spec.num_columns + column_E)
            assert new.index.stored.row()[-1] == 2 * spec.num_experts * times


@every_model
def test_every_pair_is_found_twice_at_half_its_gate(spec):
    model = model_of(spec)
    larger, tokens = grown(model), torch.zeros(1, 19, dtype=torch.int64)
    x_ND = torch.randn(19, D, generator=generator(2))
    with torch.no_grad():
        old, new = (m.blocks()[0].router(x_ND, tokens) for m in (model, larger))
    assert 0 < 2 * len(old.cell_P) == len(new.cell_P)
    gates = [torch.zeros(19, s.num_cells) for s in (spec, larger.spec.experts)]
    for routing, gate_NC in zip((old, new), gates, strict=True):
        token_P = torch.repeat_interleave(torch.arange(19), routing.start_N1.diff())
        gate_NC.index_put_((token_P, routing.cell_P), routing.gate_P, accumulate=True)
    first_NIJ, second_NIJ = gates[1].view(19, 7, 14).chunk(2, dim=2)
    for half_NIJ in (first_NIJ, second_NIJ):
        assert_close(half_NIJ.flatten(1), gates[0] / 2, SAME)


def test_the_moments_of_old_experts_fit_the_gradients_that_come():
    """A backward pass gives their u the gradient that it had, and their v half of it: mean squares of a quarter."""
    model = model_of(SPECS["softmax, per-head, accumulator, 83 experts"])
    larger = grown(model)
    gradients = []
    for m in (model, larger):
        loss(m).backward()
        gradients.append([dense(g, e.spec.num_experts) for e in table_layers(m) for g in e.gradients])
    for layer, (new, old) in enumerate(zip(table_layers(larger), table_layers(model), strict=True)):
        place_E, twin_E = places(new, old, 1)
        for which, factor in ((0, 1.0), (1, 0.5)):
            before_ED, after_ED = gradients[0][2 * layer + which], gradients[1][2 * layer + which]
            assert before_ED.abs().max() > 0
            assert_close(after_ED[place_E], factor * before_ED, 10 * SAME)  # of a backward pass through three blocks
            before, after = (old.u, new.u) if which == 0 else (old.v, new.v)
            assert torch.equal(after.moment_E[place_E], factor**2 * before.moment_E)
            assert after.moment_E[twin_E].eq(0).all()


def loss(model):
    tokens = tiny_tokens(batch=4, length=8)
    return next_token(model(tokens[:, :-1]), tokens[:, 1:])


def dense(gradients, num_rows):
    row_P = torch.repeat_interleave(gradients.row_R, gradients.start_R1.diff())
    pairs_PD = gradients.weight_P.detach()[:, None] * gradients.source_TD[gradients.token_P]
    return torch.zeros(num_rows, D).index_add(0, row_P, pairs_PD)


@pytest.mark.parametrize("gate", ["softmax", "jumprelu"])
def test_a_training_step_moves_the_new_v_and_parts_the_twins(gate):
    larger = requantized(grown(model_of(SPECS[f"{gate}, per-head, plain, 31 experts"])), {"accumulator": True})
    tables = Int4Tables(larger, peak_rate=0.05)
    loss(larger).backward()
    # A relu2 that is at zero gives its v no gradient.
    pulled = [dense(e.gradients[1], 62).ne(0).any(1) for e in table_layers(larger)]
    silent = [e.v.rows(torch.arange(62)).eq(0).all(1) for e in table_layers(larger)]
    tables.step(0, 1.0)
    for experts, pulled_E, silent_E in zip(table_layers(larger), pulled, silent, strict=True):
        assert (silent_E & pulled_E).sum() > 5
        moved_E = experts.v.latent_rows(torch.arange(62)).ne(0).any(1)
        assert torch.equal(moved_E[silent_E], pulled_E[silent_E])
    for step in range(1, 4):  # until some of w has flipped
        loss(larger).backward()
        tables.step(step, 1.0)
    assert any(e.v.rows(s.nonzero()[:, 0]).ne(0).any() for e, s in zip(table_layers(larger), silent, strict=True))
    larger.zero_grad()
    loss(larger).backward()
    router = larger.blocks()[0].router
    assert isinstance(router, PeerRouter)
    first, second = router.column_keys.grad.chunk(2, dim=1)
    assert (first - second).abs().max() > 0.01 * first.abs().max()


def test_before_any_step_twins_have_equal_keys():
    router = grown(model_of(SPECS["softmax, per-head, plain, 31 experts"]), 2).blocks()[0].router
    for keys in (router.row_keys, router.column_keys):
        assert torch.equal(*keys.chunk(2, dim=1))


def test_a_grown_plain_model_takes_an_accumulator_and_keeps_its_function():
    model = model_of(SPECS["jumprelu, identity, plain, 31 experts"])
    assert torch.equal(logits(requantized(grown(model), {"accumulator": True})), logits(grown(model)))


@every_model
def test_the_smaller_model_is_left_alone(spec):
    model = model_of(spec)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    larger = grown(model)
    for tensor in larger.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_generator_decides_the_new_u_and_nothing_else():
    model = model_of(SPECS["softmax, per-head, accumulator, 83 experts"])
    states = []
    for seed, global_seed in ((1, 1), (1, 2), (2, 1)):
        with running(Run(seed=global_seed)):
            states.append(doubled(model, generator(seed)).state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    differing = {name for name, tensor in states[2].items() if not torch.equal(states[0][name], tensor)}
    planes = ("weight_EB", "accumulator_EB")
    assert differing == {f"model.layers.{layer}.moe.u.{p}" for layer in range(SHAPE.num_layers) for p in planes}


def test_new_nibbles_are_within_their_grid_beside_rows_at_its_end():
    model = model_of(SPECS["softmax, shared, plain, 31 experts"])
    for experts in table_layers(model):
        experts.u.weight_EB.fill_(0x77)  # 7 everywhere
    for experts in table_layers(grown(model)):
        w_ED = unpack_int4(experts.u.weight_EB)
        assert (w_ED.min(), w_ED.max()) == (-7, 7)


def test_a_grown_model_is_written_and_read_back():
    model = grown(model_of(SPECS["jumprelu, identity, accumulator, 83 experts"]), 2)
    again = LanguageModel.restore(model.kind, model.spec.model_dump(), model.to_tensors(), {}).eval()
    assert torch.equal(logits(again), logits(model))


def test_a_scale_that_float16_cannot_double_is_refused():
    model = model_of(INT4)
    model.blocks()[1].moe.u.scale_E[4] = 40_000  # of u it may be
    grown(model)
    model.blocks()[1].moe.v.scale_E[4] = 40_000
    with pytest.raises(ValueError, match="a scale of v in block 1 is above 32752 and cannot be doubled"):
        grown(model)


@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny_model(DENSE),
        lambda: tiny_model(JUMP),
        lambda: tiny_model(INT8),
        lambda: to_int4(tiny_model(JUMP), clips=1, groups=2),
    ],
    ids=["dense", "float", "int8", "grouped"],
)
def test_other_tables_than_int4_of_one_scale_a_row_are_refused(model):
    with pytest.raises(ValueError, match=r"only int4 tables with one scale a row grow; this is a '\w"):
        grown(model())


def test_more_pairs_than_the_shorter_axis_has_sub_keys_are_refused():
    """Three of five rows: six of five are none that product keys can find."""
    spec = SOFTMAX.model_copy(update={"precision": "int4"})
    with pytest.raises(ValueError, match="a head would keep 6 pairs of 5 rows; grow a pool of more keys"):
        grown(tiny_model(spec))


def test_a_jump_router_without_thresholds_grows_too():
    """Minus infinity: every pair that passes both axes fires."""
    model = model_of(TRAINABLE)
    for block in model.blocks():
        if isinstance(block.router, PeerRouter):
            block.router.threshold_H.fill_(-torch.inf)
    assert_close(logits(grown(model, 2)), logits(model), SAME)
