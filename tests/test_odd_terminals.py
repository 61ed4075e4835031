"""Commands on terminals without Unicode, with names too long and seeds too large: one sentence, or every line."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from artifacts import ArtifactError, Store, show_every_text
from artifacts.__main__ import main as look
from pipeline.generate.__main__ import main as generate
from pipeline.running.progress import print_results
from pipeline.seeds import main as seeds
from pipeline.stage import Made
from pipeline.symbolic.__main__ import main as symbolic
from stages.__main__ import main as run
from stages.command import read_stage
from stages.errors import exit_code
from tests.tiny_symbols import LOGIC, symbols_model, symbols_store

ROOT = Path(__file__).resolve().parents[1]
LONG = "a" * 300
EXPERT = ("--layer", "0", "--expert", str(LOGIC))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return symbols_store(tmp_path_factory.mktemp("symbols") / "store", symbols_model())


def in_ascii(action: Callable[[], int]) -> tuple[int, bytes]:
    """What it returns, and what it writes to a stdout that takes ASCII alone."""
    stream = io.TextIOWrapper(written := io.BytesIO(), encoding="ascii")
    with redirect_stdout(stream):
        code = action()
    stream.flush()
    return code, written.getvalue()


@pytest.mark.parametrize(
    ("main", "words", "shown"),
    [
        (look, ("tree", "latest"), rb"\u2514\u2500 distill-symbols-"),
        (look, ("show", "latest"), b"distill-symbols, version 3"),
        (symbolic, ("show", "latest", *EXPERT), b"letters & ~token[-1]"),
        (generate, ("latest", "--prompt", "\u0394", "--tokens", "1"), rb"\u0394"),
    ],
)
def test_what_a_terminal_cannot_show_is_escaped_and_the_rest_printed(store, main, words, shown):
    code, out = in_ascii(lambda: main([*words, "--store", str(store.root)]))
    assert code == 0
    assert shown in out


def test_a_process_in_an_ascii_terminal_ends_well(store):
    done = subprocess.run(
        [sys.executable, "-m", "artifacts", "tree", "--store", str(store.root)], cwd=ROOT, capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u2514\u2500 distill-symbols-" in done.stdout


def test_the_summary_after_a_run_is_printed_in_ascii_too(store):
    made = [Made(id=manifest.id, reused=False, seconds=1.0) for manifest in store.manifests()]

    def told() -> int:
        print_results(made, store, 3.0)
        sys.stdout.write("nats \u0394 \udcff")
        return 0

    code, out = in_ascii(lambda: exit_code(told))
    assert code == 0
    assert all(one.id.encode() in out for one in made)
    assert rb"nats \u0394 \udcff" in out


def test_a_stream_that_takes_every_text_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", plain := io.StringIO())
    show_every_text()
    sys.stdout.write("\u0394")
    assert plain.getvalue() == "\u0394"


def test_a_byte_that_is_no_text_in_a_prompt_is_told(store, capsys):
    assert generate(["latest", "--prompt", "ab\udcff", "--store", str(store.root)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "--prompt: got '\\udcff' as character 3, a lone surrogate or a byte that is no UTF-8; wanted Unicode text\n"
    )


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (look, ("ls",)),
        (look, ("verify",)),
        (seeds, ()),
        (generate, ("latest", "--prompt", "x")),
        (symbolic, ("show", "latest")),
        (run, ("train-dense",)),
    ],
)
def test_a_store_whose_name_is_too_long_is_told_in_one_sentence(main, words, capsys):
    assert exit_code(lambda: main([*words, "--store", LONG])) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("the store's name is too long for this system: 3")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("root", [Path(LONG), Path("/tmp") / "/".join(["b" * 99] * 41), Path("no\0name")])
def test_a_store_that_no_file_could_lie_in_is_refused_at_once(root):
    with pytest.raises(ArtifactError, match=r"too long for this system|no folder can be called"):
        Store(root)


@pytest.mark.parametrize("command", [("export", "latest"), ("kan", "latest", *EXPERT)])
@pytest.mark.parametrize("folder", [LONG, "/proc/made/here"])
def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(store, command, folder, capsys):
    assert symbolic([*command, "--to", folder, "--store", str(store.root)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"--to: {folder} cannot be written (")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**40])
def test_a_seed_that_no_generator_takes_is_refused_by_every_command(store, seed, capsys):
    with pytest.raises(ValueError, match=r"^--seed: got -?\d+, wanted a whole number from -2\*\*63 to 2\*\*64 - 1$"):
        read_stage(["train-dense", f"--seed={seed}"])
    assert generate(["latest", "--prompt", "x", f"--seed={seed}", "--store", str(store.root)]) == 2
    assert capsys.readouterr().err == f"--seed: got {seed}, wanted a whole number from -2**63 to 2**64 - 1\n"


@pytest.mark.parametrize("seed", [2**64 - 1, -(2**63), 0])
def test_the_least_and_the_largest_seed_are_taken(seed):
    assert read_stage(["train-dense", f"--seed={seed}"]).seed == seed
