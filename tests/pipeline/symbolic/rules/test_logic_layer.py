"""LogicLayer against a sum over the sixteen gates, against logic, and against difflogic where that is installed."""

import logging

import pytest
import torch

from pipeline.symbolic.rules._difflogic import as_difflogic, gate_layer, run
from pipeline.symbolic.rules.logic_layer import COEFFICIENT_G4, LogicLayer, copy_gates
from tests.logic_gates import gate

# B samples, I inputs, O gates

I, O, B = 7, 11, 29


def layer(seed=0, inputs=I, gates=O) -> LogicLayer:
    generator = torch.Generator().manual_seed(seed)
    wires = torch.randint(inputs, (2, gates), generator=generator)
    return LogicLayer(inputs, *wires, generator=generator)


def inputs(seed=1, dtype=torch.float32):
    return torch.rand(B, I, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sixteen_terms(given: LogicLayer, x_BI):
    """The mixture, gate by gate, as the paper writes it."""
    a, b = x_BI[:, given.indices[0]], x_BI[:, given.indices[1]]
    both = a * b
    terms = [
        torch.zeros_like(a), both, a - both, a, b - both, b, a + b - 2 * both, a + b - both,
        1 - (a + b - both), 1 - (a + b - 2 * both), 1 - b, 1 - b + both, 1 - a, 1 - a + both, 1 - both,
        torch.ones_like(a),
    ]  # fmt: skip
    share_O16 = torch.softmax(given.weights, dim=-1)
    return sum(share_O16[:, kind] * term for kind, term in enumerate(terms))


def test_the_closed_form_is_the_sum_over_sixteen_gates():
    given = layer().double()
    x_BI = inputs(dtype=torch.float64)
    torch.testing.assert_close(given(x_BI), sixteen_terms(given, x_BI), rtol=0, atol=1e-14)


def test_gradients_are_those_of_finite_differences():
    given, x_BI = layer(gates=3).double(), inputs(dtype=torch.float64)[:4].requires_grad_()
    assert torch.autograd.gradcheck(given, (x_BI,))
    weights = given.weights.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(given, {"weights": w}, (x_BI,)), (weights,))


@pytest.mark.parametrize("kind", range(16))
def test_a_gate_that_is_sure_is_its_table_of_truth_in_both_modes(kind):
    given = layer()
    with torch.no_grad():
        given.weights.zero_()
        given.weights[:, kind] = 60
    x_BI = (inputs() > 0.5).float()
    a_BO, b_BO = (x_BI[:, given.indices[i]].bool() for i in (0, 1))
    wanted = gate(kind, a_BO, b_BO).float()
    torch.testing.assert_close(given.train()(x_BI), wanted, rtol=0, atol=1e-6)
    assert torch.equal(given.eval()(x_BI), wanted)
    assert given.kinds().tolist() == [kind] * O


def test_evaluation_takes_the_likeliest_gate():
    given = layer().eval()
    x_BI = (inputs() > 0.5).float()
    a_BO, b_BO = (x_BI[:, given.indices[i]].bool() for i in (0, 1))
    for at, kind in enumerate(given.weights.argmax(1).tolist()):
        assert torch.equal(given(x_BI)[:, at].bool(), gate(kind, a_BO[:, at], b_BO[:, at]))


def test_the_state_holds_the_wires_so_that_a_reloaded_layer_is_the_same():
    given, other = layer(0), layer(5)
    assert set(given.state_dict()) == {"weights", "indices"}
    other.load_state_dict(given.state_dict())
    assert torch.equal(other(inputs()), given(inputs()))


def test_fewer_gates_than_half_the_inputs_will_do():
    assert layer(inputs=101, gates=3)(torch.rand(2, 101)).shape == (2, 3)


@pytest.mark.parametrize(("input", "wire"), [("a", I), ("b", -1)])
def test_a_wire_to_no_input_is_refused_with_its_place(input, wire):
    wires = {"a": torch.tensor([0, 1, 2]), "b": torch.tensor([3, 4, 5])}
    wires[input][1] = wire
    with pytest.raises(ValueError, match=f"wire {wire} for input {input} of gate 1; its 7 inputs are 0 to 6"):
        LogicLayer(I, wires["a"], wires["b"], generator=torch.Generator())


def test_layers_of_two_shapes_are_not_copied():
    with pytest.raises(ValueError, match=r"\(7, 11\) inputs and gates does not fit one of \(7, 4\)"):
        copy_gates(layer(), layer(gates=4))


def test_the_table_of_coefficients_is_of_whole_numbers_and_negations_are_one_minus():
    assert torch.equal(COEFFICIENT_G4, COEFFICIENT_G4.round())
    one_G4 = torch.tensor([1.0, 0, 0, 0])
    assert torch.equal(COEFFICIENT_G4.flip(0), one_G4 - COEFFICIENT_G4)


class TestBesideDifflogic:
    """`--log-cli-level=INFO` shows the differences."""

    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("difflogic", exc_type=ImportError)

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_outputs_and_gradients_are_those_of_difflogic(self, training):
        ours = layer(3).train(training)
        theirs = as_difflogic(ours).train(training)
        found = []
        for each in (ours, theirs):
            x_BI = inputs(4).requires_grad_()
            y_BO = each(x_BI if training else (x_BI > 0.5).float())
            loss = (y_BO * torch.linspace(-1, 2, O)).sum()
            leaves = (x_BI, each.weights) if training else ()
            found.append((y_BO, *(torch.autograd.grad(loss, leaves) if training else ())))
        difference = [float((a - b).detach().abs().max()) for a, b in zip(*found, strict=True)]
        logging.getLogger(__name__).info("outputs, gradients of inputs and of weights differ by %s", difference)
        assert max(difference) <= 2e-6

    def test_a_layer_of_difflogic_comes_back_with_its_gates_and_wires(self):
        from difflogic import LogicLayer as Theirs

        theirs = Theirs(I, O, device="cpu", implementation="python").eval()
        ours = LogicLayer(I, *theirs.indices, generator=torch.Generator()).eval()
        copy_gates(theirs, ours)
        x_BI = (inputs(6) > 0.5).float()
        assert torch.equal(ours(x_BI), theirs(x_BI))
        again = Theirs(I, O, device="cpu", implementation="python").eval()
        copy_gates(ours, again)
        assert torch.equal(again(x_BI), theirs(x_BI))

    def test_gates_learn_in_difflogics_layer_where_it_is_installed(self):
        from difflogic import LogicLayer as Theirs

        wires = torch.tensor([0, 19]), torch.tensor([4, 2])
        made = gate_layer(20, *wires, generator=torch.Generator().manual_seed(0))
        assert isinstance(made, Theirs)
        assert run(made, torch.rand(3, 20)).shape == (3, 2)


def test_gates_learn_in_our_layer_where_difflogic_is_not():
    try:
        import difflogic  # noqa: F401
    except ImportError:
        made = gate_layer(5, torch.tensor([0]), torch.tensor([4]), generator=torch.Generator())
        assert isinstance(made, LogicLayer)
        with pytest.raises(ImportError, match="install the extra 'difflogic'"):
            as_difflogic(made)
