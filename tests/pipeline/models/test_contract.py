"""Every kind of expert layer gives the pairs of which its output is the sum, is built from its spec and is walked."""

import ast
import math
import weakref
from pathlib import Path

import pytest
import torch

from kernels import backends
from kernels.symbol_table import reference
from kernels.symbol_table.functions import SPLINE_CODE
from pipeline.models.contract import ExpertLayer
from pipeline.models.language_model import ModelSpec, register_expert_layer
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.layer import PEER
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.registry import LAYER_KINDS, LayerKind, kind_of
from pipeline.models.tables.experts import TableExperts, table_of
from pipeline.models.tables.floats import FloatTable
from pipeline.models.tables.parameter import ParameterTable
from tests.forward_only import ForwardOnly
from tests.tiny import EVERY_KIND, HORIZONTAL, JUMP, SHAPE, SOFTMAX, TRAINABLE, tiny_model, tiny_tokens
from tests.tiny_symbols import symbols_model
from tests.tolerances import assert_close

# N tokens, D model width

ROOT = Path(__file__).resolve().parents[3]
KINDS = {
    **EVERY_KIND,
    "float32": JUMP.model_copy(update={"precision": "float32"}),
    "bfloat16": PeerSpec.model_validate({**JUMP.model_dump(), "precision": "bfloat16", "aspect": 2, "num_experts": 53}),
    "int4-groups": PeerSpec.model_validate({**EVERY_KIND["int4"].model_dump(), "scale_groups": 3}),
}
NAMES = [*KINDS, "symbols"]
ACTIVATIONS = {
    "relu2": lambda z: max(z, 0.0) ** 2,
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
}


def made(name):
    return symbols_model() if name == "symbols" else tiny_model(KINDS[name])


def visits(model):
    with torch.no_grad():
        return list(model.walk(tiny_tokens(vocab_size=model.shape.vocab_size)))


def dense(layer, expert, pre_M):
    (z,) = pre_M
    return ACTIVATIONS["relu2"](z) * layer.down.weight[:, expert].double()


def horizontal(layer, expert, pre_M):
    j = expert % layer.num_sub_experts
    added_D = layer.b[j].double()
    for m, z in enumerate(pre_M):
        added_D = added_D + ACTIVATIONS["relu2"](z) * layer.v.weight[:, j * len(pre_M) + m].double()
    return added_D


def vertical(layer, expert, pre_M):
    i, j = divmod(expert, layer.num_sub_experts)
    half, halves = len(pre_M) // 2, []
    for at, v_of_1, v_of_2, bias_O in ((i, layer.v11, layer.v12, layer.b1[i]), (j, layer.v21, layer.v22, layer.b2[j])):
        added_O = bias_O.double()
        for m in range(half):
            added_O = added_O + ACTIVATIONS["relu2"](pre_M[m]) * v_of_1.weight[:, at * half + m].double()
            added_O = added_O + ACTIVATIONS["relu2"](pre_M[half + m]) * v_of_2.weight[:, at * half + m].double()
        halves.append(added_O)
    return torch.cat(halves)


def peer(layer, expert, pre_M):
    (z,) = pre_M
    v = layer.v if layer.spec.precision == "float" else layer.v.rows(torch.arange(layer.spec.num_experts))
    return ACTIVATIONS[layer.spec.activation](z) * v[expert].double()


def symbols(layer, expert, pre_M):
    (z,) = pre_M
    tables, code = layer.symbol_tables, int(layer.code_E[expert])
    if code == SPLINE_CODE:
        value = reference.spline(int(tables.spline_row_E[expert]), z, tables)
    else:
        value = reference._FUNCTIONS[code](z)
    magnitude = float(layer.scale_E[expert]) * value + float(layer.offset_E[expert])
    return magnitude * layer.v.rows(torch.tensor([expert]))[0].double()


ORACLES = {
    "dense": dense, "monet-horizontal": horizontal, "monet-vertical": vertical, "symbols": symbols,
}  # fmt: skip


