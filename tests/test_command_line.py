"""What the command line understands, and what it says when it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, ValidationError

from artifacts import ArtifactError, ArtifactId, Circumstance, Recipe, Store
from pipeline.running.progress import print_results
from stages.chain import step_of
from stages.command import RunCommand, ServeCommand, StageCommand, UiCommand, read, read_stage
from stages.errors import Mistake, exit_code
from stages.execution import require_named
from stages.inputs import inputs_of
from stages.plan import Plan, plain
from stages.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]


def _run(*arguments: str) -> RunCommand:
    command = read(["run", *arguments])
    assert isinstance(command, RunCommand)
    return command


def test_the_default_is_the_tiny_preset():
    assert _run().plan == PRESETS["tiny"]() == Plan()


@pytest.mark.parametrize("name", ["small", "monet_850m", "monet-850m"])
def test_a_preset_is_where_overrides_start_from(name):
    plan = _run("--preset", name, "--train-monet.training.steps", "100").plan
    preset = PRESETS[name.replace("-", "_")]()
    assert plan.train_monet.training.steps == 100
    assert plan.train_monet.transformer == preset.train_monet.transformer
    assert plan.train_dense == preset.train_dense


def test_flags_may_be_written_with_underscores_or_an_equals_sign():
    plan = _run("--train_monet.training.learning_rate=0.25", "--distill_peer.num_experts", "7").plan
    assert plan.train_monet.training.learning_rate == 0.25
    assert plan.distill_peer.num_experts == 7


def test_corpus_names_the_sources_as_they_were_written():
    plan = _run("--corpus", "poems=a_b.txt", "hf:x", "--prepare-corpus.tokenizer", "bytes").plan
    assert plan.prepare_corpus.sources == ("poems=a_b.txt", "hf:x")
    assert plan.prepare_corpus.tokenizer == "bytes"


def test_plain_dicts_of_a_plan_give_the_same_plan_sources_included():
    plan = _run("--corpus", "a", "--train-peer.peer.sub-keys", "shared").plan
    assert Plan.model_validate(plain(plan)) == plan


def test_a_stage_takes_its_inputs_by_role_and_its_settings_as_config():
    command = read_stage(
        ["distill-peer", "--monet", "latest", "--config.training.steps", "3", "--seed", "5", "--force"]
    )
    assert isinstance(command, StageCommand)
    assert (command.given, command.seed, command.force) == ({"monet": "latest"}, 5, True)
    assert command.config == Plan().distill_peer.model_copy(
        update={"training": Plan().distill_peer.training.model_copy(update={"steps": 3, "warmup_steps": 3})}
    )


def test_ui_takes_a_port():
    assert read(["ui", "--port", "4321"]) == UiCommand(port=4321)


def test_serve_takes_the_folders_to_which_runs_are_held(tmp_path, monkeypatch):
    assert read(["serve"]) == ServeCommand(port=None, allow=(ROOT,))
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    asked = ["serve", "--allow", "a", "--allow", str(tmp_path), "--allow", "link"]
    assert read(asked) == ServeCommand(port=None, allow=(tmp_path / "a", tmp_path, tmp_path / "a"))


MISTAKES = {
    "run --preset smal": ["unknown preset 'smal'", "did you mean small", "shakespeare"],
    "run --from quantise-int8": ["unknown stage", "quantize-int8"],
    "run --from train-peer": ["train-peer is not in this run"],
    "run --train-monet.training.stepz 3": ["--train-monet.training.stepz", "did you mean", "--help"],
    "run --train-monet.training.steps -5": [
        "--train-monet.training.steps: got '-5', wanted: greater than or equal to 1"
    ],
    "run --train-monet.training.steps x": ["--train-monet.training.steps: got 'x', wanted: a valid integer"],
    "run --train-monet.monet.active-sub-experts 99": ["--train-monet.monet: active_sub_experts=99 must be below"],
    "run --chain train-monet": ["chain has train-monet without prepare-corpus"],
    "run --preset shakespeare": ["--corpus PATH"],
    "run --seed x": ["--seed", "'x'"],
    "run tiny": ["unknown argument 'tiny'"],
    "serve --allow no/where": ["--allow", "there is no folder 'no/where'; make it"],
    "stage": ["NAME", "--help"],
    "stage quantise-int8": ["unknown stage 'quantise-int8'", "did you mean quantize-int8"],
    "stage train-monet --monet latest": ["unknown argument '--monet'"],
    "stage report --config.dots-per-inch 1": ["--config.dots-per-inch: got '1'"],
    "": ["COMMAND"],
    "rum": ["'rum'", "run"],
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_told_in_one_sentence_with_exit_code_2(arguments, capsys):
    assert exit_code(lambda: read(arguments.split()) and 0) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    for part in MISTAKES[arguments]:
        assert part in said.err


def test_a_device_that_is_not_there_is_told_at_once(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert exit_code(lambda: read(["run", "--device", "cuda"]) and 0) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    def bug() -> int:
        return int("not a number")

    with pytest.raises(ValueError, match="invalid literal"):
        exit_code(bug)


def test_ctrl_c_is_no_error_of_ours(capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert exit_code(interrupted) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_an_error_of_pydantic_names_field_value_and_wish(capsys):
    class Shape(BaseModel):
        width: int = Field(ge=1)

    def wrong() -> int:
        Shape.model_validate({"width": -1})
        return 0

    assert exit_code(wrong) == 2
    assert capsys.readouterr().err.strip() == "width: got -1, wanted: greater than or equal to 1"
    with pytest.raises(ValidationError):
        wrong()


def _published(
    store: Store, stage: str, kind: str, inputs: dict[str, ArtifactId], seed: int = 0, plan: Plan | None = None
) -> ArtifactId:
    config = plan.config_of(step_of(stage)).model_dump(mode="json") if plan else {}
    recipe = Recipe(stage=stage, stage_version=1, config=config, seed=seed, inputs=inputs)
    now = Circumstance.now(device="cpu", seconds=0.0)
    return store.publish(recipe=recipe, kind=kind, spec={}, tensors={}, metrics={}, files={}, circumstance=now)


def test_inputs_not_named_are_those_that_the_named_ones_come_from(tmp_path):
    store = Store(tmp_path)
    old, new = (_published(store, "prepare-corpus", "corpus", {}, seed) for seed in (1, 2))
    monet = _published(store, "train-monet", "monet", {"corpus": old})
    peer = _published(store, "distill-peer", "peer", {"corpus": old, "monet": monet})

    def never(step, inputs):
        raise AssertionError(f"{step.name} need not be made")

    assert inputs_of(step_of("quantize-int4"), {"peer": peer}, store, never) == {"corpus": old, "peer": peer}
    assert inputs_of(step_of("quantize-int4"), {}, store, never) == {"corpus": old, "peer": peer}
    assert inputs_of(step_of("quantize-int4"), {"corpus": "latest"}, store, never)["corpus"] == new
    assert inputs_of(step_of("train-dense"), {}, store, never) == {"corpus": new}
    with pytest.raises(ArtifactError, match="no artifact 'foo'"):
        inputs_of(step_of("train-dense"), {"corpus": "foo"}, store, never)


def test_a_baseline_is_the_latest_of_the_corpus_that_the_other_inputs_come_from(tmp_path):
    store = Store(tmp_path)
    corpora = [_published(store, "prepare-corpus", "corpus", {}, seed) for seed in (1, 2)]
    made = {"corpus": corpora[0]}
    for role, stage, kind, inputs in (
        ("monet", "train-monet", "monet", ("corpus",)),
        ("peer", "distill-peer", "peer", ("corpus", "monet")),
        ("int8", "quantize-int8", "peer-int8", ("corpus", "peer")),
        ("int4", "quantize-int4", "peer-int4", ("corpus", "peer")),
        ("tuned", "finetune-int4", "peer-int4", ("corpus", "int4", "peer")),
    ):
        made[role] = _published(store, stage, kind, {name: made[name] for name in inputs})
    symbols = {"corpus": made["corpus"], "int4": made["tuned"]}
    made["symbols"] = _published(store, "distill-symbols", "symbols", symbols)
    dense = [
        _published(store, "train-dense", "dense", {"corpus": corpora[corpus]}, seed)
        for corpus, seed in ((0, 1), (0, 2), (1, 3))
    ]

    def never(step, inputs):
        raise AssertionError(f"{step.name} need not be made")

    report = step_of("report")
    assert inputs_of(report, {}, store, never) == {**made, "dense": dense[1]}
    for id in dense[:2]:
        store.remove(id)
    assert inputs_of(report, {}, store, never)["dense"] == dense[2]  # which the report then refuses by name


def test_with_a_preset_inputs_are_those_made_by_its_settings_from_the_corpus_on(tmp_path):
    """Stages whose settings two presets share are told apart by what they were made from."""
    store, small, tiny = Store(tmp_path), PRESETS["small"](), PRESETS["tiny"]()
    shared = small.model_copy(update={"distill_peer": tiny.distill_peer})
    gpu, corpora, peers = PRESETS["gpu"](), {}, {}
    for name, plan in (("small", shared), ("tiny", tiny)):
        corpora[name] = _published(store, "prepare-corpus", "corpus", {}, plan=plan)
        monet = _published(store, "train-monet", "monet", {"corpus": corpora[name]}, plan=plan)
        peers[name] = _published(store, "distill-peer", "peer", {"corpus": corpora[name], "monet": monet}, plan=plan)
    made = []

    def make(step, inputs):
        made.append(step.name)
        kind = {"prepare-corpus": "corpus", "train-monet": "monet", "distill-peer": "peer"}[step.name]
        return _published(store, step.name, kind, dict(inputs), plan=gpu)

    step = step_of("quantize-int4")
    assert inputs_of(step, {}, store, make) == {"corpus": corpora["tiny"], "peer": peers["tiny"]}
    assert inputs_of(step, {}, store, make, plan=shared) == {"corpus": corpora["small"], "peer": peers["small"]}
    assert inputs_of(step_of("train-dense"), {}, store, make, plan=shared) == {"corpus": corpora["small"]}
    assert not made
    found = inputs_of(step, {}, store, make, plan=gpu)
    assert made == ["prepare-corpus", "train-monet", "distill-peer"]
    assert inputs_of(step, {}, store, make, plan=gpu) == found
    assert len(made) == 3
    named, default = (read_stage(["quantize-int4", *flags]) for flags in (["--preset", "tiny"], []))
    assert isinstance(named, StageCommand)
    assert isinstance(default, StageCommand)
    assert named.planned
    assert not default.planned


def test_inputs_that_the_store_lacks_are_made_first_from_the_top(tmp_path):
    store, asked = Store(tmp_path), []

    def make(step, inputs):
        asked.append(step.name)
        kind = {"prepare-corpus": "corpus", "train-monet": "monet", "distill-peer": "peer"}[step.name]
        return _published(store, step.name, kind, dict(inputs))

    inputs = inputs_of(step_of("quantize-int8"), {}, store, make)
    assert asked == ["prepare-corpus", "train-monet", "distill-peer"]
    assert inputs["corpus"] == store.latest(stage="prepare-corpus")


def test_help_shows_every_field_of_the_stage_without_prefect():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['flows.py', 'stage', 'distill-peer', '--help-all']\n"
        "try: runpy.run_path('flows.py', run_name='__main__')\n"
        "finally: assert 'prefect' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    words = " ".join(done.stdout.split())
    for name, info in type(Plan().distill_peer).model_fields.items():
        if not isinstance(getattr(Plan().distill_peer, name), BaseModel):
            assert f"--config.{name.replace('_', '-')}" in words
            assert info.description in words


def test_text_and_artifacts_that_are_not_there_are_told_before_anything_runs(tmp_path):
    store = ["--store", str(tmp_path / "store")]
    missing = str(tmp_path / "missing.txt")
    for arguments in (["run", "--corpus", missing], ["stage", "prepare-corpus", "--config.sources", missing]):
        with pytest.raises(ValueError, match=r"there is no file or folder '.*missing.txt'"):
            require_named(read([*arguments, *store]))
    with pytest.raises(ArtifactError, match=r"no artifact 'prepare-corpus-0123456789ab'"):
        require_named(read(["stage", "train-dense", "--corpus", "prepare-corpus-0123456789ab", *store]))


@pytest.mark.parametrize(
    "words",
    [
        ["prepare-corpus", "--config.sources", "~nobody-here/x"],
        ["prepare-corpus", "--config.tokenizer", "imported", "--config.tokenizer-folder", "~nobody-here/x"],
        ["import-monet", "--config.source", "~nobody-here/x"],
        ["import-peer", "--config.source", "~nobody-here/x"],
    ],
)
def test_a_user_that_is_not_there_is_told_wherever_a_path_is_taken(words, tmp_path):
    command = read(["stage", *words, "--store", str(tmp_path / "store")])
    assert isinstance(command, StageCommand)
    with pytest.raises(Mistake, match="there is no user whose folder '~nobody-here/x' lies in"):
        require_named(command)
    sources = command.step.stage.sources
    assert sources is not None
    with pytest.raises(Mistake, match="there is no user whose folder '~nobody-here/x' lies in"):
        sources(command.config)


@pytest.mark.parametrize(
    ("fill", "code", "said"),
    [
        ("/dev/full", 2, "cannot write to stdout: No space left on device; only what was to be printed is lost, see"),
        (None, 0, ""),
    ],
    ids=["a full disk", "a reader that left"],
)
def test_a_stdout_that_takes_nothing_is_told_as_that_and_blames_no_store(
    fill, code, said, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch, open(fill, "w") if fill else _pipe_without_a_reader() as stdout:
        patch.setattr("sys.stdout", stdout)
        assert exit_code(lambda: print_results([], Store(tmp_path), 1.0) or 0) == code
    assert capsys.readouterr().err.startswith(said)


def _pipe_without_a_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_a_message_of_100_000_characters_is_short(capsys):
    assert exit_code(lambda: read(["run", "--preset", "x" * 100_000]) and 0) == 2
    said = capsys.readouterr().err
    assert len(said) < 2_100
    assert said.startswith("unknown preset 'xxx")
    assert "shakespeare" in said
