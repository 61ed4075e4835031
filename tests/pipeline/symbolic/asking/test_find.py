"""find: precision, recall and F1 of a token are those of loops over firings; unknown tokens are told with near ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus, CorpusSpec, make_split
from pipeline.corpus.tokenizer import BpeTokenizer, ByteTokenizer
from pipeline.corpus.windows import held_out_windows
from pipeline.opening import Opened, open_model
from pipeline.symbolic.__main__ import main
from pipeline.symbolic.asking.find import find, moved_back, token_of
from pipeline.symbolic.asking.words import KnownWords, known_words
from tests.tiny import EVERY_KIND, TEXT, tiny_corpus, tiny_model
from tests.tiny_symbols import DROPPED, E

ROOT = Path(__file__).resolve().parents[4]
SAMPLE = 300


def opened_kind(kind):
    model = tiny_model(EVERY_KIND[kind], vocab_size=256)
    return Opened(id="tiny", model=model, corpus=tiny_corpus(), context=19)


NO_WORDS = KnownWords(names_of=None, experts={}, quantities={})


def firings_by_hook(model, tokens_WT):
    """Per layer, {expert: {token it adds anything on: the lengths}}: hooks keep what the experts were given."""
    given = []
    hooks = [block.moe.register_forward_hook(lambda *call: given.append(call[:2])) for block in model.blocks()]
    with torch.no_grad():
        model(tokens_WT)
    for hook in hooks:
        hook.remove()
    layers = []
    for layer, (x_ND, routing) in given:
        pairs, fires = layer.pairs(x_ND, routing), {}
        parts = (part.tolist() for part in (pairs.token_P, pairs.expert_P, pairs.norm_P))
        for token, expert, norm in zip(*parts, strict=True):
            if norm > 0:
                lengths = fires.setdefault(expert, {})
                lengths[token] = lengths.get(token, 0.0) + norm
        layers.append(fires)
    return layers


@pytest.mark.parametrize("kind", ["dense", "monet-horizontal", "peer-softmax", "int4"])
@pytest.mark.parametrize("back", [0, 2])
def test_the_best_experts_of_a_token_are_those_of_a_loop_over_all(kind, back):
    opened = opened_kind(kind)
    token = ord("h")
    (answer,) = find(opened, NO_WORDS, [token], back=back, sample=SAMPLE, most=7)
    tokens_WT, _ = held_out_windows(opened.corpus.held_out, num_tokens=SAMPLE, length=opened.context)
    length = tokens_WT.shape[1]
    flat = tokens_WT.flatten().tolist()
    here = {at for at in range(len(flat)) if at % length >= back and flat[at - back] == token}
    wanted, shares = [], {}
    for layer, fires in enumerate(firings_by_hook(opened.model, tokens_WT)):
        whole = sum(sum(on.values()) for on in fires.values())
        for expert, on in fires.items():
            shares[layer, expert] = sum(on.values()) / whole
            hits = len(on.keys() & here)
            precision, recall = hits / len(on), hits / len(here)
            f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
            wanted.append((f1, layer, expert, len(on), hits, precision, recall))
    wanted = sorted(wanted, reverse=True)[:7]
    assert answer.occurrences == len(here) > 5
    assert (answer.sample_tokens, answer.compared) == (
        len(flat),
        {"expert": 3 * opened.model.blocks()[0].moe.num_experts},
    )
    assert [one.f1 for one in answer.found] == pytest.approx([f1 for f1, *_ in wanted])
    for one in answer.found:
        assert one.output_share == pytest.approx(shares[one.layer, int(one.symbol)], rel=1e-5)
        f1, layer, expert, happens, hits, precision, recall = next(
            row for row in wanted if row[1:3] == (one.layer, int(one.symbol)) or row[0] == pytest.approx(one.f1)
        )
        if (layer, expert) == (one.layer, int(one.symbol)):
            assert (one.happens, one.hits) == (happens, hits)
            assert (one.precision, one.recall) == pytest.approx((precision, recall))
            assert one.null_precision == pytest.approx(len(here) / len(flat))
            assert one.null_recall == pytest.approx(happens / len(flat))
            # Of a token as frequent that has nothing to do with it: happens * occurrences / tokens hits.
            chance = happens * len(here) / len(flat)
            assert one.null_f1 == pytest.approx(2 * chance / (happens + len(here)))


def test_a_planted_expert_of_a_token_is_the_first_and_permuted_tokens_find_none_as_good():
    """A dense layer of one unit that is on where the embedding of 'h' stands."""
    opened = opened_kind("dense")
    model, token = opened.model, ord("h")
    with torch.no_grad():
        for block in model.blocks():
            block.self_attn.o_proj.weight.zero_()
            block.moe.down.weight.zero_()
            block.moe.down.bias.zero_()
        model.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(3))
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[token] = 0
        model.model.embed_tokens.weight[token, 0] = 9
        moe = model.blocks()[1].moe
        moe.up.weight.zero_()
        moe.up.bias.fill_(-1e-3)
        moe.up.weight[5, 0] = 1
        moe.down.weight[:, 5] = 1
    (answer,) = find(opened, NO_WORDS, [token], back=0, sample=SAMPLE, most=3)
    best = answer.found[0]
    assert (best.layer, best.symbol) == (1, "5")
    assert (best.f1, best.precision, best.recall, best.output_share) == (1, 1, 1, 1)
    assert answer.permuted_best_f1["expert"] < 0.3


def test_moving_back_stays_within_the_window():
    tokens_WT = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert moved_back(tokens_WT, 1).tolist() == [[-1, 1, 2], [-1, 4, 5]]
    assert moved_back(tokens_WT, 0).tolist() == tokens_WT.tolist()
    with pytest.raises(Mistake, match="--back: got 3, and windows are of 3 tokens"):
        moved_back(tokens_WT, 3)


def bpe_corpus():
    tokenizer = BpeTokenizer.train([TEXT * 20], 300)
    split = make_split([(0, TEXT)], tokenizer)
    spec = CorpusSpec(tokenizer="bpe", vocab_size=len(tokenizer.token_bytes), domains=("farm",))
    return Corpus(spec, train=split, validation=split, held_out=split, tokenizer=tokenizer)


def test_a_token_is_named_by_its_text_or_as_it_is_shown():
    corpus = bpe_corpus()
    known = corpus.tokenizer.token_bytes
    assert token_of(corpus, " the") == known.index(b" the")
    assert token_of(corpus, "\n") == token_of(corpus, "\\n") == known.index(b"\n")
    assert token_of(corpus, "\\xe2") == known.index(b"\xe2")
    assert token_of(corpus, "\\") == known.index(b"\\")


def test_a_token_that_is_none_is_told_with_near_ones():
    corpus = bpe_corpus()
    with pytest.raises(Mistake) as told:
        token_of(corpus, " teh")
    assert str(told.value).startswith("--token: ' teh' is not one of the ")
    assert "' the'" in str(told.value).split("near ones are ")[1]
    assert "as text it is the tokens ' t'" in str(told.value)
    with pytest.raises(Mistake, match=r"near ones are ' the'"):
        token_of(corpus, "  THE".lower())


def test_scores_and_features_are_those_that_the_names_count(symbols_store):
    """Of a score by the gate's own word, token by token."""
    opened = open_model(symbols_store, "latest", "symbols")
    words = known_words(symbols_store, opened.id)
    token = ord("t")
    (answer,) = find(opened, words, [token], back=0, sample=200, most=4)
    tokens_WT, _ = held_out_windows(opened.corpus.held_out, num_tokens=200, length=64)
    router = opened.model.blocks()[0].router.scores
    with torch.no_grad():
        x_ND = opened.model.trace(tokens_WT).expert_inputs[0]
        high = router.gate.high(router, router.scores(x_ND))
    here_N = tokens_WT.flatten() == token
    f1 = {}
    for axis, part in zip("AB", high, strict=True):
        for head in range(part.shape[1]):
            for key in range(part.shape[2]):
                both, either = int((part[:, head, key] & here_N).sum()), int(part[:, head, key].sum() + here_N.sum())
                f1[f"{axis}^{head}_{key}"] = 2 * both / either
    scores = [one for one in answer.found if one.kind == "score"]
    assert len(scores) == 4
    assert [one.f1 for one in scores] == pytest.approx(sorted(f1.values(), reverse=True)[:4])
    assert all(one.f1 == pytest.approx(f1[one.symbol]) for one in scores)
    assert all(one.said == "whole" for one in scores)
    assert all(one.layer == 0 and not one.raises and one.output_share is None for one in scores)


