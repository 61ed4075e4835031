"""run_stage: makes once, then finds; refuses what does not fit; and a run is pinned by its seed."""

from typing import Annotated

import pytest
import torch
from pydantic import Field, ValidationError

from artifacts import ArtifactError, Circumstance
from pipeline.corpus.splits import Corpus
from pipeline.models import LanguageModel, ModelSpec
from pipeline.models.transformer import TransformerSpec
from pipeline.run import Run, current_run, running, steps
from pipeline.stage import Measured, Output, StageConfig, chosen_device, recipe_of, run_stage, stage
from tests.tiny import DENSE, SHAPE, tiny_corpus, tiny_model

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls_yet():
    CALLS.clear()


class CorpusConfig(StageConfig):
    repeats: int = Field(default=20, ge=10, description="How often the text is said.")


class ModelConfig(StageConfig):
    share: float = Field(default=1.0, gt=0, description="What the first weights are multiplied by.")


@stage(name="say-again", version=1)
def say_again(config: CorpusConfig) -> Output[Corpus]:
    """Nothing -> corpus: one text again and again."""
    CALLS.append("say-again")
    return Output(value=tiny_corpus(config.repeats), metrics={"repeats": float(config.repeats)})


@stage(name="draw-weights", version=3)
def draw_weights(config: ModelConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[LanguageModel]:
    """Corpus -> model: random weights, never trained."""
    CALLS.append("draw-weights")
    transformer = TransformerSpec(**SHAPE.model_dump(), vocab_size=corpus.spec.vocab_size)
    model = LanguageModel(ModelSpec(transformer=transformer, experts=DENSE))
    with torch.no_grad():
        model.lm_head.weight.mul_(config.share)
    return Output(value=model, metrics={"num_layers": 3.0}, files={"note.txt": b"drawn"})


@stage(name="look-at", version=1)
def look_at(
    config: StageConfig, *, model: Annotated[LanguageModel, "dense"], facts: Annotated[Measured, "dense", "monet"]
) -> Output[LanguageModel]:
    """Model -> model: checks what it was handed."""
    CALLS.append("look-at")
    assert isinstance(model, LanguageModel)
    assert not model.training
    assert isinstance(facts, Measured)
    assert (facts.kind, facts.stage, facts.metrics["num_layers"]) == ("dense", "draw-weights", 3.0)
    assert facts.spec["experts"]["d_hidden"] == DENSE.d_hidden
    return Output(value=model, metrics={"seconds": facts.seconds})


@pytest.fixture
def corpus_id(store):
    return run_stage(say_again, CorpusConfig(), inputs={}, store=store).id


def drawn(store, corpus_id, *, share=1.0, **options):
    return run_stage(draw_weights, ModelConfig(share=share), inputs={"corpus": corpus_id}, store=store, **options)


def test_a_stage_runs_once_and_is_found_the_second_time(store, corpus_id):
    first, second = drawn(store, corpus_id), drawn(store, corpus_id)
    assert (first.reused, second.reused) == (False, True)
    assert first.id == second.id
    assert second.seconds == 0
    assert CALLS == ["say-again", "draw-weights"]
    assert store.verify() == []


def test_an_artifact_knows_what_it_was_made_of(store, corpus_id):
    id = drawn(store, corpus_id, seed=5).id
    manifest = store.manifest(id)
    assert (manifest.kind, manifest.lineage.stage, manifest.lineage.seed) == ("dense", "draw-weights", 5)
    assert manifest.lineage.inputs["corpus"].id == corpus_id
    assert manifest.metrics == {"num_layers": 3.0}
    assert (store.root / id / "note.txt").read_bytes() == b"drawn"


def test_another_config_seed_input_or_version_is_another_artifact(store, corpus_id):
    inputs = {"corpus": corpus_id}
    other = run_stage(say_again, CorpusConfig(repeats=30), inputs={}, store=store).id
    recipes = [
        recipe_of(draw_weights, ModelConfig(), inputs, 0),
        recipe_of(draw_weights, ModelConfig(share=2), inputs, 0),
        recipe_of(draw_weights, ModelConfig(), inputs, 1),
        recipe_of(draw_weights, ModelConfig(), {"corpus": other}, 0),
        recipe_of(stage(name="draw-weights", version=4)(draw_weights.fn), ModelConfig(), inputs, 0),
        recipe_of(stage(name="draw-others", version=3)(draw_weights.fn), ModelConfig(), inputs, 0),
    ]
    assert len({recipe.id for recipe in recipes}) == len(recipes)
    assert recipe_of(draw_weights, ModelConfig(share=1), dict(inputs), 0).id == recipes[0].id


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(store, corpus_id):
    made = [drawn(store, corpus_id, seed=seed, share=share) for seed, share in ((0, 1.0), (0, 2.0), (1, 1.0))]
    heads = [store.open(m.id).tensors() for m in made]
    assert torch.equal(heads[0]["model.embed_tokens.weight"], heads[1]["model.embed_tokens.weight"])
    assert not torch.equal(heads[0]["model.embed_tokens.weight"], heads[2]["model.embed_tokens.weight"])


def test_making_again_with_equal_bytes_keeps_the_artifact(store, corpus_id):
    first = drawn(store, corpus_id)
    again = drawn(store, corpus_id, force=True)
    assert CALLS.count("draw-weights") == 2
    assert (again.id, again.reused) == (first.id, False)
    assert len(store.ids()) == 2


def test_making_again_with_other_bytes_is_a_new_attempt_beside_it(store, corpus_id):
    def restless(config: ModelConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[LanguageModel]:
        """Corpus -> model: another one each time."""
        CALLS.append("restless")
        return Output(value=tiny_model(DENSE, seed=len(CALLS)))

    unstable = stage(name="restless", version=1)(restless)
    ids = [
        run_stage(unstable, ModelConfig(), inputs={"corpus": corpus_id}, store=store, force=True).id for _ in range(2)
    ]
    assert ids[1] == f"{ids[0]}~2"
    assert run_stage(unstable, ModelConfig(), inputs={"corpus": corpus_id}, store=store).id == ids[1]


def test_a_role_of_measured_facts_gets_facts_and_one_of_a_model_gets_the_model(store, corpus_id):
    id = drawn(store, corpus_id).id
    made = run_stage(look_at, StageConfig(), inputs={"model": id, "facts": id}, store=store)
    assert CALLS[-1] == "look-at"
    assert store.manifest(made.id).metrics["seconds"] == store.manifest(id).lineage.seconds
    assert [look_at.inputs[role].measured for role in ("model", "facts")] == [False, True]


@pytest.mark.parametrize(
    ("inputs", "got"),
    [({}, r"\(none\)"), ({"corpora": "x"}, "corpora"), ({"corpus": "x", "model": "y"}, "corpus, model")],
)
def test_inputs_that_do_not_fit_are_named(store, inputs, got):
    with pytest.raises(ValueError, match=f"stage 'draw-weights' takes the inputs corpus; it got {got}"):
        run_stage(draw_weights, ModelConfig(), inputs=inputs, store=store)
    assert CALLS == []


def test_an_input_of_a_wrong_kind_is_refused_before_the_stage_runs(store, corpus_id):
    for inputs in ({"model": corpus_id, "facts": corpus_id},):
        with pytest.raises(ArtifactError, match=f"{corpus_id} is a 'corpus', made by 'say-again'; a 'dense'"):
            run_stage(look_at, StageConfig(), inputs=inputs, store=store)
    assert CALLS == ["say-again"]


def test_a_damaged_input_is_refused(store, corpus_id):
    path = next(p for p in (store.root / corpus_id).iterdir() if p.suffix == ".safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        drawn(store, corpus_id)


def test_an_input_that_changes_while_it_is_used_is_told(store, corpus_id):
    @stage(name="swap", version=1)
    def swap(config: StageConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[Corpus]:
        """Corpus -> corpus: meanwhile another process makes its input again, with other bytes."""
        manifest = store.manifest(corpus_id)
        store.remove(corpus_id)
        store.publish(
            recipe=manifest.lineage.recipe, kind="corpus", spec=manifest.spec, tensors={}, metrics={}, files={},
            circumstance=Circumstance.now(device="cpu", seconds=0.0),
        )  # fmt: skip
        return Output(value=corpus)

    with pytest.raises(ArtifactError, match=f"{corpus_id}, read as 'corpus', has other contents by now"):
        run_stage(swap, StageConfig(), inputs={"corpus": corpus_id}, store=store)
    assert store.children(corpus_id) == []


def test_a_stage_that_fails_leaves_nothing_but_its_checkpoints(store, corpus_id):
    @stage(name="fall-over", version=1)
    def fall_over(config: StageConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[LanguageModel]:
        """Corpus -> nothing."""
        folder = current_run().checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        survived = (folder / "half.pt").exists()
        (folder / "half.pt").write_bytes(b"half")
        if not survived:
            raise RuntimeError("out of luck")
        return Output(value=tiny_model(DENSE))

    run = dict(inputs={"corpus": corpus_id}, store=store)
    with pytest.raises(RuntimeError, match="out of luck"):
        run_stage(fall_over, StageConfig(), **run)
    assert store.ids() == [corpus_id]
    made = run_stage(fall_over, StageConfig(), **run)
    assert made.id in store.ids()
    assert list((store.state_dir / "checkpoints").iterdir()) == []
    for _ in range(2):  # forced: from the beginning, not from a checkpoint
        with pytest.raises(RuntimeError, match="out of luck"):
            run_stage(fall_over, StageConfig(), force=True, **run)


def test_a_config_refuses_fields_it_does_not_have():
    with pytest.raises(ValidationError, match="shares"):
        ModelConfig(shares=2)


def test_an_input_without_a_kind_is_an_error_of_the_stage():
    def unclear(config: StageConfig, *, model: LanguageModel) -> Output[LanguageModel]:
        """Model -> model."""
        return Output(value=model)

    with pytest.raises(TypeError, match="input 'model' of stage 'unclear' names no artifact kind"):
        stage(name="unclear", version=1)(unclear)


def test_a_stage_reads_its_sources_into_the_recipe():
    sourced = stage(name="sourced", version=1, sources=lambda config: f"{config.repeats:064x}")(say_again.fn)
    recipes = [recipe_of(sourced, CorpusConfig(repeats=r), {}, 0) for r in (10, 11)]
    assert recipes[0].sources_sha256 == f"{10:064x}"
    assert recipes[0].id != recipes[1].id
    assert recipe_of(say_again, CorpusConfig(), {}, 0).sources_sha256 is None


def test_a_stages_summary_is_its_first_line():
    assert draw_weights.summary == "Corpus -> model: random weights, never trained."


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device is there; use --device cpu"):
        chosen_device("cuda")
    assert chosen_device("cpu") == torch.device("cpu")


def test_a_run_pins_the_global_generator_and_gives_it_back():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    drawn = []
    for _ in range(2):
        with running(Run(seed=4)):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert torch.equal(torch.rand(3), expected)


def test_a_run_is_current_only_within_itself_even_if_it_fails():
    outside = current_run()

    def fails_within():
        with running(Run(seed=4)) as run:
            assert current_run() is run
            raise KeyError

    with pytest.raises(KeyError):
        fails_within()
    assert current_run() is outside
    assert outside.seed == 0


def test_generators_differ_by_purpose_and_seed_alone():
    draws = [
        torch.rand(3, generator=Run(seed=seed).generator(purpose)).tolist()
        for seed, purpose in ((0, "batches"), (0, "batches"), (0, "calibration"), (1, "batches"))
    ]
    assert draws[0] == draws[1]
    assert len({tuple(d) for d in draws}) == 3


def test_steps_count_from_the_first_and_report_the_last():
    told = []
    with running(Run(report=told.append)):
        assert list(steps("count", 7, first=3)) == [3, 4, 5, 6]
    assert (told[-1].what, told[-1].step, told[-1].total) == ("count", 7, 7)
