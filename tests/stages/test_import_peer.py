"""import-peer: a layer computes what lucidrains' code does, in a host, and one sentence for what is no such layer."""

import math

import pytest
import torch
from safetensors.torch import save_file

from artifacts import Store
from artifacts.meanings import meaning
from kernels.errors import Mistake
from pipeline import codec
from pipeline.stage import run_stage
from stages.import_peer import ImportPeerConfig, import_peer
from tests.pipeline.test_codec import published
from tests.tiny import DENSE, SHAPE, tiny_model, tiny_tokens
from tests.tolerances import assert_close

D, H, n, Q, BLOCKS = SHAPE.d_model, 3, 7, 5, SHAPE.num_layers


def state(*, seed=0, separate=False, norm=False, heads=H):
    """What the state dict of a layer of this shape holds."""
    draw = torch.Generator().manual_seed(seed)
    rows = n * n * (heads if separate else 1)
    shapes = {
        "weight_down_embed.weight": (rows, D), "weight_up_embed.weight": (rows, D), "keys": (heads, n, 2, Q),
        "to_queries.0.weight": (2 * heads * Q, D), **({"norm.gamma": (D,)} if norm else {}),
    }  # fmt: skip
    return {
        name: torch.randn(shape, generator=draw) * (0.3 if name == "norm.gamma" else 1)
        for name, shape in shapes.items()
    }


def peer(w, x_ND, *, k=16, topk=None, non_competing=True, act=torch.nn.functional.gelu):
    """The layer's output as its code reads, in loops: token by token and head by head."""
    heads, keys = w["keys"].shape[:2]
    if "norm.gamma" in w:
        x_ND = x_ND / x_ND.norm(dim=-1, keepdim=True).clamp(min=1e-12) * math.sqrt(D) * (w["norm.gamma"] + 1)
    separate = len(w["weight_down_embed.weight"]) > keys * keys
    out_ND = torch.zeros_like(x_ND)
    for token, x in enumerate(x_ND):
        query = (w["to_queries.0.weight"] @ x).reshape(2, heads, Q)
        for head in range(heads):
            row, column = (w["keys"][head, :, axis] @ query[axis, head] for axis in range(2))
            (best_row, r), (best_column, c) = row.topk(topk or k), column.topk(topk or k)
            score = (best_row[:, None] + best_column[None]).flatten()
            cell = (r[:, None] * keys + c[None]).flatten()
            kept, at = score.topk(1 if non_competing else k)
            gate = torch.relu(kept) if non_competing else torch.softmax(kept, -1)
            for g, expert in zip(gate, cell[at] + (head * keys * keys if separate else 0), strict=True):
                hidden = act(w["weight_down_embed.weight"][expert] @ x)
                out_ND[token] += g * hidden * w["weight_up_embed.weight"][expert]
    return out_ND


def write(path, layers):
    save_file({f"blocks.{7 + at}.peer.{name}": t for at, layer in enumerate(layers) for name, t in layer.items()}, path)
    return str(path)


