"""A symbols model in C: the same losses and the same tokens as in Python, and no damaged file that is run."""

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
import torch

from artifacts import ArtifactError, Recipe, Store
from kernels.packing import pack_int4
from pipeline.generate.sampling import Sampling, generate
from pipeline.models.peer import gates
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.symbols import SymbolExperts, SymbolSpec
from pipeline.models.transformer import ATTENTIONS, TransformerShape
from pipeline.symbolic.__main__ import main
from pipeline.symbolic.exporting.export import MAGIC, export, tables_file, write_folder
from pipeline.symbolic.formulas.functions import CATALOGUE, SPLINE_CODE
from tests.best_pair_gate import BestPair
from tests.circumstance import CIRCUMSTANCE
from tests.plus_one_attention import KIND, PlusOneSpec
from tests.tiny import DENSE, JUMP, SHAPE, SOFTMAX, tiny_corpus, tiny_model

VOCABULARY, LENGTH, PLACES, COORDINATES = 256, 24, 3, 4
CONTEXT = 64
"""Tokens that a model was trained on."""
DENSE_ROWS, LITERALS, GATES, SPLINES = 6, 5, 23, 3
SPARSE = {"query_norm": False, "sub_keys": "identity", "d_key": JUMP.num_keys}
PEERS = {
    "jumprelu, shared routers, axis biases": JUMP,
    "jumprelu, no query norm, ties": JUMP.model_copy(
        update={"query_norm": False, "sub_keys": "identity", "d_key": 5, "aspect": 2, "tie_margin": 0.05}
    ),
    "jumprelu, scores of few features": JUMP.model_copy(
        update=SPARSE | {"aspect": 2, "score_features": 7, "score_terms": 3}
    ),
    "jumprelu, scores of all features": JUMP.model_copy(update=SPARSE | {"score_features": 6}),
    "softmax, scores of features": SOFTMAX.model_copy(update=SPARSE | {"score_features": 6, "score_terms": 2}),
    "softmax": SOFTMAX,
    "softmax, shared keys": SOFTMAX.model_copy(update={"sub_keys": "shared", "aspect": 3, "router_group": 3}),
}


