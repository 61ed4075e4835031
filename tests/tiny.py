"""Models and corpora of a few hundred numbers. No width here is a power of two, so that a swapped axis fails."""

import torch
from pydantic import BaseModel

from kernels.packing import pack_int4
from pipeline.corpus.splits import Corpus, CorpusSpec, make_split
from pipeline.corpus.tokenizer import ByteTokenizer
from pipeline.models import LanguageModel, ModelSpec
from pipeline.models.dense import DenseSpec
from pipeline.models.monet import MonetSpec
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.transformer import TransformerShape, TransformerSpec

SHAPE = TransformerShape(d_model=12, num_layers=3, num_heads=3, num_kv_heads=1)
DENSE = DenseSpec(d_hidden=18)
HORIZONTAL = MonetSpec(
    decomposition="horizontal", num_sub_experts=5, d_expert=6, num_heads=3, active_sub_experts=2, router_group=2
)
VERTICAL = HORIZONTAL.model_copy(update={"decomposition": "vertical"})
SOFTMAX = PeerSpec(num_keys=5, num_experts=37, num_heads=3, d_key=6, pairs_per_head=3, active_keys=2)
JUMP = SOFTMAX.model_copy(update={"gate": "jumprelu", "router_group": 2, "axis_bias": True, "activation": "relu2"})
INT8 = JUMP.model_copy(update={"precision": "int8"})
INT4 = JUMP.model_copy(update={"precision": "int4"})
TRAINABLE = INT4.model_copy(update={"accumulator": True})
EVERY_KIND: dict[str, BaseModel] = {
    "dense": DENSE,
    "monet-horizontal": HORIZONTAL,
    "monet-vertical": VERTICAL,
    "peer-softmax": SOFTMAX,
    "peer-jumprelu": JUMP,
    "int8": INT8,
    "int4": INT4,
    "int4-accumulator": TRAINABLE,
}
TEXT = "the cat sat on the mat; a dog ran to the red barn, and the hen hid. "


def tiny_model(experts, *, seed=0, vocab_size=23, dtype=torch.float32, shape=SHAPE) -> LanguageModel:
    """A model in evaluation whose biases, tables, batch-norm statistics and thresholds are all nontrivial."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = TransformerSpec(**shape.model_dump(), vocab_size=vocab_size)
        model = LanguageModel(ModelSpec(transformer=transformer, experts=experts)).eval()
        if dtype == torch.float64:  # float32 is as it comes: tables of precision int8 and int4 hold float16 scales
            model.double()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                _shake(name, tensor)
    return model


def _shake(name: str, tensor: torch.Tensor) -> None:
    if name.endswith("running_var"):
        tensor.uniform_(0.5, 1.5)
    elif name.endswith(("running_mean", "bias", ".b", ".b1", ".b2", "axis_bias.row", "axis_bias.column")):
        tensor.normal_(std=0.3)
    elif name.endswith("norm.weight"):
        tensor.uniform_(0.7, 1.3)
    elif name.endswith("threshold_H"):
        tensor.uniform_(-3.0, -1.5)
    elif name.endswith("value_ED"):
        tensor.random_(-127, 128)
    elif name.endswith("weight_EB"):
        rows, half = tensor.shape
        tensor.copy_(pack_int4(torch.randint(-7, 8, (rows, 2 * half), dtype=torch.int8)))
    elif name.endswith("accumulator_EB"):
        tensor.random_(0, 256)
    elif name.endswith("scale_E"):
        tensor.uniform_(0.02, 0.05)
    elif name.endswith("moment_E"):
        tensor.uniform_(0.0, 0.1)


def tiny_tokens(batch=3, length=7, vocab_size=23, seed=1) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def tiny_corpus(repeats=60) -> Corpus:
    """One text again and again, as bytes: the same tenth of it is for validation and held out."""
    tokenizer = ByteTokenizer()
    documents = [TEXT * (1 + i % 3) for i in range(repeats)]
    cut = repeats * 9 // 10
    return Corpus(
        CorpusSpec(tokenizer="bytes", vocab_size=256, domains=("farm",)),
        train=make_split(((0, text) for text in documents[:cut]), tokenizer),
        validation=make_split(((0, text) for text in documents[cut:]), tokenizer),
        held_out=make_split(((0, text) for text in documents[cut:]), tokenizer),
        tokenizer=tokenizer,
    )
