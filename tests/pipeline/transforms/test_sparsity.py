"""Sparse routers and rows: as sparse as asked, near what they were, and sparse to the end of any training."""

import pytest
import torch
from pydantic import ValidationError

from kernels.packing import latent
from pipeline.models import LanguageModel
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.tables.experts import TableExperts
from pipeline.models.tables.int4 import Int4Table
from pipeline.run import Run, running
from pipeline.training.config import TrainingConfig
from pipeline.training.distillation import calibration_batches, fit_part, from_next_tokens
from pipeline.training.table_updates import Int4Tables
from pipeline.transforms.growth import doubled
from pipeline.transforms.precision import requantized, to_int4
from pipeline.transforms.sparsity import Sparsity, dictionary, sparsified, varimax
from tests.tiny import JUMP, tiny_model, tiny_tokens

DENSE = JUMP.model_copy(update={"sub_keys": "identity", "d_key": 5, "query_norm": False, "activation": "gelu"})
SPARSITY = Sparsity(score_features=7, score_terms=3, u_terms=4)
TRAINING = TrainingConfig(steps=6, batch_size=3, context_length=11, learning_rate=0.02, warmup_steps=0)


@pytest.fixture
def batches():
    return [tiny_tokens(batch=5, length=13, seed=seed) for seed in range(3)]


@pytest.fixture
def dense() -> LanguageModel:
    return tiny_model(PeerSpec.model_validate(DENSE.model_dump()))


@pytest.fixture
def sparse(dense, batches) -> LanguageModel:
    return sparsified(dense, batches, SPARSITY)


def router_of(model: LanguageModel, layer: int = 0) -> PeerRouter:
    router = model.blocks()[layer].router
    assert isinstance(router, PeerRouter)
    return router


def rows_of(model: LanguageModel, layer: int) -> torch.Tensor:
    experts = model.blocks()[layer].moe
    assert isinstance(experts, PeerExperts | TableExperts)
    return experts.u if isinstance(experts, PeerExperts) else experts.u.rows(torch.arange(experts.spec.num_experts))


def assert_sparse(model: LanguageModel) -> None:
    for layer, block in enumerate(model.blocks()):
        if isinstance(block.router, PeerRouter):
            assert int((block.router.query.weight != 0).sum(1).max()) <= SPARSITY.score_terms
        assert int((rows_of(model, layer) != 0).sum(1).max()) <= SPARSITY.u_terms


def test_rows_and_scores_have_the_terms_asked_for(sparse):
    assert_sparse(sparse)
    assert sparse.spec.experts == DENSE.model_copy(update=SPARSITY.model_dump())


