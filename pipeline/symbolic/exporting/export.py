"""A symbols model as a folder that needs no Python: one C source, tables in binary, tokens to check it on.

The C source (runtime.c) is the same for every model; all that is a model's own lies in tables.bin, little endian, and
the program checks it on loading. Nothing of an artifact becomes source text.
"""

# D model width, E experts, V vocabulary, W windows, T tokens of a window

import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from artifacts import Store
from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows
from pipeline.measuring.loss import token_losses
from pipeline.models.attention import SoftmaxAttention
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.gates import GATES
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.symbols import SymbolExperts, SymbolRouter, SymbolSpec
from pipeline.models.transformer import Block
from pipeline.opening import open_model
from pipeline.symbolic.formulas.spline import KNOTS

MAGIC, VERSION = b"LEGIBLE1", 3
NAME_BYTES = 40
_TYPES = (torch.float32, torch.uint8, torch.int16, torch.int32, torch.float16)
"""As runtime.c numbers them."""
_SUB_KEYS = ("identity", "shared", "per-head")
_SOURCE, _README = (Path(__file__).with_name(name) for name in ("runtime.c", "runtime.md"))
_BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    folder: Path
    loss_nats: float
    """Python's mean loss a token of the tokens in tokens.bin."""
    num_tokens: int
    length: int
    """Tokens of a window of them: no more than the model was trained on."""


