"""Settings taken from an artifact: the same id without overrides, a sentence where they do not fit."""

import pytest

from artifacts import Circumstance, Store
from kernels.errors import Mistake
from pipeline.stage import recipe_of
from stages.chain import step_of
from stages.command import read_stage
from stages.inputs import inputs_of
from stages.plan import Plan
from stages.presets import PRESETS
from tests.circumstance import CIRCUMSTANCE


def publish(
    store: Store, stage: str, kind: str, config, inputs=(), *, seed=0, circumstance: Circumstance = CIRCUMSTANCE
):
    recipe = recipe_of(step_of(stage).stage, config, dict(inputs), seed)
    return store.publish(
        recipe=recipe, kind=kind, spec={}, tensors={}, metrics={}, files={}, circumstance=circumstance
    )  # fmt: skip


def asked(store: Store, *words: str):
    """The id of what the command would make."""
    command = read_stage([*words, "--store", str(store.root)])

    def never(step, inputs):
        raise AssertionError(f"{step.name} need not be made")

    inputs = inputs_of(command.step, command.given, store, never)
    return recipe_of(command.step.stage, command.config, inputs, command.seed).id


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("like") / "store")


@pytest.fixture(scope="module")
def made(store):
    """Two corpora, and a Monet of the older one with settings, an input and a seed that nothing defaults to."""
    corpora = [
        publish(store, "prepare-corpus", "corpus", Plan().prepare_corpus.model_copy(update={"vocab_size": size}))
        for size in (300, 400)
    ]
    config = PRESETS["small"]().train_monet
    config = config.model_copy(update={"training": config.training.model_copy(update={"steps": 7, "warmup_steps": 3})})
    monet = publish(store, "train-monet", "monet", config, {"corpus": corpora[0]}, seed=5)
    return {"old": corpora[0], "new": corpora[1], "monet": monet, "config": config}


def test_without_overrides_it_is_the_same_artifact(store, made):
    for name in (made["monet"], made["monet"][:14], "latest"):
        assert asked(store, "train-monet", "--like", name) == made["monet"]
    assert asked(store, "prepare-corpus", "--like", made["old"]) == made["old"]
    assert asked(store, "train-monet") != made["monet"]


def test_overrides_go_on_top_and_change_nothing_else(store, made):
    stage, config, inputs = step_of("train-monet").stage, made["config"], {"corpus": made["old"]}
    assert asked(store, "train-monet", "--like", "latest", "--seed", "6") == recipe_of(stage, config, inputs, 6).id
    assert asked(store, "train-monet", "--like", "latest", "--seed", "0") == recipe_of(stage, config, inputs, 0).id
    other = {"corpus": made["new"]}
    assert (
        asked(store, "train-monet", "--like", "latest", "--corpus", "latest") == recipe_of(stage, config, other, 5).id
    )
    longer = config.model_copy(update={"training": config.training.model_copy(update={"steps": 9})})
    words = ("--like", "latest", "--config.training.steps", "9")
    assert asked(store, "train-monet", *words) == recipe_of(stage, longer, inputs, 5).id
    half = config.model_copy(update={"training": config.training.model_copy(update={"steps": 14, "warmup_steps": 6})})
    assert asked(store, "train-monet", "--like", "latest", "--scale", "2") == recipe_of(stage, half, inputs, 5).id


def test_an_artifact_of_another_stage_is_refused_by_name(store, made):
    with pytest.raises(Mistake) as told:
        asked(store, "train-dense", "--like", made["monet"])
    assert str(told.value) == (
        f"--like: {made['monet']} was made by train-monet, whose settings are no settings of train-dense; name an "
        "artifact of train-dense, or run train-monet"
    )
    with pytest.raises(Mistake, match="was made by train-monet"):
        asked(store, "train-dense", "--like", "latest")  # of a stage that has made nothing


def test_like_and_preset_contradict_each_other(store, made):
    with pytest.raises(Mistake, match="--like and --preset both say where settings start from"):
        asked(store, "train-monet", "--like", "latest", "--preset", "tiny")


def test_text_of_ones_own_must_be_named_again(tmp_path):
    """Lineage has its digest alone."""
    store = Store(tmp_path / "store")
    (tmp_path / "a.txt").write_text("a text of one's own " * 50)
    config = Plan().with_sources((str(tmp_path / "a.txt"),)).prepare_corpus
    corpus = publish(store, "prepare-corpus", "corpus", config.model_copy(update={"vocab_size": 300}))
    with pytest.raises(Mistake, match=rf"{corpus} was made of other text than the default corpus.*--config\.sources"):
        asked(store, "prepare-corpus", "--like", corpus)
    words = ("--like", corpus, "--config.sources", str(tmp_path / "a.txt"))
    assert asked(store, "prepare-corpus", *words) == corpus


def test_settings_of_an_earlier_version_that_are_none_any_more_are_told(tmp_path):
    store = Store(tmp_path / "store")
    (tmp_path / "a.txt").write_text("a text of one's own " * 50)
    text = publish(store, "prepare-corpus", "corpus", Plan().with_sources((str(tmp_path / "a.txt"),)).prepare_corpus)
    earlier = recipe_of(step_of("train-dense").stage, Plan().train_dense, {"corpus": text}, 0)
    earlier = earlier.model_copy(update={"stage_version": 1, "config": {**earlier.config, "dropout": 0.5}})
    id = store.publish(
        recipe=earlier, kind="dense", spec={}, tensors={}, metrics={}, files={}, circumstance=CIRCUMSTANCE
    )  # fmt: skip
    with pytest.raises(Mistake, match=r"was made by version 1 of train-dense, this is version 2.*dropout: got 0.5"):
        asked(store, "train-dense", "--like", id)