def symbols(peer: PeerSpec, *, shape: TransformerShape = SHAPE, sizes=(DENSE_ROWS, LITERALS, GATES, SPLINES), seed=0):
    """A model whose experts are of all tiers, functions and gates, at random."""
    layers = shape.num_layers
    spec = SymbolSpec(
        peer=peer.model_copy(update={"precision": "int4"}), vocab_size=VOCABULARY, coordinates=COORDINATES,
        places=PLACES, num_dense=(sizes[0],) * layers, num_literals=(sizes[1],) * layers,
        num_gates=(sizes[2],) * layers, num_splines=(sizes[3],) * layers,
    )  # fmt: skip
    model = tiny_model(spec, vocab_size=VOCABULARY, shape=shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.blocks() if peer.score_features else ():
            if block.router is not None:
                _make_sparse(block.router.scores, generator)
        model.lm_head.weight.mul_(3)
        model.model.embed_tokens.weight.mul_(50)  # so that what comes next depends on the tokens
        for block in model.blocks():
            assert isinstance(block.moe, SymbolExperts)
            _fill(block.moe, shape.d_model, sizes, generator)
    return model


def _make_sparse(router: PeerRouter, generator):
    """Scores of as many features as the spec allows, and of fewer."""
    weight_SR = router.query.weight
    terms = router.spec.score_terms or router.spec.score_features
    order_SR = torch.rand(weight_SR.shape, generator=generator).argsort(1)
    weight_SR.mul_(order_SR < torch.randint(terms + 1, (len(weight_SR), 1), generator=generator))
    router.query.bias.copy_(torch.randn(len(weight_SR), generator=generator))


def _fill(experts: SymbolExperts, d_model, sizes, generator):
    dense, literals, gates, splines = sizes
    count = len(experts.tier_E)
    codes = [*range(len(CATALOGUE)), *([SPLINE_CODE] if splines else [])]
    tiers = [*([0] if dense else []), 1, *([2, 3] if literals else []), 4]

    def below(limit, like):
        return torch.randint(max(1, limit), like.shape, generator=generator)

    experts.tier_E.copy_(torch.tensor(tiers)[below(len(tiers), experts.tier_E)])
    experts.code_E.copy_(torch.tensor(codes)[torch.arange(count) % len(codes)])
    experts.gate_G.copy_(torch.arange(gates) % 16)
    for wires in (experts.wire_a_G, experts.wire_b_G):
        wires.copy_(torch.rand(gates, generator=generator) * (literals + torch.arange(gates)))
    for table, limit in (
        (experts.index_EK, d_model), (experts.dense_row_E, dense), (experts.rule_E, gates),
        (experts.literal_offset_L, PLACES), (experts.member_LV, 2),
        (experts.spline_row_E, splines),
    ):  # fmt: skip
        table.copy_(below(limit, table))
    for table in (
        experts.scale_E, experts.offset_E, experts.coefficient_EK, experts.intercept_E, experts.dense_u_FD,
        experts.spline_coefficient_WK,
    ):  # fmt: skip
        table.copy_(0.5 * torch.randn(table.shape, generator=generator))
    experts.spline_low_W.fill_(-1.5)
    experts.spline_high_W.copy_(1 + torch.rand(splines, generator=generator))
    values_ED = (torch.randint(16, (count, d_model), generator=generator) - 8).clamp(min=-7)
    experts.v.weight_EB.copy_(pack_int4(values_ED.to(torch.int8)))
    experts.v.scale_E.copy_(0.01 + 0.03 * torch.rand(count, generator=generator))
    experts.check("experts")


@pytest.fixture(scope="module")
def corpus():
    return tiny_corpus()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, corpus) -> Path:
    """The program; it is the same for every model."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler was found; install gcc or clang to run exported models")
    folder = tmp_path_factory.mktemp("program")
    program = folder / "made" / "model"
    write_folder(symbols(JUMP), corpus, "tiny", program.parent, num_tokens=64, length=LENGTH, context=CONTEXT)
    done = subprocess.run(
        ["make", "CFLAGS=-O3 -Wall -Wextra -Werror"], cwd=program.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, folder: Path, *arguments, given=""):
    command = [program, "--tables", folder / "tables.bin", *arguments]
    return subprocess.run([*map(str, command)], input=given, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", PEERS)
def test_losses_and_likeliest_tokens_are_those_of_python(compiled, corpus, tmp_path, name):
    model = symbols(PEERS[name])
    made = write_folder(model, corpus, name, tmp_path / "out", num_tokens=600, length=LENGTH, context=CONTEXT)
    done = run(compiled, made.folder, "losses", made.folder / "tokens.bin")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) == pytest.approx(made.loss_nats, abs=1e-4)
    assert made.num_tokens == 600
    prompt = corpus.tokenizer.encode("the red ")
    sampling = Sampling(tokens=40, temperature=0, top_k=1, seed=0)
    wanted = list(generate(model, prompt, sampling, context=CONTEXT))
    assert len(set(wanted)) > 3
    as_arguments = run(compiled, made.folder, "sample", "--tokens", 40, *prompt)
    assert [*map(int, as_arguments.stdout.split())] == wanted
    assert run(compiled, made.folder, "sample", "--tokens", 40, given=" ".join(map(str, prompt))).stdout == (
        as_arguments.stdout
    )


def test_an_untrained_router_and_one_without_symbols_of_some_kinds(compiled, corpus, tmp_path):
    model = symbols(JUMP, shape=SHAPE.model_copy(update={"d_model": 36, "num_kv_heads": 3}), sizes=(0, 0, 0, 0))
    for block in model.blocks():
        if block.router is not None:
            block.router.scores.threshold_H.fill_(-torch.inf)
    made = write_folder(model, corpus, "few", tmp_path / "out", num_tokens=300, length=LENGTH, context=CONTEXT)
    done = run(compiled, made.folder, "losses", made.folder / "tokens.bin", LENGTH)
    assert float(done.stdout.split()[0]) == pytest.approx(made.loss_nats, abs=1e-4), done.stderr


def test_what_is_older_than_the_context_is_forgotten_as_in_python(compiled, corpus, tmp_path):
    model = symbols(JUMP)
    made = write_folder(model, corpus, "long", tmp_path / "out", num_tokens=64, length=LENGTH, context=CONTEXT)
    prompt = torch.randint(VOCABULARY, (CONTEXT - 2,), generator=torch.Generator().manual_seed(4)).tolist()
    sampling = Sampling(tokens=6, temperature=0, top_k=1, seed=0)
    wanted = list(generate(model, prompt, sampling, context=CONTEXT))
    done = run(compiled, made.folder, "sample", "--tokens", 6, given=" ".join(map(str, prompt)))
    assert [*map(int, done.stdout.split())] == wanted
    assert done.stderr == (
        "prompt and sample are 67 tokens, and the model was trained on 64 of context: each sees the 64 before it and "
        "no older ones\n"
    )
    fits = run(compiled, made.folder, "sample", "--tokens", 3, given=" ".join(map(str, prompt)))
    assert (fits.returncode, fits.stderr) == (0, "")


@torch.no_grad()
def cropped_losses(model, window_T, context) -> list[float]:
    """The loss of every target of a window of inputs and their targets, each after `context` tokens or fewer."""
    seen = [window_T[max(0, t - context) : t] for t in range(1, len(window_T))]
    return [
        float(torch.nn.functional.cross_entropy(model(inputs_T[None])[0, -1:], window_T[t + 1, None]))
        for t, inputs_T in enumerate(seen)
    ]


def test_windows_longer_than_the_trained_context_lose_what_they_do_with_cropped_context(compiled, corpus, tmp_path):
    model, context = symbols(JUMP), LENGTH // 3
    made = write_folder(model, corpus, "cropped", tmp_path / "out", num_tokens=96, length=LENGTH, context=context)
    assert (made.length, made.num_tokens) == (context, 96)
    content = torch.frombuffer(bytearray((made.folder / "tokens.bin").read_bytes()), dtype=torch.int16).long()
    done = run(compiled, made.folder, "losses", made.folder / "tokens.bin")
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout.split()[0]) == pytest.approx(made.loss_nats, abs=1e-4)
    (tmp_path / "long.bin").write_bytes(content[: 2 * (LENGTH + 1)].to(torch.int16).numpy().tobytes())
    windows_WT = content[: 2 * (LENGTH + 1)].view(2, LENGTH + 1)
    wanted = [loss for window_T in windows_WT for loss in cropped_losses(model, window_T, context)]
    whole = [loss for window_T in windows_WT for loss in cropped_losses(model, window_T, LENGTH)]
    done = run(compiled, made.folder, "losses", tmp_path / "long.bin", LENGTH)
    assert float(done.stdout.split()[0]) == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)
    assert abs(sum(wanted) - sum(whole)) / len(wanted) > 1e-3  # what it would lose with all of it
    assert "the windows are of 24 tokens, and the model was trained on 8 of context" in done.stderr


def test_sampling_draws_by_its_seed_among_the_likeliest(compiled, corpus, tmp_path):
    model = symbols(JUMP)
    made = write_folder(model, corpus, "drawn", tmp_path / "out", num_tokens=64, length=LENGTH, context=CONTEXT)

    def drawn(seed):
        options = ("--tokens", 1, "--temperature", 1.5, "--top-k", 3, "--seed", seed)
        return run(compiled, made.folder, "sample", *options, 10, 20, 30).stdout

    with torch.no_grad():
        best = model(torch.tensor([[10, 20, 30]]))[0, -1].topk(3).indices.tolist()
    tokens = [drawn(seed) for seed in range(20)]
    assert tokens == [drawn(seed) for seed in range(20)]
    assert {int(token) for token in tokens} <= set(best)
    assert len(set(tokens)) > 1


def test_the_folder_says_what_it_is_and_holds_the_tokenizer_if_any(corpus, tmp_path):
    made = write_folder(
        symbols(SOFTMAX), corpus, "some-model", tmp_path / "out", num_tokens=64, length=LENGTH, context=CONTEXT
    )
    assert {path.name for path in made.folder.iterdir()} == {
        "model.c", "tables.bin", "tokens.bin", "README.md", "Makefile",
    }  # fmt: skip
    readme = (made.folder / "README.md").read_text()
    assert "# some-model, in C" in readme
    assert f"{made.loss_nats:.6f}" in readme
    assert (made.folder / "tokens.bin").stat().st_size == 2 * (made.num_tokens // LENGTH) * (LENGTH + 1)
    assert list(tmp_path.iterdir()) == [made.folder]


def test_a_folder_that_holds_something_and_a_model_without_symbols_are_refused(corpus, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(ValueError, match="is no empty folder"):
        export(Store(tmp_path / "store"), "latest", tmp_path / "full", num_tokens=64, length=LENGTH)
    with pytest.raises(ValueError, match="a 'dense' has no symbols to export"):
        tables_file(tiny_model(DENSE, vocab_size=VOCABULARY), window=LENGTH, context=CONTEXT)
    with pytest.raises(ArtifactError):
        export(Store(tmp_path / "store"), "latest", tmp_path / "new", num_tokens=64, length=LENGTH)
    assert not (tmp_path / "new").exists()


def test_a_gate_and_an_attention_that_the_program_does_not_have_are_refused_by_name(monkeypatch, corpus, tmp_path):
    monkeypatch.setitem(gates.GATES, "best-pair", BestPair())
    with pytest.raises(ValueError, match=r"model\.c has no 'best-pair' gate"):
        tables_file(symbols(SOFTMAX.model_copy(update={"gate": "best-pair"})), window=LENGTH, context=CONTEXT)
    monkeypatch.setitem(ATTENTIONS, KIND, PlusOneSpec)
    other = symbols(JUMP, shape=SHAPE.model_copy(update={"attention": PlusOneSpec()}))
    with pytest.raises(ValueError, match=r"model\.c has no 'softmax-plus-one' attention"):
        write_folder(other, corpus, "other", tmp_path / "other", num_tokens=64, length=LENGTH, context=CONTEXT)
    assert list(tmp_path.iterdir()) == []


HEADER_BYTES = 168


@pytest.fixture(scope="module")
def sound() -> bytes:
    return tables_file(symbols(JUMP), window=LENGTH, context=CONTEXT)


def place_of(content: bytes, name: str) -> int:
    """Where the values of a table begin."""
    return content.index(name.encode().ljust(40, b"\0")) + 56


def with_bytes(content: bytes, at: int, new: bytes, *, sealed=True) -> bytes:
    """With other bytes; `sealed` puts the checksum right, so that something else must find the damage."""
    changed = content[:at] + new + content[at + len(new) :]
    return changed[:24] + struct.pack("<Q", zlib.crc32(changed[32:])) + changed[32:] if sealed else changed


def refusal(compiled, tmp_path, content: bytes) -> str:
    (tmp_path / "tables.bin").write_bytes(content)
    done = run(compiled, tmp_path, "sample", 1, 2, 3)
    assert done.returncode == 2, f"{done.returncode}: {done.stdout} {done.stderr}"
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_sound_file_is_run(compiled, tmp_path, sound):
    (tmp_path / "tables.bin").write_bytes(with_bytes(sound, 0, MAGIC))
    assert run(compiled, tmp_path, "sample", 1, 2, 3).returncode == 0


VALUES = [
    ("layers.0.tier", 5, "<B", 5, "layers.0.tier holds 5 at 5"),
    ("layers.1.code", 2, "<B", len(CATALOGUE), f"layers.1.code holds {len(CATALOGUE)} at 2"),
    ("layers.2.index", 6, "<h", 12, "layers.2.index holds 12 at 3"),
    ("layers.2.index", 0, "<h", -1, "layers.2.index holds -1 at 0"),
    ("layers.0.dense_row", 8, "<i", DENSE_ROWS, "layers.0.dense_row holds 6 at 2"),
    ("layers.0.gate", 3, "<B", 16, "layers.0.gate holds 16 at 3"),
    ("layers.0.rule", 8, "<i", GATES, "layers.0.rule holds 23 at 2"),
    ("layers.1.wire_a", 4, "<i", LITERALS + GATES, "layers.1.wire_a holds 28 at 1"),
    ("layers.1.wire_b", 0, "<i", -2, "layers.1.wire_b holds -2 at 0"),
    ("layers.1.wire_a", 0, "<i", LITERALS, "layers.1.wire_a holds 5 at 0, a cycle"),
    ("layers.1.wire_a", 12, "<i", LITERALS + 3, "layers.1.wire_a holds 8 at 3, a cycle"),
    ("layers.2.wire_b", 16, "<i", LITERALS + 9, "layers.2.wire_b holds 14 at 4, a cycle"),
    ("layers.1.scale", 12, "<f", float("nan"), "layers.1.scale holds a value that is not finite"),
    ("layers.1.coefficient", 8, "<f", float("inf"), "layers.1.coefficient holds a value that is not finite"),
    ("layers.1.literal_offset", 1, "<B", PLACES, "layers.1.literal_offset holds 3 at 1"),
    ("layers.1.member", 3, "<B", 2, "layers.1.member holds 2 at 3"),
    ("layers.2.spline_row", 0, "<i", SPLINES, "layers.2.spline_row holds 3 at 0"),
    ("layers.2.spline_low", 4, "<f", 7.0, "layers.2.spline_low is not below spline_high at 1"),
    ("layers.0.cell_start", 0, "<i", 1, "layers.0.cell_start holds 1 at 0"),
    ("layers.0.cell_start", 8, "<i", 36, "layers.0.cell_start holds"),
    ("layers.0.cell_start", 100, "<i", 36, "layers.0.cell_start holds"),
    ("embedding", 40, "<f", float("nan"), "embedding holds a value that is not finite, or a variance below 0, at 10"),
    ("layers.2.q", 4, "<f", float("inf"), "layers.2.q holds a value that is not finite"),
    ("layers.0.query_var", 0, "<f", -1.0, "layers.0.query_var holds a value that is not finite, or a variance below 0"),
    ("layers.0.threshold", 0, "<f", float("inf"), "layers.0.threshold holds a value that is not finite"),
    ("layers.0.threshold", 8, "<f", float("nan"), "layers.0.threshold holds a value that is not finite"),
    ("layers.1.v_scale", 2, "<H", 0x7E00, "layers.1.v_scale holds a value that is not finite"),
    ("head", 0, "<f", float("-inf"), "head holds a value that is not finite"),
    ("blocks", 0, "<i", -1, "table blocks holds -1 at 0"),
    ("blocks", 0, "<i", 7, "layers.0.dense_u"),
    ("layers.1.o", -56, "<4s", b"lost", "is a table called 'lostrs.1.o' where 'layers.1.o' was wanted"),
    ("layers.1.o", -16, "<I", 1, "table layers.1.o at byte"),
    ("layers.1.o", -8, "<Q", 2**63, "table layers.1.o at byte"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "at", "form", "value", "message"), VALUES)
def test_a_value_that_cannot_be_is_refused_and_named(compiled, tmp_path, sound, table, at, form, value, message):
    damaged = with_bytes(sound, place_of(sound, table) + at, struct.pack(form, value))
    assert message in refusal(compiled, tmp_path, damaged)


def test_another_magic_version_or_header_is_refused(compiled, tmp_path, sound):
    assert "does not begin with LEGIBLE1" in refusal(compiled, tmp_path, b"X" + sound[1:])
    assert "does not begin with LEGIBLE1" in refusal(compiled, tmp_path, b"")
    assert "is of version 1" in refusal(compiled, tmp_path, with_bytes(sound, 8, struct.pack("<I", 1)))
    for at in range(24):
        for value in (0xFFFFFFFF, 0, 3):
            damaged = with_bytes(sound, 32 + 4 * at, struct.pack("<I", value), sealed=False)
            if damaged != sound:
                refusal(compiled, tmp_path, damaged)
    assert "d_model" in refusal(compiled, tmp_path, with_bytes(sound, 32, struct.pack("<I", 0)))
    assert "number 0" in refusal(compiled, tmp_path, with_bytes(sound, 128, struct.pack("<d", float("nan"))))


def test_a_file_cut_short_is_refused_with_the_table_that_it_ends_in(compiled, tmp_path, sound):
    for size in (7, 20, 40, 175, 176, 200, place_of(sound, "layers.1.index") + 5, len(sound) - 1):
        message = refusal(compiled, tmp_path, sound[:size])
        assert ("LEGIBLE1" if size < 8 else f"ends at byte {size} within ") in message
    cut = place_of(sound, "layers.1.index") + 5
    assert "within layers.1.index" in refusal(compiled, tmp_path, sound[:cut])
    assert "bytes where its header says" in refusal(compiled, tmp_path, sound + bytes(8))


def test_a_bit_that_changes_a_weight_into_another_is_refused_too(compiled, tmp_path, sound):
    for at in (place_of(sound, "layers.0.scale") + 1, place_of(sound, "layers.2.v"), 134, len(sound) - 3):
        damaged = with_bytes(sound, at, bytes([sound[at] ^ 1]), sealed=False)
        assert "checksum" in refusal(compiled, tmp_path, damaged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("losses", "no-such-file"), "no-such-file cannot be opened"),
        (("sample", 256), "a token id: got 256, wanted a number from 0 to 255"),
        (("sample", "-3"), "a token id: got -3"),
        (("sample", "--seed", "x", 1), "--seed: got x"),
        (("sample", "--temperature", "nan", 1), "--temperature: got nan"),
        (("sample", "--colour", "red", 1), "--colour is no option"),
        (("sample",), "got no token ids"),
        (("dance",), "usage:"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(compiled, tmp_path, sound, arguments, message):
    (tmp_path / "tables.bin").write_bytes(sound)
    done = run(compiled, tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_tokens_that_are_none_or_no_whole_windows_are_refused(compiled, tmp_path, sound):
    (tmp_path / "tables.bin").write_bytes(sound)
    path = tmp_path / "tokens.bin"
    for content, message in (
        (bytes(2 * LENGTH), "no whole number of windows"),
        (b"", "no whole number of windows"),
        (struct.pack("<H", 256) + bytes(2 * LENGTH), "holds token 256 at 0"),
    ):
        path.write_bytes(content)
        done = run(compiled, tmp_path, "losses", path)
        assert done.returncode == 2
        assert message in done.stderr


def test_the_command_writes_a_folder_from_a_store_and_tells_what_it_cannot_do(compiled, corpus, tmp_path, capsys):
    store, model = Store(tmp_path / "store"), symbols(JUMP)

    def publish(stage, value, **inputs):
        config = {"training": {"context_length": LENGTH}} if inputs else {}
        recipe = Recipe(stage=stage, stage_version=1, config=config, seed=0, inputs=inputs)
        return store.publish(
            recipe=recipe, kind=value.kind, spec=value.spec.model_dump(mode="json"), tensors=value.to_tensors(),
            metrics={}, files={}, circumstance=CIRCUMSTANCE,
        )  # fmt: skip

    def command(id, folder, *options):
        return main(["export", id, "--to", str(tmp_path / folder), "--store", str(store.root), *options])

    corpus_id = publish("prepare-corpus", corpus)
    made = publish("distill-symbols", model, corpus=corpus_id)
    assert command("latest", "new", "--tokens", "96", "--length", "999999") == 0
    out, err = capsys.readouterr()
    assert "nats a token on 96 tokens" in out
    assert err == "--length: got 999999, and the model was trained on 24 tokens of context: the windows are of 24\n"
    assert command("latest", "same", "--tokens", "96") == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "same" / "tokens.bin").read_bytes() == (tmp_path / "new" / "tokens.bin").read_bytes()
    assert made in (tmp_path / "new" / "README.md").read_text()
    folder = tmp_path / "new"
    done = run(compiled, folder, "losses", folder / "tokens.bin")
    assert done.returncode == 0, done.stderr
    for id, folder, options in (
        ("latest", "new", ()), (corpus_id, "other", ()), ("latest", "other", ("--length", "0")),
        ("latest", "other", ("--tokens", "0")),
    ):  # fmt: skip
        assert command(id, folder, *options) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "other").exists()
