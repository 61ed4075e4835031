"""What a foreign manifest says reaches a terminal as characters that can be seen; a full stdout is told as that."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts.__main__ import main
from artifacts.terminal import MOST_CHARACTERS, on_one_line, printable, told, writing_to_stdout
from tests.foreign import reseal

ROOT = Path(__file__).parents[2]
EVIL = "\x1b[31m\x07\r\n\t\x7f\x9b31m\u202e\u2066\u200b\u2028\ufeff\U000e0041"
SEEN = "\\u001b[31m\\u0007\\u000d\n\\u0009\\u007f\\u009b31m\\u202e\\u2066\\u200b\\u2028\\ufeff\\udb40\\udc41"


def test_all_that_is_not_seen_is_escaped_as_json_does():
    assert printable(EVIL) == SEEN
    assert on_one_line(EVIL) == SEEN.replace("\n", "\\n")
    assert json.loads(f'"{on_one_line(EVIL)}"') == EVIL
    assert printable("\ud800") == "\\ud800"
    assert printable("Ä ü 中 └─ · 🎉") == "Ä ü 中 └─ · 🎉"


def test_a_message_keeps_both_its_ends():
    said = told(ValueError(f"got {'x' * 100_000}, wanted: less"))
    assert said.startswith("got xxx")
    assert said.endswith("xxx, wanted: less")
    assert "... (98,018 characters) ..." in said
    assert MOST_CHARACTERS < len(said) < MOST_CHARACTERS + 40
    assert told("x" * MOST_CHARACTERS) == "x" * MOST_CHARACTERS


def spoil(record):
    """Every text in it that is free is what a terminal obeys."""
    lineage = record["lineage"]
    for name in ("commit", "torch", "python", "device"):
        lineage[name] = EVIL + name
    lineage["config"] = {EVIL: EVIL, "lr": [EVIL], "long": EVIL * 100}
    lineage["inputs"] = {EVIL + role: ref for role, ref in lineage["inputs"].items()}
    record["spec"] = {EVIL: EVIL}
    record["metrics"] = {EVIL: 1.5, "held_out_loss_nats": 2.5}


@pytest.fixture
def foreign(store, publish):
    """A corpus and two models made from it, all but the last as another writer left them."""
    corpus = publish()
    models = [publish("train-monet", {"lr": lr}, kind="monet", corpus=corpus) for lr in (0.1, 0.2)]
    for id in (corpus, models[0]):
        reseal(store.root / id, spoil)
    return [corpus, *models]


COMMANDS = (
    ["ls"], ["tree"], ["verify"], ["show", "1"], ["show", "0"], ["card", "1"], ["tree", "1"], ["diff", "1", "2"],
    ["diff", "0", "1"],
)  # fmt: skip


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_control_character_of_a_foreign_manifest_reaches_the_terminal(command, as_json, foreign, store, capsys):
    words = [foreign[int(word)] if word.isdigit() else word for word in command]
    code = main(["--store", str(store.root), *["--json"] * as_json, *words])
    said = capsys.readouterr()
    assert code == (1 if "verify" in command else 0)
    assert [one for one in said.out + said.err if not one.isprintable() and one != "\n"] == []
    if command[0] in ("show", "card", "diff"):
        assert "\\u202e" in said.out
    if as_json:
        json.loads(said.out)


def test_a_line_break_of_a_foreign_manifest_makes_no_line(foreign, store, capsys):
    for command in (["ls"], ["tree"], ["tree", foreign[0]]):
        main(["--store", str(store.root), *command])
        assert all(re.match(r"(└─ |├─ )?(prepare-corpus|train-monet)-", line) for line in _lines(capsys))
    main(["--store", str(store.root), "show", foreign[1]])
    assert not any(line.startswith(("\\u0009", "31m")) for line in _lines(capsys))


def _lines(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("created", ["2026-01-31\x1b12:00:00+00:00", "2026-01-31\n12:00:00+00:00"])
def test_a_time_holds_nothing_but_a_time(created, foreign, store, capsys):
    reseal(store.root / foreign[2], lambda record: record["lineage"].update(created=created))
    assert main(["--store", str(store.root), "show", foreign[2]]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is no time in UTC" in said


def test_an_error_shows_no_control_character_and_is_short(foreign, store, capsys):
    reseal(store.root / foreign[2], lambda record: record.update({EVIL + "x" * 100_000: 1}))
    assert main(["--store", str(store.root), "show", foreign[2]]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{foreign[2]}: manifest.json is no manifest: \\u001b[31m")
    assert "Extra inputs are not permitted" in said
    assert len(said) < MOST_CHARACTERS + 50
    assert [one for one in said[:-1] if not one.isprintable()] == []


@pytest.mark.parametrize("command", [["ls"], ["show", "latest", "--json"]])
def test_a_full_stdout_is_told_as_that(command, foreign, store):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "artifacts", "--store", str(store.root), *command],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    wanted = "cannot write to stdout: No space left on device; only what was to be printed is lost, see where it goes\n"
    assert (done.returncode, done.stderr) == (2, wanted)


def test_without_a_stdout_nothing_is_printed_and_that_is_no_error(foreign, store):
    command = f"exec {sys.executable} -m artifacts --store {store.root} ls >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_whoever_prints_to_stdout_what_is_not_seen_is_escaped_unless_it_is_to_be_as_it_is(capsys):
    with writing_to_stdout():
        sys.stdout.write(f"{EVIL}ä\n")
    assert capsys.readouterr().out == SEEN + "ä\n"
    with writing_to_stdout(as_it_is=True):
        sys.stdout.write(EVIL)
    assert capsys.readouterr().out == EVIL


def test_a_long_text_is_made_printable_in_no_time():
    text = "x" * 50_000_000
    start = time.perf_counter()
    assert printable(text) is text
    assert time.perf_counter() - start < 5  # a character at a time takes longer
