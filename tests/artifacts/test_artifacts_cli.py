"""python -m artifacts: what it prints, and with which code it ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(store, capsys):
    """run("ls", ...) -> (exit code, stdout, stderr) on the test's store."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--store", str(store.root), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def ids(publish) -> list[str]:
    corpus = publish()
    first = publish("train-monet", {"lr": 0.1, "router": {"k": 3}}, kind="monet", corpus=corpus)
    second = publish(
        "train-monet",
        {"lr": 0.2, "router": {"k": 3}},
        kind="monet",
        fill=2.0,
        metrics={"held_out_loss_nats": 2.25, "seconds": 7},
        corpus=corpus,
    )
    return [corpus, first, second]


def test_ls_lists_oldest_first(run, ids):
    code, out, err = run("ls")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ids
    assert "held_out_loss_nats 2.25" in out


@pytest.mark.parametrize(
    ("columns", "has"),
    [(200, (True, True, True)), (80, (True, True, False)), (65, (True, False, False)), (40, (False, False, False))],
)
def test_ls_fits_the_terminal_and_leaves_out_time_then_bytes_then_kind(run, ids, monkeypatch, columns, has):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    lines = run("ls")[1].splitlines()
    assert [line.split()[0] for line in lines] == ids
    assert all("held_out_loss_nats 2." in line for line in lines)
    for line in lines:
        assert (" monet " in line or " corpus " in line, " B " in line, "+00:00" in line) == has
    assert columns == 40 or max(map(len, lines)) <= columns


def test_ls_json_is_a_list_of_manifests_oldest_first(run, ids, store):
    code, out, _ = run("ls", "--json", "--kind", "monet")
    listed = json.loads(out)
    assert code == 0
    assert [entry["id"] for entry in listed] == ids[1:]
    assert {"id", "kind", "stage", "metrics", "lineage", "bytes", "created", "files"} <= listed[0].keys()
    folder = store.root / ids[1]
    assert listed[0]["bytes"] == sum(p.stat().st_size for p in folder.iterdir() if p.name != "manifest.json")
    assert listed[0]["lineage"]["inputs"]["corpus"]["id"] == ids[0]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_ls_of_a_kind_that_the_store_has_nothing_of_names_those_that_it_has(run, ids, form):
    code, out, err = run("ls", "--kind", "monnet", *form)
    assert (code, out) == (2, "")
    assert err == "the store holds no artifact of kind 'monnet'; it has: corpus, monet\n"


def test_ls_of_a_kind_in_an_empty_store_is_well(run, store):
    store.root.mkdir(exist_ok=True)
    assert run("ls", "--kind", "monet") == (0, f"{store.root} holds no artifact yet.\n", "")


def test_ls_names_a_damaged_artifact_and_goes_on(run, ids, store):
    (store.root / ids[0] / "manifest.json").write_text("{")
    code, out, err = run("ls")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ids[1:]
    assert err.startswith(f"damaged: {ids[0]}: manifest.json")


def test_show_tells_what_an_artifact_is(run, ids):
    code, out, _ = run("show", "latest")
    assert code == 0
    for told in (
        ids[2],
        "monet",
        f"from corpus          {ids[0]}",
        "c0ffee",
        '"lr": 0.2',
        "weights.safetensors",
    ):
        assert told in out
    assert json.loads(run("show", ids[1], "--json")[1])["id"] == ids[1]


def test_tree_shows_the_store_or_a_family(run, ids):
    assert all(id in run("tree")[1] for id in ids)
    code, out, _ = run("tree", ids[1])
    assert code == 0
    assert f"└─ {ids[1]}" in out
    assert ids[2] not in out
    assert [entry["id"] for entry in json.loads(run("tree", ids[1], "--json")[1])] == ids[:2]


