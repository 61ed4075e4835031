"""What general compressors need for held-out text: the yardstick beside every language model.

They read what a model is measured on, byte for byte: its windows, one after the other. Cold, a compressor has seen
nothing else; primed, it has read train text first, as a model has, in windows spread evenly over the train split.
"""

import lzma
from collections.abc import Callable
from functools import partial

import pyppmd
import torch
from pydantic import BaseModel, ConfigDict, Field

from pipeline.corpus.splits import Corpus, Split
from pipeline.corpus.windows import held_out_windows

MOST_PRIMING_TOKENS = 10_000_000
"""For that many they take a minute or two."""
ORDER, HIGH_ORDER = 6, 16
"""Bytes of PPMd's longest context: the usual one, and one that learns more from text that was read before."""
_PPMD_BYTES_A_BYTE = 64
"""Memory a byte of text: with too little, PPMd forgets all it has read. Text at order 16 needs half of that."""
_LEAST_PPMD_MEMORY, _MOST_PPMD_MEMORY = 1 << 24, 0xFFFF_FFFF - 12 * 3
_LEAST_XZ_DICTIONARY, _MOST_XZ_DICTIONARY = 1 << 23, 1536 << 20


class CompressorsConfig(BaseModel):
    """Which text the compressors read; to be compared with a model, as much as it does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_tokens: int = Field(
        default=1_536_000,
        ge=0,
        le=MOST_PRIMING_TOKENS,
        description="Train tokens whose text primed ones read first; at most the split.",
    )
    tokens: int = Field(
        default=65_536,
        ge=256,
        description="Held-out tokens that they compress, in windows spread evenly over the split.",
    )
    context_length: int = Field(default=128, ge=2, le=65_536, description="Tokens a window of either.")


def measure_compressors(corpus: Corpus, config: CompressorsConfig) -> dict[str, float]:
    """Bits a byte of held-out text by xz and PPMd, cold and primed, and what text that was."""
    held_out_N = _tokens(corpus.held_out, config.tokens, config.context_length)
    train_N = _tokens(corpus.train, config.train_tokens, config.context_length)
    held_out, train = text_of(corpus, held_out_N), text_of(corpus, train_N)
    high = partial(ppmd_size, order=HIGH_ORDER)
    return {
        "ppmd_held_out_bits_per_byte": bits_per_byte(ppmd_size, held_out),
        "ppmd_primed_held_out_bits_per_byte": bits_per_byte(ppmd_size, held_out, after=train),
        "ppmd16_held_out_bits_per_byte": bits_per_byte(high, held_out),
        "ppmd16_primed_held_out_bits_per_byte": bits_per_byte(high, held_out, after=train),
        "xz_held_out_bits_per_byte": bits_per_byte(xz_size, held_out),
        "xz_primed_held_out_bits_per_byte": bits_per_byte(xz_size, held_out, after=train),
        "held_out_tokens_compressed": float(held_out_N.numel()),
        "primed_train_tokens": float(train_N.numel()),
        "primed_train_bytes": float(len(train)),
    }


def bits_per_byte(size: Callable[[bytes], int], text: bytes, *, after: bytes = b"") -> float:
    """By which the compressed size of both grows with the text, in bits over its bytes."""
    before = size(after) if after else 0
    return 8 * (size(after + text) - before) / max(1, len(text))


def ppmd_size(text: bytes, order: int = ORDER) -> int:
    """Bytes that PPMd makes of the text, in variant H, that of 7-Zip."""
    memory = min(_MOST_PPMD_MEMORY, max(_LEAST_PPMD_MEMORY, _PPMD_BYTES_A_BYTE * len(text)))
    encoder = pyppmd.Ppmd7Encoder(order, memory)
    return len(encoder.encode(text)) + len(encoder.flush())


def xz_size(text: bytes) -> int:
    """Bytes that xz makes of the text at its usual level, all of the text within its dictionary."""
    dictionary = min(_MOST_XZ_DICTIONARY, max(_LEAST_XZ_DICTIONARY, len(text)))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": dictionary}]
    return len(lzma.compress(text, filters=filters))


def text_of(corpus: Corpus, tokens_N: torch.Tensor) -> bytes:
    """The bytes that these tokens stand for; a separator stands for none."""
    token_bytes = corpus.tokenizer.token_bytes
    return b"".join(token_bytes[token] for token in tokens_N.tolist())


def _tokens(split: Split, num_tokens: int, length: int) -> torch.Tensor:
    """(N,) tokens of windows as models take them; of a split that holds no window, all."""
    if num_tokens == 0:
        return torch.zeros(0, dtype=torch.int64)
    if split.num_tokens <= length:
        return split.tokens_at(torch.arange(min(num_tokens, split.num_tokens)))
    return held_out_windows(split, num_tokens=num_tokens, length=length)[1].flatten()
