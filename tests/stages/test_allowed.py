"""Runs that are started from outside read and write below the named folders alone."""

from pathlib import Path

import pytest

from pipeline.stage import StageConfig
from stages.allowed import ALLOWED, allow, check_allowed
from stages.chain import CHAIN
from stages.import_monet import ImportMonetConfig
from stages.import_peer import ImportPeerConfig
from stages.prepare_corpus import PrepareCorpusConfig
from stages.report import ReportConfig


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOWED, "[]")  # given back after the test
    inside, other, outside = (tmp_path / name for name in ("in", "other", "in-beside"))
    for folder in (inside, other, outside):
        folder.mkdir()
        (folder / "text.txt").write_text("text")
    allow([inside, other])
    return inside, outside


def check(store, *sources):
    check_allowed(str(store), PrepareCorpusConfig(sources=tuple(map(str, sources))))


def test_without_serve_everything_may_be_used(tmp_path, monkeypatch):
    monkeypatch.delenv(ALLOWED, raising=False)
    check("/anywhere", "/etc/passwd")


@pytest.mark.parametrize("store", ["", " ", "\t"])
@pytest.mark.parametrize("folder", ["/", None])
def test_a_store_without_a_name_is_refused_of_everybody(store, folder, monkeypatch):
    monkeypatch.setenv(ALLOWED, "[]")
    allow([Path(folder)]) if folder else monkeypatch.delenv(ALLOWED)
    with pytest.raises(ValueError, match=r"^store: got '.*', wanted: the folder of a store$"):
        check_allowed(store, ReportConfig())


def test_a_path_that_no_file_can_have_is_told(folders):
    inside, _ = folders
    for store, source in ((f"{inside}/a\0b", inside), (inside, f"{inside}/a\0b")):
        with pytest.raises(ValueError, match=r"^(store|sources): got '.*x00b', which no file is called"):
            check(store, source)


def test_what_is_below_is_taken(folders, tmp_path):
    inside, _ = folders
    check(inside, inside, inside / "text.txt", f"poems={inside / 'text.txt'}", tmp_path / "other" / "text.txt")
    check(inside / "new" / "store", "hf:user/name", "hf:name:config@main", f"hf:{inside}")
    check(f"{inside}/../in/store")


def test_a_relative_path_counts_from_where_the_run_is(folders, monkeypatch):
    inside, outside = folders
    monkeypatch.chdir(inside)
    check("store", "text.txt")
    monkeypatch.chdir(outside)
    with pytest.raises(ValueError, match=r"store: got store, which is .*/in-beside/store; served runs take"):
        check("store")


@pytest.mark.parametrize("store", ["{out}", "{out}/store", "{in}/../store", "/", "{in}/link/store", "{in}-beside"])
def test_a_store_elsewhere_is_refused_with_what_was_got_and_what_is_allowed(folders, store):
    inside, outside = folders
    (inside / "link").symlink_to(outside)
    given = store.replace("{in}", str(inside)).replace("{out}", str(outside))
    with pytest.raises(ValueError, match=r"^store: got ") as told:
        check_allowed(given, ReportConfig())
    assert given in str(told.value)
    assert f"what is below {inside} or {inside.parent / 'other'} alone" in str(told.value)
    assert "--allow DIR" in str(told.value)


@pytest.mark.parametrize(
    "source",
    ["{out}", "{out}/text.txt", "poems={out}", "hf:{out}", "hf:{out}:config", "hf:{out}@main", "x=hf:{out}", "~",
     "hf:~/x", "hf:../x", "hf:.", "/etc/passwd", "{in}/link", "{in}/link.txt", "{in}/folder"],
)  # fmt: skip
def test_text_from_elsewhere_is_refused(folders, source, monkeypatch, tmp_path):
    inside, outside = folders
    monkeypatch.chdir(tmp_path)
    (inside / "link").symlink_to(outside)
    (inside / "link.txt").symlink_to(outside / "text.txt")
    (inside / "folder").mkdir()
    (inside / "folder" / "inner.txt").symlink_to(outside / "text.txt")
    given = source.replace("{in}", str(inside)).replace("{out}", str(outside))
    with pytest.raises(ValueError, match=r"^sources: got .*; served runs take what is below"):
        check(inside / "store", inside / "text.txt", given)


def _reading(path: str) -> list[StageConfig]:
    """Every other config that names something to be read, with this path."""
    tokenizer = PrepareCorpusConfig(tokenizer="imported", tokenizer_folder=path)
    return [tokenizer, ImportMonetConfig(source=path), ImportPeerConfig(source=path)]


@pytest.mark.parametrize("path", ["{out}", "{in}/link", "{in}/folder", "{in}/../in-beside", "~", "/etc"])
def test_a_tokenizer_or_a_checkpoint_from_elsewhere_is_refused(folders, path):
    inside, outside = folders
    (inside / "link").symlink_to(outside)
    (inside / "folder").mkdir()
    (inside / "folder" / "config.json").symlink_to(outside / "text.txt")
    for config in _reading(path.replace("{in}", str(inside)).replace("{out}", str(outside))):
        with pytest.raises(ValueError, match=r"^(tokenizer_folder|source): got .*; served runs take what is below"):
            check_allowed(str(inside / "store"), config)


def test_a_tokenizer_or_a_checkpoint_below_is_taken_and_one_of_the_hub_by_the_stage_that_takes_it(folders):
    inside, _ = folders
    for config in [*_reading(str(inside)), ImportMonetConfig(source="hf:owner/name")]:
        check_allowed(str(inside / "store"), config)
    with pytest.raises(ValueError, match=r"^source: got hf:owner/name, which is "):
        check_allowed(str(inside / "store"), ImportPeerConfig(source="hf:owner/name"))


def test_every_setting_that_is_a_path_is_checked():
    """Paths are left out of recipes, and nothing else is."""
    left_out = {
        (step.name, name)
        for step in CHAIN
        for name, field in step.stage.config_type.model_fields.items()
        if field.exclude
    }
    assert left_out == {
        ("prepare-corpus", "sources"), ("prepare-corpus", "tokenizer_folder"),
        ("import-monet", "source"), ("import-peer", "source"),
    }  # fmt: skip
