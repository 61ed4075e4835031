"""Monet becomes PEER exactly; a smaller pool is the same model with the others silent."""

import pytest
import torch

from pipeline.measuring.swapped import experts_zeroed
from pipeline.models.peer.spec import PeerSpec
from pipeline.transforms.from_monet import keep_experts, peer_from_monet
from tests.tiny import DENSE, HORIZONTAL, SHAPE, VERTICAL, tiny_model, tiny_tokens

SPECS = pytest.mark.parametrize("spec", [HORIZONTAL, VERTICAL], ids=lambda spec: spec.decomposition)
NUM_NEURONS = HORIZONTAL.num_sub_experts**2 * HORIZONTAL.d_expert


def peer_of(spec=HORIZONTAL):
    return peer_from_monet(tiny_model(spec, dtype=torch.float64), pairs_per_head=3)


@SPECS
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("router_group", [1, 2])
def test_the_converted_model_has_the_same_logits(spec, dtype, limit, router_group):
    monet = tiny_model(spec.model_copy(update={"router_group": router_group}), dtype=dtype)
    peer = peer_from_monet(monet, pairs_per_head=3)
    tokens = tiny_tokens(batch=5)
    with torch.no_grad():
        wanted, got = monet(tokens), peer(tokens)
        with experts_zeroed(monet):
            without = monet(tokens)
    assert got.dtype == dtype
    assert (got - wanted).abs().max() < limit
    assert (without - wanted).abs().max() > 0.1  # the experts are what is compared


@SPECS
def test_every_layer_adds_the_same_on_the_same_inputs(spec):
    monet = tiny_model(spec, dtype=torch.float64)
    peer = peer_from_monet(monet, pairs_per_head=3)
    tokens = tiny_tokens()
    with torch.no_grad():
        trace = monet.trace(tokens)
        outputs = peer.expert_outputs(trace.expert_inputs, tokens)
    for got, wanted in zip(outputs, trace.expert_outputs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@SPECS
def test_a_cell_holds_the_neurons_of_its_composed_expert(spec):
    monet = tiny_model(spec, dtype=torch.float64)
    peer = peer_from_monet(monet, pairs_per_head=3)
    neurons = monet.blocks()[1].moe.neurons()
    experts = peer.blocks()[1].moe
    cell_E = experts.index.cell_of_experts()
    assert len(cell_E) == NUM_NEURONS
    for cell in (0, 7, 24):
        mine = cell_E == cell
        assert mine.sum() == spec.d_expert
        assert torch.equal(experts.u[mine], neurons.u_IJMD[cell // 5, cell % 5])
        assert torch.equal(experts.v[mine], neurons.v_IJMD[cell // 5, cell % 5])
        assert torch.equal(experts.bias[mine], neurons.bias_IJM[cell // 5, cell % 5])


def test_converting_leaves_the_monet_as_it_was_and_shares_no_tensor():
    monet = tiny_model(HORIZONTAL)
    before = {name: tensor.clone() for name, tensor in monet.state_dict().items()}
    peer = peer_from_monet(monet, pairs_per_head=3)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in monet.state_dict().items())


def test_only_a_monet_is_converted():
    with pytest.raises(ValueError, match="takes a 'monet', got a 'dense'"):
        peer_from_monet(tiny_model(DENSE), pairs_per_head=3)


def test_keeping_every_expert_changes_no_logit():
    peer = peer_of()
    kept = keep_experts(peer, [torch.arange(NUM_NEURONS)] * SHAPE.num_layers)
    assert kept.spec == peer.spec
    with torch.no_grad():
        assert torch.equal(kept(tiny_tokens()), peer(tiny_tokens()))


def random_subsets(count):
    """Another subset in every block; with so few, cells hold none, one or several."""
    generator = torch.Generator().manual_seed(6)
    return [torch.randperm(NUM_NEURONS, generator=generator)[:count].sort().values for _ in range(SHAPE.num_layers)]


@SPECS
@pytest.mark.parametrize("count", [31, 90])
def test_a_smaller_pool_is_the_model_with_the_others_silent(spec, count):
    peer, kept = peer_of(spec), random_subsets(count)
    smaller = keep_experts(peer, kept)
    assert isinstance(smaller.spec.experts, PeerSpec)
    assert smaller.spec.experts.num_experts == count
    tokens = tiny_tokens()
    with torch.no_grad():
        whole = peer(tokens)
        for block, index_K in zip(peer.blocks(), kept, strict=True):
            silent = torch.ones(NUM_NEURONS, dtype=torch.bool)
            silent[index_K] = False
            block.moe.v[silent] = 0
        torch.testing.assert_close(smaller(tokens), peer(tokens), rtol=1e-10, atol=1e-10)
        assert (smaller(tokens) - whole).abs().max() > 1e-2


def test_a_smaller_pool_can_be_made_smaller_again():
    peer, kept = peer_of(), random_subsets(90)
    again = torch.arange(0, 90, 4)
    once = keep_experts(peer, [index_K[again] for index_K in kept])
    twice = keep_experts(keep_experts(peer, kept), [again] * SHAPE.num_layers)
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, twice.state_dict()[name])


def test_blocks_keep_as_many_experts_as_each_other():
    with pytest.raises(ValueError, match=r"got \[3, 4\] experts in 3 blocks; keep as many in every block"):
        keep_experts(peer_of(), [torch.arange(3), torch.arange(4), torch.arange(3)])


def test_every_block_keeps_some_experts():
    with pytest.raises(ValueError, match="in 2 blocks; keep as many in every block"):
        keep_experts(peer_of(), [torch.arange(3), torch.arange(3)])
