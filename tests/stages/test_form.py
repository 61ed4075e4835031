"""Forms of the Prefect UI: what is filled in gives exactly the settings that the same command line gives."""

import pytest

from kernels.errors import Mistake
from stages import form
from stages.chain import CHAIN, step_of
from stages.command import read
from stages.presets import PRESETS
from stages.settings import leaves, plan_from, plan_written
from tests.shapes import SHAPES

STORE = "/data/store"


@pytest.mark.parametrize("step", CHAIN, ids=lambda step: step.name)
def test_a_form_asks_for_inputs_first_then_a_preset_then_everyday_settings(step):
    fields = form.schema(form.fields_of(step, STORE))["properties"]
    assert [field["position"] for field in fields.values()] == sorted(field["position"] for field in fields.values())
    names = list(fields)
    everyday = [name.rpartition(".")[2] for name in form.everyday_of(step)]
    inputs = names[: names.index("preset")]
    assert set(inputs) <= set(step.inputs)
    assert names == [*inputs, "preset", *everyday, "seed", "store", "device", "force", form.REST]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("step", CHAIN, ids=lambda step: step.name)
def test_titles_are_flags_of_the_command_line(step, tmp_path):
    config = leaves(PRESETS["tiny"]().config_of(step))
    said = {f"config.{name}": value for name, value in config.items()}
    said |= {"preset": "tiny", "seed": 3, "store": tmp_path, "device": "cpu", **dict.fromkeys(step.inputs, "latest")}
    titles = [field.title for field in form.fields_of(step, STORE) if field.name not in (form.REST, "force")]
    words = [
        word
        for title in titles
        for value in [said[title.removeprefix("--").replace("-", "_")]]
        for word in (title, *(map(str, value) if isinstance(value, tuple) else [str(value)]))
    ]
    command = read(["stage", step.name, *words, "--force"])
    assert (command.config, command.seed, command.force) == (PRESETS["tiny"]().config_of(step), 3, True)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_of_a_config_is_that_config_again(preset):
    plan = PRESETS[preset]()
    assert plan_written(plan) == {"preset": preset, "stages": [], "corpus": [], "settings": ""}
    for step in CHAIN:
        config = plan.config_of(step)
        written = form.config_written(step, config)
        assert form.config_from(step, written["preset"], written) == config


def test_what_is_written_of_a_command_is_that_command_again():
    plan = read(["run", "--corpus", "prose=/data/my books", "web=/data/x", *SHAPES, "--chain", "prepare-corpus"]).plan
    written = plan_written(plan)
    assert (written["preset"], written["stages"]) == ("tiny", ["prepare-corpus"])
    assert written["corpus"] == ["prose=/data/my books", "web=/data/x"]
    assert "train-monet.monet.d-expert=2" in written["settings"].splitlines()
    assert plan_from(**written) == plan
    for step in CHAIN:
        config = plan.config_of(step)
        written = form.config_written(step, config)
        assert form.config_from(step, written["preset"], written) == config


def test_what_is_blank_is_the_presets_and_what_is_filled_in_is_not():
    monet = step_of("train-monet")
    for preset in ("tiny", "small"):
        whole = PRESETS[preset]().config_of(monet)
        assert form.config_from(monet, preset, {}) == whole
        given = form.config_from(monet, preset, {"steps": 7, form.REST: {"training": {"beta2": 0.5, "steps": 9}}})
        others = {name: value for name, value in leaves(given).items() if value != leaves(whole)[name]}
        # Above the fold counts; a warm-up is no longer than its training.
        assert others == {"training.steps": 7, "training.beta2": 0.5, "training.warmup_steps": 7}


def test_a_form_fills_in_nothing_that_a_preset_decides():
    properties = form.schema(form.fields_of(step_of("train-peer"), STORE))["properties"]
    assert {name for name, field in properties.items() if "default" in field} == {
        "corpus", "preset", "seed", "store", "device", "force",
    }  # fmt: skip
    assert "'default'" not in str(properties[form.REST])
    assert properties["steps"]["minimum"] == 1
    _, everything = properties[form.REST]["anyOf"]
    assert "int4" in everything["properties"]["peer"]["properties"]["precision"]["enum"]
    assert properties["steps"]["description"].startswith("Optimizer steps. Blank: the preset's (1,500; ")