VARIANTS = {
    "as by default": ({}, {}, {"k": 7}),
    "softmax": ({}, {"non_competing_scores": False, "num_experts_per_head": 4}, {"k": 4, "non_competing": False}),
    "wider search": (
        {}, {"non_competing_scores": False, "num_experts_per_head": 3, "product_key_topk": 5},
        {"k": 3, "topk": 5, "non_competing": False},
    ),
    "separate": ({"separate": True}, {}, {"k": 7}),
    "separate, normed, softmax, relu": (
        {"separate": True, "norm": True},
        {"non_competing_scores": False, "num_experts_per_head": 4, "activation": "relu"},
        {"k": 4, "non_competing": False, "act": torch.relu},
    ),
    "normed, silu": ({"norm": True}, {"activation": "silu"}, {"k": 7, "act": torch.nn.functional.silu}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_are_those_of_the_layer_in_every_block(tmp_path, name):
    shape, fields, settings = VARIANTS[name]
    layers = [state(seed=block, **shape) for block in range(BLOCKS)]
    host = tiny_model(DENSE)
    config = ImportPeerConfig(source=write(tmp_path / "layers.safetensors", layers), **fields)
    model = import_peer.fn(config, host=host).value
    x_ND = torch.randn(11, D, generator=torch.Generator().manual_seed(5)) * torch.logspace(-3, 1, 11)[:, None]
    for block, weights in zip(model.blocks(), layers, strict=True):
        read_ND = block.post_attention_layernorm(x_ND)
        got = block.moe(read_ND, block.router(read_ND, torch.zeros(1, 11, dtype=torch.int64)))
        wanted = peer(weights, x_ND if "norm" in shape else read_ND, **settings)
        assert_close(got, wanted, 1e-5)
        pairs = block.experts.pairs(read_ND, block.router(read_ND, torch.zeros(1, 11, dtype=torch.int64)))
        assert int(pairs.expert_P.max()) < len(weights["weight_down_embed.weight"])
        assert (int(pairs.expert_P.max()) >= n * n) == ("separate" in shape)
    for own, theirs in zip(model.blocks(), host.blocks(), strict=True):
        assert torch.equal(own.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight)
    assert torch.isfinite(model(tiny_tokens())).all()


def test_the_artifact_opens_and_its_lineage_has_the_host(tmp_path):
    store, host = Store(tmp_path / "store"), tiny_model(DENSE)
    id = published(store, host.kind, host.spec.model_dump(mode="json"), host.to_tensors(), host.to_files())
    source = write(tmp_path / "layers.safetensors", [state(seed=block, separate=True) for block in range(BLOCKS)])
    made = run_stage(import_peer, ImportPeerConfig(source=source), inputs={"host": id}, store=store)
    artifact = store.open(made.id, kind="peer")
    assert artifact.lineage.inputs["host"].id == id
    assert artifact.lineage.sources_sha256
    assert all(meaning(name, "peer") for name in artifact.metrics)
    model = codec.load(artifact)
    assert model.spec.experts.pools == "per-head"
    assert model.expert_layers()[0].num_experts == H * n * n


UP_DOWN = ("up", "down")


def spoiled(change):
    def layers():
        found = [state(seed=block) for block in range(BLOCKS)]
        change(found)
        return found

    return layers


BAD = {
    "too few": (spoiled(lambda ls: ls.pop()), {}, "hold 2 layers and the host has 3 blocks"),
    "a missing tensor": (spoiled(lambda ls: ls[1].pop("keys")), {}, r"the layer blocks\.8\.peer\. has no keys"),
    "a foreign tensor": (spoiled(lambda ls: ls[0].update(bias=torch.ones(2))), {}, "is no tensor of a PEER layer"),
    "another width": (
        spoiled(lambda ls: ls[2].update({"weight_up_embed.weight": torch.ones(n * n, D + 1)})), {},
        r"weight_up_embed.weight is \(49, 13\); beside keys",
    ),
    "no square": (
        spoiled(lambda ls: [it.update({f"weight_{w}_embed.weight": torch.ones(50, D) for w in UP_DOWN}) for it in ls]),
        {}, "has 50 experts; 7 sub-keys an axis reach 49, or 147",
    ),
    "unlike": (spoiled(lambda ls: ls.__setitem__(1, state(separate=True))), {}, "layer 1 is of another shape"),
    "norms of some": (spoiled(lambda ls: ls[1].update({"norm.gamma": torch.ones(D)})), {}, "layer 1 is of another"),
    "a narrower search": (
        spoiled(lambda ls: None), {"non_competing_scores": False, "num_experts_per_head": 4, "product_key_topk": 3},
        "product_key_topk=3 leaves out pairs",
    ),
    "more pairs than keys": (
        spoiled(lambda ls: None), {"non_competing_scores": False}, "pairs_per_head=16 is more than num_keys=7"
    ),
    "not finite": (spoiled(lambda ls: ls[0]["keys"].fill_(float("inf"))), {}, "holds inf"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_such_layer_is_told_in_a_sentence(tmp_path, what):
    layers, fields, said = BAD[what]
    source = write(tmp_path / "layers.safetensors", layers())
    with pytest.raises((ValueError, codec.ArtifactError), match=said):
        import_peer.fn(ImportPeerConfig(source=source, **fields), host=tiny_model(DENSE))


def test_pickles_and_nothing_are_told_in_a_sentence(tmp_path):
    torch.save(state(), tmp_path / "layer.pt")
    for source, said in ((str(tmp_path), "no file of safetensors in"), (str(tmp_path / "x"), "there is no"),
                         ("", "there is no"), (str(tmp_path / "layer.pt"), "is no file of safetensors")):  # fmt: skip
        with pytest.raises(Mistake, match=said):
            import_peer.fn(ImportPeerConfig(source=source), host=tiny_model(DENSE))
