"""A symbols model that has an expert of every kind, and a store that holds it."""

import json
from pathlib import Path

import torch

from artifacts import Circumstance, Recipe, Store
from pipeline.corpus.splits import Corpus, CorpusSpec, make_split
from pipeline.corpus.tokenizer import ByteTokenizer
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.symbols import SymbolSpec
from pipeline.models.transformer import TransformerSpec
from pipeline.symbolic.formulas.functions import CATALOGUE, SPLINE_CODE
from pipeline.symbolic.names.names import Name, Names, Said
from pipeline.symbolic.tiers import Tier

# D model width, E experts

D, KEYS, HEADS = 14, 3, 2
DENSE, SPLINE = 0, len(CATALOGUE) + 1
LOGIC, CONSTANT, DROPPED = SPLINE + 1, SPLINE + 2, SPLINE + 3
E = DROPPED + 4
NAMES = ["letters", f"own set of expert {LOGIC}, token[-1]", "token[0] is '\ufffd'", "token[0] is '\ufffd'"]
VOCABULARY = [ByteTokenizer().decode([token]) for token in range(256)]
TEXT = "the cat sat on the mat, and the dog ran after 27 hens\n"


def symbols_model(**router: object) -> LanguageModel:
    """Two blocks that share a router, unless `router` gives its PeerSpec other fields."""
    peer = PeerSpec(
        precision="int4", num_keys=KEYS, num_experts=E, num_heads=HEADS, sub_keys="identity", d_key=KEYS,
        query_norm=False, gate="jumprelu", pairs_per_head=2, active_keys=2, activation="relu2", router_group=2,
    )  # fmt: skip
    peer = PeerSpec.model_validate({**peer.model_dump(), **router})
    spec = SymbolSpec(
        peer=peer,
        vocab_size=256,
        coordinates=4,
        places=2,
        num_dense=(1, 1),
        num_literals=(4, 4),
        num_gates=(3, 3),
        num_splines=(1, 1),
    )
    shape = TransformerSpec(d_model=D, num_layers=2, num_heads=1, num_kv_heads=1, vocab_size=256)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        model = LanguageModel(ModelSpec(transformer=shape, experts=spec)).eval()
        if peer.gate == "jumprelu":
            for block in model.blocks()[:: peer.router_group]:
                block.router.scores.threshold_H.copy_(torch.tensor([-2.5004, -3.2496]))
        for layer in range(2):
            _fill(model.blocks()[layer].moe, torch.Generator().manual_seed(layer))
    return model


def symbols_store(root: Path, model: LanguageModel) -> Store:
    """A corpus and twice the model made from it: as before scores had names, and the latest, with names."""
    store = Store(root)
    tokenizer = ByteTokenizer()
    split = make_split([(0, TEXT * 12)], tokenizer)
    spec = CorpusSpec(tokenizer="bytes", vocab_size=256, domains=("text",))
    corpus = Corpus(spec, train=split, validation=split, held_out=split, tokenizer=tokenizer)

    def publish(stage, value, files, version=1, **inputs):
        config = {"training": {"context_length": 128}} if inputs else {}
        return store.publish(
            recipe=Recipe(stage=stage, stage_version=version, config=config, seed=0, inputs=inputs),
            kind=value.kind,
            spec=value.spec.model_dump(mode="json"),
            tensors=value.to_tensors(),
            metrics={},
            files=files,
            circumstance=Circumstance.now(device="cpu", seconds=0.0),
        )

    corpus_id = publish("prepare-corpus", corpus, {})
    files = {"literals.json": json.dumps([NAMES, NAMES]).encode()}
    publish("distill-symbols", model, files, version=2, corpus=corpus_id)
    files["names.json"] = _quantity_names().model_dump_json().encode()
    publish("distill-symbols", model, files, version=3, corpus=corpus_id)
    return store


def _quantity_names() -> Names:
    """Of all scores of the router and all coordinates of both blocks, each naming itself."""
    nulls = {"null_f1": 0.125, "permuted_f1": 0.25, "rate": 0.125, "top_tokens": (), "contexts": ()}
    keys = [
        ("score", 0, axis, head, key, 0.5 + key / 10) for axis in "AB" for head in range(HEADS) for key in range(KEYS)
    ]
    keys += [("coordinate", block, "x", None, index, 0.75) for block in range(2) for index in range(D)]
    return Names(
        names=tuple(
            Name(
                kind=kind, block=block, axis=axis, head=head, index=index, f1=f1,
                statement="whole", brief=f"says {axis} {head} {index} of block {block}", **nulls,
            )
            for kind, block, axis, head, index, f1 in keys
        ),
        experts=(Said(block=1, expert=11, statement="cur='e'", f1=0.625, null_f1=0.03125),),
    )  # fmt: skip


def _fill(experts, generator):
    """The first is dense, then each function has one, then a spline, logic twice; the others are dropped."""
    experts.tier_E[:] = Tier.T4
    experts.tier_E[DENSE], experts.tier_E[1:LOGIC] = Tier.T0, Tier.T1
    experts.tier_E[LOGIC], experts.tier_E[CONSTANT] = Tier.T2, Tier.T3
    experts.code_E[:LOGIC] = torch.tensor([4, *(function.code for function in CATALOGUE), SPLINE_CODE])
    experts.code_E[LOGIC] = 8
    experts.scale_E[:] = torch.randn(E, generator=generator)
    experts.scale_E[DENSE], experts.scale_E[SPLINE] = 1, 1
    experts.offset_E[1:SPLINE] = torch.randn(SPLINE - 1, generator=generator)
    experts.intercept_E[:CONSTANT] = torch.randn(CONSTANT, generator=generator)
    experts.index_EK.copy_(torch.stack([torch.randperm(D, generator=generator)[:4] for _ in range(E)]))
    experts.coefficient_EK.copy_(torch.randn(E, 4, generator=generator))
    experts.coefficient_EK[:, 3] = 0
    experts.dense_u_FD.copy_(torch.randn(1, D, generator=generator))
    experts.spline_low_W[:], experts.spline_high_W[:] = -1.25, 0.5
    experts.spline_coefficient_WK.copy_(torch.randn(1, 11, generator=generator))
    experts.gate_G[:3] = torch.tensor([2, 7, 1])
    experts.wire_a_G[:3], experts.wire_b_G[:3] = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])
    experts.rule_E[LOGIC], experts.rule_E[CONSTANT], experts.rule_E[DROPPED] = 0, 1, 2
    experts.member_LV[0] = torch.tensor([text.isalpha() for text in VOCABULARY])
    experts.member_LV[1, [ord("t"), ord("\n")]] = True
    experts.member_LV[2, 200] = experts.member_LV[3, ord("a")] = True
    experts.literal_offset_L[1] = 1
    experts.v.set(
        torch.randint(-7, 8, (E, D), generator=generator).to(torch.int8), torch.rand(E, generator=generator).half()
    )
    experts.check("experts")