def test_diff_goes_field_by_field(run, ids):
    code, out, _ = run("diff", ids[1], ids[2])
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert "config.lr 0.1 -> 0.2" in lines
    assert "held_out_loss_nats 2.5 2.25 -0.25" in lines
    assert "seconds (absent) 7" in lines
    assert "config.router" not in out
    found = json.loads(run("diff", ids[1], ids[2], "--json")[1])
    assert found["recipe"] == {"config.lr": [0.1, 0.2]}
    assert found["files"].keys() == {"weights.safetensors"}


def test_diff_is_silent_about_what_is_equal(run, publish):
    metrics = {"held_out_loss_nats": 2.5, "num_parameters": 12}
    same, other = (
        publish("train-monet", {"lr": lr}, kind="monet", metrics={**metrics, "train_loss_nats": lr})
        for lr in (0.1, 0.2)
    )
    code, out, err = run("diff", same, other)
    assert (code, err) == (0, "")
    assert out.split("\n\n")[2:] == [
        "recipe\n  config.lr  0.1  ->  0.2",
        "files\n  weights.safetensors",  # it holds the recipe
        "metrics: a, b, change\n  train_loss_nats  0.1  0.2  +0.1\n",
    ]
    assert run("diff", same, same)[1] == f"a  {same}\nb  {same}\n\na and b are the same artifact.\n"


def test_diff_says_why_first(run, publish):
    corpora = [publish(config={"max_bytes": size}) for size in (1000, 2000)]
    first, second = (publish("train-monet", kind="monet", corpus=corpus) for corpus in corpora)
    code, out, err = run("diff", first, second)
    assert (code, err) == (0, "")
    cause = f"The first cause is corpus ({corpora[0]} -> {corpora[1]}), asked for with another config"
    assert f"b was asked for with another input (corpus). {cause} (max_bytes 1000 -> 2000)." in out
    assert f"  {corpora[0]}  ->  {corpora[1]}  config.max_bytes 1000 -> 2000\n" in out
    why = json.loads(run("diff", first, second, "--json")[1])["why"]
    assert why["text"].endswith("(max_bytes 1000 -> 2000).")
    assert why["chain"][0] == {
        "a": corpora[0],
        "b": corpora[1],
        "path": ["corpus"],
        "because": "recipe",
        "differs": {"config.max_bytes": [1000, 2000]},
        "inputs": [],
    }


def test_diff_and_tree_go_on_where_an_ancestor_is_gone(run, ids, store):
    (store.root / ids[0] / "manifest.json").unlink()
    assert run("diff", ids[1], ids[2])[0] == 0
    code, out, err = run("tree", ids[1])
    assert code == 0
    assert out.startswith(ids[1])
    assert err == f"damaged: {ids[0]}: manifest.json cannot be read (No such file or directory)\n"


def test_diff_of_an_artifact_with_itself_is_empty(run, ids):
    found = json.loads(run("diff", ids[1], ids[1], "--json")[1])
    assert (found["recipe"], found["circumstance"], found["files"]) == ({}, {}, {})


def test_card_prints_the_card_and_nothing_else(run, ids):
    code, out, err = run("card", ids[1])
    assert (code, err) == (0, "")
    assert out.startswith("---\nlicense: mit\n")
    assert out.endswith("</details>\n")
    assert json.loads(run("card", ids[1], "--json")[1]) == {"id": ids[1], "card": out}


def test_a_card_whose_ancestor_is_gone_is_printed_all_the_same(run, ids, store):
    shutil.rmtree(store.root / ids[0])
    code, out, err = run("card", ids[1])
    assert code == 0
    assert f"> * `{ids[0]}`: `it is not in the store`" in out
    assert err == f"damaged: {ids[0]}: it is not in the store\n"


def test_a_damaged_manifest_has_no_card(run, ids, store):
    (store.root / ids[1] / "manifest.json").write_text("{")
    code, out, err = run("card", ids[1])
    assert (code, out) == (2, "")
    assert err.startswith(f"{ids[1]}: manifest.json is damaged")
    assert err.count("\n") == 1