@pytest.mark.parametrize(
    ("stage", "shown"),
    [("report", "symbols"), ("measure-superposition", "model"), ("compare-superposition", "chain")],
)
def test_many_inputs_are_one_field_and_the_others_follow_from_it(stage, shown):
    step = step_of(stage)
    assert [name for name in form.schema(form.fields_of(step, STORE))["properties"] if name in step.inputs] == [shown]
    assert set(step.inputs) <= {field.name for field in form.fields_of(step, STORE)}  # the chain names them all
    assert form.given_inputs(step, {shown: "report-1", "force": False}) == {shown: "report-1"}
    assert form.given_inputs(step, dict.fromkeys(step.inputs, "latest")) == {}


@pytest.mark.parametrize(
    "settings",
    [
        "train-monet.training.steps=200\n\n# wider\n--distill-symbols.coordinates=1 2\ntrain_dense.mlp.d_hidden = 64",
        '{"train-monet": {"training": {"steps": 200}}, "distill_symbols": {"coordinates": [1, 2]},\n'
        ' "train-dense": {"mlp": {"d-hidden": 64}}}',
    ],
    ids=["lines", "json"],
)
def test_settings_are_lines_or_json(settings):
    plan = plan_from("tiny", [], [], settings)
    flags = ["--train-monet.training.steps", "200", "--distill-symbols.coordinates", "1", "2"]
    assert plan == read(["run", *flags, "--train-dense.mlp.d-hidden", "64"]).plan


def test_text_that_a_line_cannot_hold_is_written_in_quotes():
    plan = read(["run", "--prepare-corpus.text-field", ' "a\nb'])
    assert plan_written(plan.plan)["settings"] == 'prepare-corpus.text-field=" \\"a\\nb"'
    assert plan_from(**plan_written(plan.plan)) == plan.plan


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("a=1\ntrain-monet.training.stepz=2", "settings, line 1: unknown setting 'a'; wanted one such as train-monet."),
        (
            "train-monet.training.stepz=2",
            r"line 1: unknown setting 'train-monet.training.stepz' \(did you mean train-monet.training.steps or ",
        ),
        ("\nsteps 200", "settings, line 2: got 'steps 200', wanted key=value, such as train-monet.training.steps=200"),
        ("train-monet.training.steps=0", "--train-monet.training.steps: got '0', wanted: greater than or equal to 1"),
        ('{"train-monet": ', "settings: the JSON breaks off at line 1, column 17"),
        ('{"train-monet": 3}', "settings: unknown setting 'train-monet'"),
        ('prepare-corpus.text-field="a', "wanted JSON after a quote or bracket"),
        ("chain=report", "chain has report without"),
    ],
)
def test_settings_that_are_wrong_are_told_in_a_sentence(settings, said):
    with pytest.raises(Mistake, match=said):
        plan_from("tiny", [], [], settings)


@pytest.mark.parametrize(
    ("filled", "said"),
    [
        ({"steps": 0}, "--config.training.steps: got 0, wanted: greater than or equal to 1"),
        ({form.REST: {"training": {"stepz": 3}}}, "--config of train-monet: unknown setting 'training.stepz'"),
        ({form.REST: {"foo": 1}}, "--config of train-monet: unknown setting 'foo'"),
        ({form.REST: {"training": 1}}, "--config of train-monet: unknown setting 'training'"),
    ],
)
def test_a_form_that_is_wrong_is_told_in_a_sentence(filled, said):
    with pytest.raises(Mistake, match=said):
        form.config_from(step_of("train-monet"), "tiny", filled)


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(Mistake, match=r"unknown preset .tini. .did you mean tiny"):
        plan_from("tini", [], [], "")