def test_the_dense_model_is_left_alone(dense, batches):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    sparsified(dense, batches, SPARSITY)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_with_all_terms_scores_and_rows_are_what_they_were(dense, batches):
    once = sparsified(dense, batches, Sparsity(score_features=12, score_terms=12, u_terms=12))
    for layer in (0, 2):
        x_ND = once.trace(batches[0]).expert_inputs[layer]
        for a, b in zip(router_of(dense, layer).scores(x_ND), router_of(once, layer).scores(x_ND), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(rows_of(once, layer), rows_of(dense, layer), atol=0.05, rtol=0.05)


def test_heads_fire_as_many_pairs_as_the_spec_says(sparse, batches):
    """On the sample, in the first block, whose states are those that its thresholds were set on."""
    routings = [sparse.trace(tokens).routings[0] for tokens in batches]
    pairs = sum(len(r.cell_P) for r in routings) / sum(len(r.start_N1) - 1 for r in routings)
    assert pairs == pytest.approx(DENSE.pairs_per_head * DENSE.num_heads, rel=0.1)


def test_scores_are_nearer_than_those_of_the_largest_coordinates(dense, batches):
    """The control: each score's largest coordinates, as many as it has features now, with its mean kept."""
    sparse = sparsified(dense, batches, Sparsity(score_features=10, score_terms=4))
    x_ND = torch.cat([dense.trace(tokens).expert_inputs[0] for tokens in batches])
    row_SD, _ = router_of(dense).score_rows()
    kept_SD = row_SD * (row_SD.abs() >= row_SD.abs().topk(4, dim=1).values[:, -1:])
    true_NS, control_NS = x_ND @ row_SD.T, x_ND @ kept_SD.T
    ours_SD, intercept_S = router_of(sparse).score_rows()
    ours = (x_ND @ ours_SD.T + intercept_S - true_NS).square().mean()
    assert ours < 0.7 * (control_NS - control_NS.mean(0) - true_NS + true_NS.mean(0)).square().mean()


def test_a_dictionary_finds_rows_that_are_sparse_in_one():
    generator = torch.Generator().manual_seed(3)
    direction_RD = torch.nn.functional.normalize(torch.randn(9, 14, generator=generator, dtype=torch.float64), dim=1)
    true_SR = torch.randn(150, 9, generator=generator, dtype=torch.float64)
    true_SR *= torch.rand(150, 9, generator=generator).argsort(1) < 2
    loading_SR, found_RD = dictionary(true_SR @ direction_RD, 9, 2)
    assert int((loading_SR != 0).sum(1).max()) <= 2
    error = (loading_SR @ found_RD - true_SR @ direction_RD).square().sum() / (true_SR @ direction_RD).square().sum()
    assert error < 0.02


def test_varimax_undoes_a_rotation_of_sparse_loadings():
    generator = torch.Generator().manual_seed(5)
    loading_SR = torch.randn(90, 6, generator=generator, dtype=torch.float64)
    loading_SR *= torch.rand(90, 6, generator=generator).argsort(1) < 1
    turned_SR = loading_SR @ torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    turn_RR = varimax(turned_SR)
    torch.testing.assert_close(turn_RR @ turn_RR.T, torch.eye(6, dtype=torch.float64))
    assert float(((turned_SR @ turn_RR).abs() > 1e-3).double().mean()) == pytest.approx(1 / 6, abs=0.01)


@pytest.mark.parametrize("part", ["experts", "routers", "all"])
def test_float_training_keeps_what_is_zero_at_zero(sparse, corpus, part):
    before = {name: tensor.clone() for name, tensor in sparse.named_parameters()}
    model = sparse_over_bytes(sparse)
    fit_part(model, part, from_next_tokens(model), corpus=corpus, training=TRAINING, tables=None, what="train")
    assert_sparse(model)
    moved = {name for name, tensor in model.named_parameters() if name in before and len(tensor) == len(before[name])
             and not torch.equal(tensor, before[name])}  # fmt: skip
    assert any(".moe.u" in name for name in moved)
    assert any(".query.weight" in name for name in moved) == (part != "experts")


def test_int4_training_keeps_what_is_zero_at_zero(sparse, corpus):
    model = requantized(to_int4(sparse_over_bytes(sparse), clips=4), {"accumulator": True})
    before = [rows_of(model, layer).clone() for layer in range(3)]
    tables = Int4Tables(model, peak_rate=0.05)
    fit_part(model, "experts", from_next_tokens(model), corpus=corpus, training=TRAINING, tables=tables, what="train")
    assert_sparse(model)
    for layer, block in enumerate(model.blocks()):
        after_ED = rows_of(model, layer)
        assert not torch.equal(after_ED, before[layer])
        assert bool((after_ED[before[layer] == 0] == 0).all())
        assert isinstance(block.moe, TableExperts)
        assert isinstance(block.moe.u, Int4Table)
        latent_ED = latent(block.moe.u.weight_EB, block.moe.u.accumulator_EB)
        assert bool((latent_ED[before[layer] == 0] == 0).all())
    again = Int4Tables(model, peak_rate=0.05)  # as a second fine-tuning would begin
    for support_EB, block in zip(again.supports, model.blocks(), strict=True):
        assert support_EB is not None
        assert isinstance(block.moe, TableExperts)
        assert isinstance(block.moe.u, Int4Table)
        kept_ED = latent(block.moe.u.weight_EB & support_EB, block.moe.u.accumulator_EB & support_EB)
        assert torch.equal(kept_ED, latent(block.moe.u.weight_EB, block.moe.u.accumulator_EB))


def test_a_grid_of_more_columns_than_rows_has_as_many_scores_as_features_may_be(batches):
    wide = {"num_keys": 2, "d_key": 2, "active_keys": 1, "num_heads": 1, "aspect": 3, "pairs_per_head": 2}
    model = tiny_model(PeerSpec.model_validate({**DENSE.model_dump(), **wide}))
    sparse = sparsified(model, batches, Sparsity(score_features=8, score_terms=2))
    assert router_of(sparse).query.weight.shape == (8, 8)
    with pytest.raises(ValueError, match="score_features=9 is more than 8"):
        sparsified(model, batches, Sparsity(score_features=9, score_terms=2))


def test_an_int4_model_can_be_made_sparse_and_sparser(dense, batches):
    int4 = to_int4(dense, clips=4)
    sparse = sparsified(int4, batches, SPARSITY)
    assert sparse.kind == "peer-int4"
    assert_sparse(sparse)
    sparser = sparsified(sparse, batches, Sparsity(u_terms=2))
    assert isinstance(sparser.spec.experts, PeerSpec)
    assert (sparser.spec.experts.score_features, sparser.spec.experts.u_terms) == (7, 2)
    assert int((rows_of(sparser, 1) != 0).sum(1).max()) <= 2
    torch.testing.assert_close(router_of(sparser).query.weight, router_of(sparse).query.weight)


def test_a_fine_tuned_int4_model_made_sparse_keeps_nothing_of_its_old_rows(dense, batches):
    tuned = requantized(to_int4(dense, clips=4), {"accumulator": True})
    for block in tuned.blocks():
        block.moe.u.accumulator_EB.random_(0, 256)
    for block in sparsified(tuned, batches, SPARSITY).blocks():
        assert isinstance(block.moe, TableExperts)
        assert isinstance(block.moe.u, Int4Table)
        latent_ED = latent(block.moe.u.weight_EB, block.moe.u.accumulator_EB)
        assert int((latent_ED != 0).sum(1).max()) <= SPARSITY.u_terms


def test_a_sparse_pool_grows_and_new_experts_read_what_the_old_ones_read(sparse, batches):
    int4 = to_int4(sparse, clips=4)
    larger = doubled(int4, torch.Generator().manual_seed(2))
    assert_sparse(larger)
    torch.testing.assert_close(larger(batches[0]), int4(batches[0]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("sparsity", "wanted"),
    [
        (Sparsity(score_features=13, score_terms=2), "score_features=13 is more than 12"),
        (Sparsity(u_terms=13), "u_terms=13 is more than the width 12"),
    ],
)
def test_more_than_there_is_is_refused(dense, batches, sparsity, wanted):
    with pytest.raises(ValueError, match=wanted):
        sparsified(dense, batches, sparsity)


def test_scores_behind_a_norm_or_keys_are_no_rows(batches):
    with pytest.raises(ValueError, match="linear in the state"):
        sparsified(tiny_model(JUMP), batches, SPARSITY)
    with pytest.raises(ValueError, match="distill-peer has identity keys"):
        router_of(tiny_model(JUMP)).score_rows()


def test_features_without_terms_are_refused():
    with pytest.raises(ValidationError, match="give both"):
        Sparsity(score_features=4)
    with pytest.raises(ValidationError, match="more than score_features=3"):
        PeerSpec.model_validate({**DENSE.model_dump(), "score_features": 3, "score_terms": 4})


def test_calibration_batches_hold_about_the_tokens_asked_for(corpus):
    with running(Run(seed=1)):
        batches = calibration_batches(corpus, TRAINING, 170)
    assert [tuple(tokens.shape) for tokens in batches] == [(3, 11)] * 5


def sparse_over_bytes(sparse: LanguageModel) -> LanguageModel:
    """The same experts and routers under an embedding of bytes, which the corpus is made of."""
    model = tiny_model(sparse.spec.experts, vocab_size=256)
    state = {k: t for k, t in sparse.state_dict().items() if ".moe." in k or ".router." in k}
    model.load_state_dict(state, strict=False)
    return model
