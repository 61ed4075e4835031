"""Compressors as a yardstick: which text they read, and sizes that another implementation confirms by reading it."""

import lzma
import math
from functools import partial

import numpy as np
import pyppmd
import pytest
import torch

from pipeline.corpus.windows import held_out_windows, target_positions
from pipeline.measuring import compressors
from pipeline.measuring.compressors import CompressorsConfig, bits_per_byte, measure_compressors, ppmd_size, xz_size
from stages.presets import PRESETS
from tests.tiny import tiny_corpus


def random_text(num_bytes, alphabet=64, seed=0) -> bytes:
    return bytes(np.random.default_rng(seed).integers(32, 32 + alphabet, num_bytes, dtype=np.uint8))


TEXT = b"the cat sat on the mat; a dog ran to the red barn. " * 40 + random_text(3000)


def test_the_sizes_are_those_of_streams_that_decompress_to_the_text():
    for order in (6, 16):
        ppmd = pyppmd.compress(TEXT, max_order=order, mem_size=1 << 24, variant="H")
        assert pyppmd.Ppmd7Decoder(order, 1 << 24).decode(ppmd, len(TEXT)) == TEXT
        assert ppmd_size(TEXT, order=order) == len(ppmd)
    assert ppmd_size(TEXT) == ppmd_size(TEXT, order=6)
    xz = lzma.compress(TEXT, preset=6)
    assert lzma.decompress(xz) == TEXT
    assert xz_size(TEXT) == len(xz)


def test_independent_random_characters_cost_their_entropy():
    """64 equally likely characters: 6 bits each, which order 6 can only learn to about a tenth."""
    assert 6 < bits_per_byte(ppmd_size, random_text(200_000)) < 6.6
    assert 6 < bits_per_byte(xz_size, random_text(200_000)) < 6.6


@pytest.mark.parametrize("size", [ppmd_size, partial(ppmd_size, order=16), xz_size], ids=["ppmd", "ppmd16", "xz"])
def test_text_that_was_read_before_costs_next_to_nothing(size):
    text = random_text(20_000)
    assert bits_per_byte(size, text) > 6
    assert bits_per_byte(size, text, after=text) < 1.2
    unrelated = random_text(20_000, seed=1)
    assert bits_per_byte(size, text, after=unrelated) == pytest.approx(bits_per_byte(size, text), rel=0.1)


def test_primed_is_the_growth_of_the_compressed_size():
    after, text = TEXT[:1000], TEXT[1000:]
    assert bits_per_byte(ppmd_size, text, after=after) == 8 * (ppmd_size(TEXT) - ppmd_size(after)) / len(text)


def test_xz_finds_what_lies_beyond_its_usual_dictionary():
    """Of eight million bytes: the second copy of what nine million bytes before it began with."""
    start = random_text(50_000, alphabet=200)
    between = b"a" * 9_000_000
    assert bits_per_byte(xz_size, start, after=start + between) < 0.1
    far = lzma.compress(start + between + start, preset=6)
    assert len(far) - len(lzma.compress(start + between, preset=6)) > 40_000


@pytest.mark.parametrize("order", [6, 16])
def test_ppmd_has_memory_enough_not_to_start_anew(order, monkeypatch):
    """Characters at random need most; eight times the memory changes nothing, an eighth of it does."""
    text = random_text(1_000_000, alphabet=95)
    size = ppmd_size(text, order=order)
    monkeypatch.setattr(compressors, "_PPMD_BYTES_A_BYTE", 512)
    assert ppmd_size(text, order=order) == size
    monkeypatch.setattr(compressors, "_PPMD_BYTES_A_BYTE", 8)
    monkeypatch.setattr(compressors, "_LEAST_PPMD_MEMORY", 1 << 20)
    assert ppmd_size(text, order=order) != size


def test_they_read_the_bytes_that_models_are_measured_on():
    corpus = tiny_corpus()
    config = CompressorsConfig(train_tokens=500, tokens=256, context_length=23)
    metrics = measure_compressors(corpus, config)
    _, targets_WT = held_out_windows(corpus.held_out, num_tokens=256, length=23)
    held_out = bytes(targets_WT.flatten().tolist())  # a token of this corpus is a byte
    positions_N = target_positions(corpus.train, num_tokens=500, length=23).flatten()
    train = bytes(corpus.train.tokens_N[positions_N.to(torch.int64)].tolist())
    assert metrics["held_out_tokens_compressed"] == len(held_out) == 23 * (256 // 23)
    assert metrics["primed_train_tokens"] == metrics["primed_train_bytes"] == len(train) == 23 * (500 // 23)
    for name, size in (("ppmd", ppmd_size), ("ppmd16", partial(ppmd_size, order=16)), ("xz", xz_size)):
        assert metrics[f"{name}_held_out_bits_per_byte"] == 8 * size(held_out) / len(held_out)
        primed = 8 * (size(train + held_out) - size(train)) / len(held_out)
        assert metrics[f"{name}_primed_held_out_bits_per_byte"] == primed
        assert primed < metrics[f"{name}_held_out_bits_per_byte"]  # both splits are one text again and again


def test_a_split_shorter_than_a_window_is_read_whole_and_no_train_text_primes_nothing():
    corpus = tiny_corpus()
    config = CompressorsConfig(train_tokens=0, context_length=60_000)
    metrics = measure_compressors(corpus, config)
    assert metrics["held_out_tokens_compressed"] == corpus.held_out.num_tokens
    assert metrics["primed_train_bytes"] == 0
    for name in ("ppmd", "ppmd16", "xz"):
        cold = metrics[f"{name}_held_out_bits_per_byte"]
        assert metrics[f"{name}_primed_held_out_bits_per_byte"] == cold
        assert math.isfinite(cold)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_primes_them_with_what_its_monet_trains_on_in_windows_as_long(name):
    plan = PRESETS[name]()
    read, monet = plan.prepare_corpus.compressors, plan.train_monet
    trained_on = monet.training.steps * monet.training.batch_size * monet.training.context_length
    assert read.train_tokens == min(10_000_000, trained_on)
    assert read.context_length == monet.training.context_length
    assert read.tokens == monet.measure.tokens