def of_nobody(name, layer, routing, num_tokens):
    """(N, D) what no expert adds: the output bias of an MLP, PEER's biases of sub-keys by the gates of one axis."""
    rest_ND = torch.zeros(num_tokens, layer.down.out_features if name == "dense" else 1, dtype=torch.float64)
    if name == "dense":
        return rest_ND + layer.down.bias.double()
    if getattr(layer, "axis_bias", None) is None:
        return rest_ND
    rest_ND = torch.zeros(num_tokens, layer.axis_bias.row.shape[1], dtype=torch.float64)
    for log_gate_NHX, bias_XD in (
        (routing.log_gate1_NHI, layer.axis_bias.row),
        (routing.log_gate2_NHJ, layer.axis_bias.column),
    ):
        for n, h, x in torch.isfinite(log_gate_NHX).nonzero().tolist():
            rest_ND[n] += math.exp(float(log_gate_NHX[n, h, x])) * bias_XD[x].double()
    return rest_ND


@pytest.mark.parametrize("path", ["stock", "native"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_layers_output_is_the_sum_of_its_pairs_each_as_long_as_it_says(name, path, best_library, monkeypatch):
    monkeypatch.setattr(backends, "cpu_library", lambda: best_library if path == "native" else None)
    fired = 0
    for visit in visits(made(name)):
        layer, pairs = visit.experts, visit.pairs()
        assert pairs.token_P.diff().ge(0).all()
        assert pairs.expert_P.ge(0).all()
        assert pairs.expert_P.lt(layer.num_experts).all()
        rebuilt_ND = of_nobody(name, layer, visit.routing, len(visit.x_ND)).expand_as(visit.y_ND).clone()
        for token, expert, gate, pre_M, norm in zip(
            *(of.tolist() for of in (pairs.token_P, pairs.expert_P, pairs.gate_P, pairs.pre_PM, pairs.norm_P)),
            strict=True,
        ):
            added_D = gate * ORACLES.get(name, peer)(layer, expert, pre_M)
            assert norm == pytest.approx(float(added_D.square().sum().sqrt()), rel=1e-4, abs=1e-6)
            rebuilt_ND[token] += added_D
        # AVX-512 rounds a token to 15 bits of its largest element for int8 and int4 tables; relu2 doubles that.
        assert_close(visit.y_ND.double(), rebuilt_ND, 2e-4 if path == "native" and "int" in name else 2e-6)
        fired += len(pairs.token_P)
    assert fired > 40


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_vectors_are_what_experts_read_and_write(name):
    model = made(name)
    for visit in visits(model):
        layer, pairs = visit.experts, visit.pairs()
        some_R = pairs.expert_P.unique()[::3]
        vectors = kind_of(model.spec.experts).vectors(layer, some_R)
        for place, expert in enumerate(some_R.tolist()):
            pre_PM = pairs.pre_PM[pairs.expert_P == expert]
            says = ORACLES.get(name, peer)
            written_MD, pre_M = vectors.output_RMD[place].double(), pre_PM[0].tolist()
            added_D = says(layer, expert, pre_M)
            if vectors.input_RMD is None:  # a formula: only its direction is a vector
                assert name == "symbols"
                assert_close(added_D * (written_MD[0] @ written_MD[0]), written_MD[0] * (added_D @ written_MD[0]), 1e-6)
                continue
            act = ACTIVATIONS[layer.spec.activation if says is peer else "relu2"]
            hidden_M = torch.tensor([act(z) for z in pre_M], dtype=torch.float64)
            assert_close(added_D - says(layer, expert, [0.0] * len(pre_M)), hidden_M @ written_MD, 1e-6)
            # What is left of a pre-activation is the bias, which does not hang on the token.
            x_PD = visit.x_ND[pairs.token_P[pairs.expert_P == expert]]
            rest_PM = pre_PM - x_PD @ vectors.input_RMD[place].T.type_as(x_PD)
            assert (rest_PM - rest_PM[:1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["peer-softmax", "int4-accumulator", "monet-vertical", "dense"])
def test_pre_activations_are_the_rows_of_u_times_the_state_plus_the_bias(name):
    for visit in visits(made(name)):
        layer, pairs = visit.experts, visit.pairs()
        for p in range(0, len(pairs.token_P), 7):
            token, expert = int(pairs.token_P[p]), int(pairs.expert_P[p])
            x_D = visit.x_ND[token].double()
            if name == "dense":
                rows, biases = layer.up.weight[expert : expert + 1], layer.up.bias[expert : expert + 1]
            elif name == "monet-vertical":
                i, j = divmod(expert, layer.num_sub_experts)
                own = [(u.weight.unflatten(0, (5, -1))[at], u.bias.unflatten(0, (5, -1))[at])
                       for u, at in ((layer.u1, i), (layer.u2, j))]  # fmt: skip
                rows, biases = (torch.cat(parts) for parts in zip(*own, strict=True))
            else:
                rows, biases = layer.tables()["u"].rows(torch.tensor([expert])), layer.bias[expert : expert + 1]
            assert torch.allclose(pairs.pre_PM[p].double(), rows.double() @ x_D + biases.double(), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_a_row_an_expert_and_sizes_are_those_of_the_state(name):
    model = made(name)
    for layer in model.expert_layers():
        tables = layer.tables()
        assert list(tables) == {"dense": [], "monet": [], "symbols": ["v"]}.get(model.kind, ["u", "v"])
        assert all(table.num_rows == layer.num_experts for table in tables.values())
        rows = [table.rows(torch.tensor([3, 1])) for table in tables.values()]
        assert all(of_table.shape == (2, model.shape.d_model) for of_table in rows)
        nobodys = [t for n, t in layer.state_dict().items() if n.startswith("axis_bias.") or n == "down.bias"]
        of_state = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
        assert layer.state_bytes() == of_state - sum(t.numel() * t.element_size() for t in nobodys)


def test_a_walk_keeps_no_layer_behind():
    model = tiny_model(JUMP, shape=SHAPE.model_copy(update={"num_layers": 6}))
    states, alive = [], []

    def heard(module, inputs, output):
        states.append(weakref.ref(inputs[0]))
        alive.append(sum(state() is not None for state in states))

    for block in model.blocks():
        block.moe.register_forward_hook(heard)
    with torch.no_grad():
        logits = model(tiny_tokens())
    assert alive == [1, 2, 2, 2, 2, 2]
    assert sum(state() is not None for state in states) == 0
    trace = model.trace(tiny_tokens())
    assert torch.equal(trace.logits_BTV, logits) or torch.allclose(trace.logits_BTV, logits, atol=1e-5)
    assert len({id(x) for x in trace.expert_inputs}) == 6


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_of_the_experts_of_the_routers_or_of_the_backbone(name):
    model = made(name)
    named = dict(model.named_parameters())
    of = {part: {id(p) for p in model.parameters_of(part)} for part in ("experts", "routers")}
    backbone = model.backbone_state()
    for parameter_name, parameter in named.items():
        where = ".moe." in parameter_name, ".router." in parameter_name, parameter_name in backbone
        assert where == (id(parameter) in of["experts"], id(parameter) in of["routers"], where[2])
        assert sum(where) == 1
    assert backbone.keys() == {k for k in model.state_dict() if ".moe." not in k and ".router." not in k}


def test_a_layer_that_holds_others_is_seen_through():
    class Pools(ForwardOnly):
        def __init__(self, pools):
            super().__init__()
            self.router = torch.nn.Linear(12, 2)
            self.pools = torch.nn.ModuleList(pools)

        num_experts = 74

        def forward(self, x_ND, routing):
            return sum(pool(x_ND, routing) for pool in self.pools)

    model = tiny_model(JUMP)
    first, second = model.blocks()[:2]
    first.moe = Pools([PeerExperts(JUMP, 12), PeerExperts(JUMP, 12)])
    assert model.expert_layers() == [*first.moe.pools, second.moe, model.blocks()[2].moe]
    ids = {part: {id(p) for p in model.parameters_of(part)} for part in ("experts", "routers")}
    assert id(first.moe.router.weight) in ids["routers"] - ids["experts"]
    assert id(first.moe.pools[1].u) in ids["experts"] - ids["routers"]


def test_a_layer_of_another_kind_is_named_and_told_what_was_needed():
    with pytest.raises(ValueError, match="an expert layer is PeerExperts, and TableExperts was needed"):
        tiny_model(JUMP).expert_layers_of(TableExperts)
    with pytest.raises(ValueError, match="the expert spec of a 'monet' is MonetSpec, and PeerSpec was needed"):
        tiny_model(HORIZONTAL).spec.experts_as(PeerSpec)
    assert [len(layer.bias) for layer in tiny_model(TRAINABLE).expert_layers_of(TableExperts)] == [37, 37, 37]


def test_two_kinds_of_one_word_are_refused():
    with pytest.raises(ValueError, match="an expert layer 'peer' is registered already, by PeerSpec; give PeerSpec"):
        register_expert_layer(
            LayerKind(spec=PeerSpec, artifact_kinds=("other",), router=PEER.router, experts=PEER.experts)
        )
    assert LAYER_KINDS["peer"] is PEER


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_is_read_as_what_its_field_layer_says(name):
    spec = made(name).spec
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    assert type(ModelSpec.model_validate(spec.model_dump(mode="json")).experts) is type(spec.experts)


def test_a_parameter_seen_as_a_table_does_what_a_table_of_float32_does():
    generator = torch.Generator().manual_seed(5)
    parameter = torch.nn.Parameter(torch.zeros(7, 12))
    tables = ParameterTable(parameter), FloatTable(7, 12, torch.float32)
    rows_ED, weight_RD, normal_RD = (torch.randn(rows, 12, generator=generator) for rows in (7, 3, 2))
    uniform_RD, moved_R = torch.rand(3, 12, generator=generator), torch.tensor([1, 6])
    for table in tables:
        table.take(rows_ED, 16)
        table.draw(slice(2, 5), weight_RD, uniform_RD)
        assert table.move(moved_R, normal_RD, uniform_RD[:2], 0.25) == 0
        assert table.rows_below_smallest_scale(rows_ED) == 0
        assert table.state_bytes() == 7 * 12 * 4
    wanted_ED = rows_ED.clone()
    wanted_ED[2:5] = weight_RD
    wanted_ED[moved_R] -= 0.25 * normal_RD
    for table in tables:
        assert torch.equal(table.rows(torch.arange(7)), wanted_ED)
    assert [list(table.parameters()) for table in tables] == [[parameter], []]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_a_table_takes_the_rows_that_are_nearest_to_those_given(precision):
    spec = PeerSpec.model_validate({**SOFTMAX.model_dump(), "precision": precision})
    rows_ED = torch.randn(37, 12, generator=torch.Generator().manual_seed(6))
    rows_ED[3] *= 1e-6
    table = table_of(spec, 12)
    table.take(rows_ED)
    largest_E1 = rows_ED.abs().amax(1, keepdim=True)
    steps = {"float32": 1e-9, "bfloat16": 1 / 128, "int8": 1 / 127, "int4": 1 / 7}  # of the largest value of a row
    step_E1 = largest_E1 * steps[precision]
    if table.scales is not None:
        step_E1[3] = 2.0**-14  # float16 has no finer one that it does not round coarsely
    assert (table.rows(torch.arange(37)) - rows_ED).abs().le(0.502 * step_E1 + 1e-9).all()
    assert table.rows_below_smallest_scale(rows_ED) == (1 if "int" in precision else 0)


def asked_classes(tree):
    """Names of classes that a file asks values for, by isinstance or by a pattern."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            yield from (inner.id for inner in ast.walk(node.args[1]) if isinstance(inner, ast.Name))
        elif isinstance(node, ast.MatchClass) and isinstance(node.cls, ast.Name):
            yield node.cls.id


def test_no_file_asks_for_the_class_of_a_layer_a_table_or_a_spec_nor_for_pieces_of_parameters_names():
    layers = [ExpertLayer]
    for kind in layers:
        layers += [below for below in kind.__subclasses__() if below.__module__.startswith("pipeline.")]
    names = {layer.__name__ for layer in layers[1:]} | {kind.spec.__name__ for kind in LAYER_KINDS.values()}
    names |= {"FloatTable", "Int8Table", "Int4Table", "ParameterTable", "MonetRouter", "PeerRouter", "SymbolRouter"}
    assert {"PeerExperts", "TableExperts", "MoVDE", "SymbolExperts", "DenseMLP", "SymbolSpec"} <= names
    files = {file for package in ("pipeline", "stages") for file in (ROOT / package).rglob("*.py")}
    # What is exported runs without the house, and has the names of what it is exported to.
    for file in files - set((ROOT / "pipeline" / "exchange").glob("*_legible.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not names & set(asked_classes(tree)), file
        words = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not words & {".moe.", ".router.", ".query.", "moe", "moe.", "router."}, file
