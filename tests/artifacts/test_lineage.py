"""The recipe is the identity; circumstances are recorded and change nothing."""

import subprocess
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts import ArtifactId, Circumstance, InputRef, Lineage, Recipe, code_of_process, code_state, lineage

PARENT = ArtifactId("prepare-corpus-0123456789ab")


def recipe(**changes) -> Recipe:
    asked = {"stage": "train-monet", "stage_version": 1, "config": {"lr": 0.1}, "seed": 0, "inputs": {}}
    return Recipe.model_validate(asked | changes)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "train-peer"},
        {"stage_version": 2},
        {"config": {"lr": 0.2}},
        {"config": {"lr": 0.1, "new": None}},
        {"seed": 1},
        {"inputs": {"corpus": PARENT}},
        {"inputs": {"corpus": PARENT + "~2"}},
        {"sources_sha256": "0" * 64},
    ],
)
def test_every_part_of_the_recipe_changes_the_id(change):
    assert recipe(**change).id != recipe().id


def test_a_config_equals_what_is_read_back_from_disk():
    class Config(BaseModel):
        model_config = ConfigDict(frozen=True)

        sizes: tuple[int, ...] = (3, 5)

    made = recipe(config=Config())
    assert made.config == {"sizes": [3, 5]}
    assert Recipe.model_validate_json(made.model_dump_json()) == made


def test_lineage_gives_back_its_recipe(circumstance):
    asked = recipe(inputs={"corpus": PARENT})
    made = Lineage(
        **asked.model_dump(exclude={"inputs"}),
        **circumstance.model_dump(),
        inputs={"corpus": InputRef(id=PARENT, sha256="0" * 64)},
        sequence=1,
    )
    assert made.recipe == asked
    assert made.recipe.id == asked.id


@pytest.mark.parametrize("stage", ["", "Train", "train_monet", "-train", "train-", "a/b", "..", "train monet"])
def test_a_stage_must_be_a_slug(stage):
    with pytest.raises(ValidationError):
        recipe(stage=stage)


@pytest.mark.parametrize("id", ["../../etc", "corpus", "prepare-corpus-0123", str(PARENT) + "~0", str(PARENT) + "\n"])
def test_an_input_must_be_an_artifact_id(id):
    with pytest.raises(ValidationError):
        recipe(inputs={"corpus": id})


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError):
        recipe().seed = 2


def test_a_time_outside_utc_is_refused(circumstance):
    with pytest.raises(ValidationError, match="no time in UTC"):
        Circumstance.model_validate(circumstance.model_dump() | {"created": "2026-01-31T12:00:00+02:00"})


def test_now_describes_this_process():
    now = Circumstance.now(device="cpu", seconds=2.0)
    assert (now.commit, now.dirty) == code_of_process()
    assert now.seconds == 2.0


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own that holds a copy of the module, as far as `code_state` can tell."""
    root = tmp_path / "checkout"
    (root / "artifacts").mkdir(parents=True)
    (root / "artifacts" / "lineage.py").write_text("first")
    monkeypatch.setattr(lineage, "__file__", str(root / "artifacts" / "lineage.py"))
    git(root, "init", "--quiet")
    return root


def git(root: Path, *args: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_process_stays_with_the_code_that_it_loaded(checkout, monkeypatch):
    monkeypatch.setattr(lineage, "code_of_process", cache(lineage.code_of_process.__wrapped__))
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    assert lineage.code_of_process() == (commit, False)
    (checkout / "artifacts" / "lineage.py").write_text("second")
    git(checkout, "commit", "--quiet", "--all", "--message", "second")
    now = Circumstance.now(device="cpu", seconds=0.0)
    assert (now.commit, now.dirty) == (commit, False)
    assert code_state() == (git(checkout, "rev-parse", "HEAD"), False)


def test_code_state_is_of_the_checkout_that_holds_the_code(checkout, tmp_path, monkeypatch):
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.chdir(tmp_path)  # outside
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as in a hook of another repository
    assert code_state() == (commit, False)
    (checkout / "artifacts" / "new.py").write_text("untracked")
    assert code_state() == (commit, True)


def test_code_that_a_repository_does_not_track_is_of_unknown_state(checkout):
    assert code_state() == ("unknown", True)


def test_outside_a_checkout_the_state_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "__file__", str(tmp_path / "artifacts" / "lineage.py"))
    assert code_state() == ("unknown", True)
    monkeypatch.setenv("PATH", "")  # no git at all
    assert code_state() == ("unknown", True)