def test_verify_counts_and_ends_well(run, ids):
    assert run("verify") == (0, "3 checked, none damaged.\n", "")


def test_verify_names_each_damage_and_ends_with_one(run, ids, store):
    (store.root / ids[1] / "tokenizer.json").unlink()
    (store.root / ids[2] / "weights.safetensors").write_bytes(b"")
    code, out, err = run("verify")
    assert code == 1
    assert out == "3 checked, 2 damaged.\n"
    assert f"damaged: {ids[1]}: tokenizer.json is missing" in err
    assert f"damaged: {ids[2]}: weights.safetensors is damaged" in err
    code, out, _ = run("verify", "--json")
    assert code == 1
    assert {damage["id"] for damage in json.loads(out)["damaged"]} == set(ids[1:])


def test_rm_removes_leaves_only(run, ids, store):
    code, out, err = run("rm", ids[0])
    assert (code, out) == (2, "")
    assert f"it is an input of {ids[1]}, {ids[2]}" in err
    assert run("rm", ids[2])[0] == 0
    assert store.ids() == sorted(ids[:2])


def test_gc_removes_what_killed_runs_left(run, ids, store):
    assert run("gc") == (0, "Nothing to remove.\n", "")
    (store.root / ".partial-4194305-00000000").mkdir()
    assert json.loads(run("gc", "--json")[1]) == {"removed": [".partial-4194305-00000000"]}


@pytest.mark.parametrize(
    "command", [["show", "nope"], ["card", "nope"], ["tree", "nope"], ["diff", "latest", "nope"], ["rm", "nope"]]
)
def test_an_unknown_id_is_one_sentence_and_code_two(run, ids, command):
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert err.startswith("no artifact 'nope' in ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [("ls",), ("ls", "--json"), ("tree",), ("gc",)])
@pytest.mark.parametrize("what", ["nothing", "a file", "a pipe", "a link to itself"])
def test_a_store_that_is_not_there_is_an_error(run, store, words, what):
    make = {"a file": Path.touch, "a pipe": os.mkfifo, "a link to itself": lambda path: path.symlink_to(path)}
    make.get(what, lambda path: None)(store.root)
    assert run(*words) == (2, "", f"there is no store at {store.root}; name its folder with --store\n")
    assert what != "nothing" or not store.root.exists()


def test_a_store_that_is_empty_is_none(run, store):
    store.root.mkdir()
    assert run("ls") == (0, f"{store.root} holds no artifact yet.\n", "")
    assert run("ls", "--json") == (0, "[]\n", "")
    assert run("tree") == (0, "", "")


@pytest.mark.parametrize("what", ["a link to itself", "a link to nothing", "a file", "a pipe"])
def test_what_has_an_artifacts_name_and_is_no_folder_is_damage_and_stops_nothing(run, ids, store, what):
    odd = store.root / "train-monet-0123456789ab"
    if what == "a file":
        odd.touch()
    elif what == "a pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to(odd.name if what == "a link to itself" else "nothing")
    code, out, err = run("ls")
    assert (code, len(out.splitlines())) == (0, len(ids))
    assert err.startswith(f"damaged: {odd.name}: manifest.json cannot be read (")
    code, out, err = run("verify")
    assert (code, out) == (1, "4 checked, 1 damaged.\n")
    assert err.count("\n") == 1
    assert run("show", odd.name)[0] == 2
    assert run("rm", ids[2]) == (0, f"{ids[2]} removed.\n", "")


def test_to_verify_a_store_that_is_not_there_is_an_error(run, store):
    assert run("verify") == (2, "", f"there is no store at {store.root} to verify; name its folder with --store\n")


def test_an_unknown_command_ends_with_two(run):
    with pytest.raises(SystemExit) as ended:
        run("list")
    assert ended.value.code == 2


def test_options_may_stand_after_the_command_and_a_closed_pipe_is_no_error(ids, store):
    command = [sys.executable, "-m", "artifacts", "ls", "--json", "--store", str(store.root)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