def export(store: Store, id: str, folder: Path, *, num_tokens: int, length: int | None) -> Exported:
    """Writes the folder, whole or not at all; windows of no length are as long as the model was trained on.

    ValueError or ArtifactError where it cannot.
    """
    for flag, value in (("--tokens", num_tokens), ("--length", length)):
        if value is not None and value < 1:
            raise Mistake(f"{flag}: got {value}, wanted at least 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Mistake(f"--to: {folder} is there already and is no empty folder; name another, or remove it")
    opened = open_model(store, id, "symbols")
    length = opened.context if length is None else length
    return write_folder(
        opened.model, opened.corpus, opened.id, folder, num_tokens=num_tokens, length=length, context=opened.context
    )


def write_folder(
    model: LanguageModel, corpus: Corpus, name: str, folder: Path, *, num_tokens: int, length: int, context: int
) -> Exported:
    """`context` is what the model was trained on: windows of more are cropped to it, and so is what the program reads
    before a token."""
    length = min(length, context)
    inputs_WT, targets_WT = held_out_windows(corpus.held_out, num_tokens=num_tokens, length=length)
    loss_nats = _loss(model, inputs_WT, targets_WT)
    made = Exported(folder=folder, loss_nats=loss_nats, num_tokens=inputs_WT.numel(), length=length)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        scratch.chmod(0o755)
        (scratch / "model.c").write_bytes(_SOURCE.read_bytes())
        (scratch / "tables.bin").write_bytes(tables_file(model, window=length, context=context))
        windows = torch.cat([inputs_WT, targets_WT[:, -1:]], dim=1)
        (scratch / "tokens.bin").write_bytes(windows.numpy().astype("<u2").tobytes())
        (scratch / "Makefile").write_text(_MAKEFILE)
        for file_name, content in corpus.to_files().items():
            (scratch / file_name).write_bytes(content)
        tokenizer = "`tokenizer.json` (read by the Python package `tokenizers`)" if corpus.to_files() else "bytes"
        words = {"name": name, "loss": made.loss_nats, "tokens": made.num_tokens, "length": length, "context": context}
        readme = _README.read_text(encoding="utf-8").format(**words, tokenizer=tokenizer)
        (scratch / "README.md").write_text(readme, encoding="utf-8")
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return made


@torch.no_grad()
def _loss(model: LanguageModel, inputs_WT: Tensor, targets_WT: Tensor) -> float:
    batches = zip(inputs_WT.split(_BATCH), targets_WT.split(_BATCH), strict=True)
    total = sum(float(token_losses(model(inputs), targets).double().sum()) for inputs, targets in batches)
    return total / targets_WT.numel()


def tables_file(model: LanguageModel, *, window: int, context: int) -> bytes:
    """The bytes of tables.bin. ValueError for a model that is no symbols model."""
    if model.kind != "symbols":
        raise Mistake(f"a {model.kind!r} has no symbols to export; a 'symbols' was needed here")
    spec = model.spec.experts_as(SymbolSpec)
    body = b"".join(_record(name, table) for name, table in _tables(model, spec))
    sizes = struct.pack("<24I6d", *_sizes(model, spec, window, context), *_numbers(model, spec))
    header_bytes = len(MAGIC) + struct.calcsize("<2I2Q") + len(sizes)
    promised = struct.pack("<2I2Q", VERSION, header_bytes, header_bytes + len(body), zlib.crc32(sizes + body))
    return MAGIC + promised + sizes + body


def _sizes(model: LanguageModel, spec: SymbolSpec, window: int, context: int) -> tuple[int, ...]:
    shape, peer = model.shape, spec.peer
    column_width = peer.num_columns if peer.sub_keys == "identity" else peer.d_key
    return (
        shape.d_model, shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.vocab_size,
        peer.num_heads, peer.num_keys, peer.num_columns, peer.d_key, column_width, _SUB_KEYS.index(peer.sub_keys),
        int(peer.query_norm), _gate_code(peer), peer.pairs_per_head, int(peer.axis_bias), peer.router_group,
        peer.num_experts, spec.coordinates, spec.places, KNOTS, window, context, peer.score_features,
        _terms(model),
    )  # fmt: skip


def _gate_code(peer: PeerSpec) -> int:
    code = GATES[peer.gate].runtime_code
    if code is None:
        raise Mistake(f"model.c has no {peer.gate!r} gate; export a model whose gate it has")
    return code


def _numbers(model: LanguageModel, spec: SymbolSpec) -> tuple[float, ...]:
    router = model.routers_of(SymbolRouter)[0].scores
    query_eps = router.query_norm.eps if isinstance(router.query_norm, nn.BatchNorm1d) else 0.0
    cuts = router.gate.cuts(router)
    axis_eps, deviations = (0.0, 0.0) if cuts is None else (cuts.rows.eps, cuts.deviations)
    return model.shape.rope_theta, model.shape.norm_eps, query_eps, axis_eps, deviations, spec.peer.tie_margin


def _terms(model: LanguageModel) -> int:
    """Most terms of a score; 0 where all features are read, or none are."""
    routers = [router.scores for router in model.routers_of(SymbolRouter).values()]
    return max(router.compact_rows().index_SK.shape[1] if router.spec.score_terms else 0 for router in routers)


def _tables(model: LanguageModel, spec: SymbolSpec) -> Iterator[tuple[str, Tensor]]:
    """Every table by its name, in the order in which runtime.c reads them; what it multiplies lies by columns."""
    sizes = (spec.num_dense, spec.num_literals, spec.num_gates, spec.num_splines)
    yield "blocks", torch.tensor([*zip(*sizes, strict=True)]).int()
    yield "embedding", model.model.embed_tokens.weight
    terms = _terms(model)
    routers = model.routers_of(SymbolRouter)
    for layer, (block, experts) in enumerate(zip(model.blocks(), model.expert_layers_of(SymbolExperts), strict=True)):
        attention, router = _attention(model, block), routers.get(layer)
        for name, table in _block_tables(block, attention, router, experts, terms):
            yield f"layers.{layer}.{name}", table
    yield "norm", model.model.norm.weight
    yield "head", model.lm_head.weight.T


def _block_tables(
    block: Block, attention: SoftmaxAttention, router: SymbolRouter | None, experts: SymbolExperts, terms: int
) -> Iterator[tuple[str, Tensor]]:
    yield "attention_norm", block.input_layernorm.weight
    yield from _attention_tables(attention)
    yield "expert_norm", block.post_attention_layernorm.weight
    if router is not None:
        yield from _router_tables(router.scores, terms)
    tables = experts.symbol_tables._asdict()
    yield "cell_start", tables.pop("cell_start_C1")
    if experts.axis_bias is not None:
        yield from (("row_bias", experts.axis_bias.row), ("column_bias", experts.axis_bias.column))
    yield from ((name.rpartition("_")[0], table) for name, table in tables.items())


def _attention(model: LanguageModel, block: Block) -> SoftmaxAttention:
    if not isinstance(block.self_attn, SoftmaxAttention):
        kind = model.shape.attention.kind
        raise Mistake(f"model.c has no {kind!r} attention; export a model whose attention is 'softmax'")
    return block.self_attn


def _attention_tables(attention: SoftmaxAttention) -> Iterator[tuple[str, Tensor]]:
    yield from (("q", attention.q_proj.weight.T), ("k", attention.k_proj.weight.T))
    yield from (("v_attention", attention.v_proj.weight.T), ("o", attention.o_proj.weight.T))


def _router_tables(router: PeerRouter, terms: int) -> Iterator[tuple[str, Tensor]]:
    if router.spec.score_features:
        yield from (("features", router.features.weight.T), ("score_intercept", router.query.bias))
    if terms:
        rows = router.compact_rows()
        short = terms - rows.index_SK.shape[1]
        yield "term_index", nn.functional.pad(rows.index_SK, (0, short)).to(torch.int16)
        yield "term_coefficient", nn.functional.pad(rows.coefficient_SK, (0, short))
    else:
        yield "query", router.query.weight.T
    if isinstance(router.query_norm, nn.BatchNorm1d):
        yield from _statistics("query", router.query_norm)
    if router.spec.sub_keys != "identity":
        yield from (("row_keys", router.row_keys.mT), ("column_keys", router.column_keys.mT))
    if (cuts := router.gate.cuts(router)) is not None:
        yield from (*_statistics("row", cuts.rows), *_statistics("column", cuts.columns))
    if (limit_H := router.gate.limits(router)) is not None:
        yield "threshold", limit_H


def _statistics(name: str, norm: nn.BatchNorm1d) -> Iterator[tuple[str, Tensor]]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    yield from ((f"{name}_mean", norm.running_mean), (f"{name}_var", norm.running_var))


def _record(name: str, table: Tensor) -> bytes:
    """Name, type, 0, number of values; then the values, and zeros up to a multiple of eight bytes."""
    assert len(name) < NAME_BYTES
    values = table.detach().cpu()
    values = values.to(torch.uint8) if values.dtype == torch.bool else values
    content = values.contiguous().numpy()
    stored = content.astype(content.dtype.newbyteorder("<")).tobytes()
    head = struct.pack(f"<{NAME_BYTES}s2IQ", name.encode(), _TYPES.index(values.dtype), 0, values.numel())
    return head + stored + bytes(-len(stored) % 8)


_MAKEFILE = """\
CC = cc
CFLAGS = -O3 -Wall -Wextra

model: model.c
\t$(CC) $(CFLAGS) -o $@ $< -lm

check: model
\t./model losses tokens.bin

.PHONY: check
"""
