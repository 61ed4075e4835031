"""Commands on terminals without Unicode, with names too long and seeds too large: one sentence, or every line."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from artifacts import ArtifactError, Store, as_command, for_stdout, show_every_text
from artifacts.__main__ import main as look
from pipeline.capacity.__main__ import main as capacity
from pipeline.compare import main as side_by_side
from pipeline.compare_arms import main as compare
from pipeline.generate.__main__ import main as generate
from pipeline.running.progress import print_results
from pipeline.seeds import main as seeds
from pipeline.stage import Made
from pipeline.symbolic.__main__ import main as symbolic
from stages.__main__ import main as run
from stages.command import read_stage
from stages.errors import exit_code
from stages.remeasure import main as remeasure
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


SMALL = ("--memory", "2GB", "--width", "64", "--bandwidth", "1GB/s")
EXPORT = ("export", "latest", "--tokens", "64", "--to")


def full() -> io.TextIOWrapper:
    """A stdout on a full disk, without a buffer as where PYTHONUNBUFFERED is set: even writing nothing fails."""
    return io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (generate, ("latest", "--prompt", "x", "--tokens", "1")),
        (symbolic, ("show", "latest")),
        (symbolic, ("show", "latest", *EXPERT)),
        (symbolic, ("show", "latest", *EXPERT, "--json")),
        (symbolic, EXPORT),
        (seeds, ()),
        (seeds, ("--stage", "distill-symbols")),
        (side_by_side, ("latest", "latest")),
        (remeasure, ()),
        (remeasure, ("--json",)),
        (capacity, SMALL),
    ],
)
def test_every_command_tells_a_full_stdout_and_ends_well_where_its_reader_left(store, main, words, tmp_path, capsys):
    words = [*words, *([] if main is capacity else ["--store", str(store.root)])]
    with full() as stream, redirect_stdout(stream):
        assert exit_code(lambda: main(with_folder(words, tmp_path / "full"))) == 2
    err = capsys.readouterr().err
    assert err.startswith("cannot write to stdout: No space left on device;")
    assert len(err.splitlines()) == 1
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, redirect_stdout(stream):
        assert exit_code(lambda: main(with_folder(words, tmp_path / "pipe"))) == 0
    assert capsys.readouterr().err == ""


def with_folder(words: list[str], folder: Path) -> list[str]:
    """The words, with the folder after `--to`."""
    return [part for word in words for part in ((word, str(folder)) if word == "--to" else (word,))]


def test_the_summary_of_a_run_is_told_to_be_lost_where_stdout_has_no_buffer(store, capsys):
    with full() as stream, redirect_stdout(stream):
        assert exit_code(lambda: print_results([], store, 1.0) or 0) == 2
    assert capsys.readouterr().err.startswith("cannot write to stdout: No space left on device;")


def code_of(main: Callable[[list[str]], int], words: list[str]) -> int | str | None:
    try:
        return exit_code(lambda: main(words))
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize("main", [look, generate, symbolic, seeds, compare, side_by_side, capacity, remeasure])
def test_a_mistake_of_100_000_characters_is_told_in_few(main, capsys):
    for words in (["latest", "x" * 100_000], ["--store", ".", "--" + "x" * 100_000], ["x" * 100_000, "--width", "1"]):
        assert code_of(main, words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert 0 < len(err) < 3_000


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (look, ("ls",)),
        (generate, ("latest", "--prompt", "x")),
        (symbolic, ("show", "latest")),
        (seeds, ()),
        (compare, ("latest",)),
        (side_by_side, ("latest", "latest")),
        (remeasure, ()),
        (run, ("prepare-corpus",)),
    ],
)
def test_a_store_without_a_name_is_not_the_working_directory(main, words, capsys):
    assert code_of(main, [*words, "--store", ""]) == 2
    assert "argument --store: got '', wanted: the folder of a store" in capsys.readouterr().err


def test_a_store_below_a_working_directory_that_is_gone_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert exit_code(lambda: run(["train-dense"])) == 2
    assert "got 'store', and the working directory that it lies in is gone" in capsys.readouterr().err


@pytest.mark.parametrize("main", [seeds, remeasure])
def test_a_store_that_is_not_there_has_no_empty_table(main, tmp_path, capsys):
    (tmp_path / "file").touch()
    for name in ("typo", "file"):
        with pytest.raises(ArtifactError, match=rf"^there is no store at .*{name}; name its folder with --store$"):
            main(["--store", str(tmp_path / name)])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("owner", "call"), [(Path, "lstat"), (os, "scandir")])
def test_a_store_that_others_may_not_look_into_is_told_in_one_sentence(store, owner, call, monkeypatch, capsys):
    def refuse(*_args: object, **_settings: object) -> None:  # whoever runs as root may look into all folders
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(store.root))

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, refuse)
        assert exit_code(lambda: seeds(["--store", str(store.root)])) == 2
    err = capsys.readouterr().err
    assert f"{store.root}" in err
    assert "cannot be looked into (Permission denied); name another one, or see who may" in err


def test_ctrl_c_ends_a_command_with_a_word(capsys):
    def main() -> int:
        raise KeyboardInterrupt

    assert as_command(main)() == 130
    assert capsys.readouterr().err == "interrupted\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_a_model_wrote_moves_no_cursor_of_a_terminal_and_is_itself_in_a_file():
    written = "\tdef f():\n\x1b]0;own\x07\u202e"
    with redirect_stdout(Terminal()):
        assert for_stdout(written) == "\tdef f():\n\\u001b]0;own\\u0007\\u202e"
    with redirect_stdout(io.StringIO()):
        assert for_stdout(written) == written