def asked(store, capsys, *arguments):
    code = main([*arguments, "--store", str(store.root)])
    return code, *capsys.readouterr()


def test_find_prints_lines_of_80_columns_and_the_same_as_data(symbols_store, capsys):
    words = ("find", "latest", "--token", "e", "--token", " ", "--most", "3", "--tokens", "300")
    code, out, err = asked(symbols_store, capsys, *words)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "'e': " in out
    assert f"best of all {2 * E} on permuted tokens" in out
    assert "F1 (null) of a statement: in the model that was distilled, on held-out text" in out
    code, out, err = asked(symbols_store, capsys, *words, "--json")
    first, second = map(json.loads, out.splitlines())
    assert (first["token"], second["token"]) == ("'e'", "' '")
    said = [one for one in first["found"] if one["said"] == "cur='e'"]
    assert [(one["layer"], one["symbol"], one["said_f1"]) for one in said] in ([], [(1, "11", 0.625)])
    assert all(len(one["raises"]) == 5 for one in first["found"] if one["kind"] == "expert")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("find", "latest", "--token", "cat"), "--token: 'cat' is not one of the 256 tokens"),
        (("find", "latest", "--token", "e", "--most", "0"), "--most: got 0, wanted at least 1"),
        (("find", "latest", "--token", "e", "--back", "-1"), "--back: got -1, wanted at least 0"),
        (("find", "nothing", "--token", "e"), "nothing"),
        (("read", "latest", "--text", ""), "there is no text to read"),
        (("read", "latest", "--text", "a\udcff"), "--text: got '\\udcff' as character 2"),
        (("read", "latest", "--text", "a", "--layer", "2"), "layer 2 is not in this model"),
        (("read", "latest", "--file", "/nothing/here"), "--file: /nothing/here cannot be read (No such file"),
        (("ablate", "latest", "--layer", "0", "--expert", "99"), "expert 99 is not in layer 0"),
        (("ablate", "latest", "--layer", "7", "--expert", "0"), "layer 7 is not in this model"),
        (("ablate", "latest", "--layer", "0", "--expert", str(DROPPED)), f"expert {DROPPED}: nothing is added on"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(symbols_store, capsys, arguments, sentence):
    code, out, err = asked(symbols_store, capsys, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom pipeline.symbolic.__main__ import main\n"
        "try:\n    main(['find', '--help'])\nexcept SystemExit:\n"
        "    sys.exit(', '.join({'torch', 'sympy', 'pydantic'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_find_and_read_do_without_sympy():
    code = (
        "import sys\nfrom pipeline.symbolic.commands import find, read, show\n"
        "sys.exit(', '.join({'sympy', 'kan', 'matplotlib', 'pandas', 'sklearn'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bytes_that_are_tokens_have_names():
    assert token_of(tiny_corpus(), "\\x80") == 0x80
    assert ByteTokenizer().token_bytes[token_of(tiny_corpus(), "\x00")] == b"\0"
