"""The command that a card prints asks for the same recipe again, whatever stands in it."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import ArtifactId, Circumstance, InputRef, Lineage
from artifacts.reproduction import command, groups
from stages.chain import CHAIN, Step
from stages.command import StageCommand, read
from stages.prepare_corpus import PrepareCorpusConfig
from stages.presets import PRESETS


def lineage(step: Step, config, *, seed=0, device="cpu") -> Lineage:
    inputs = {role: f"{producer}-0123456789ab~2" for role, producer in step.inputs.items()}
    return Lineage(
        stage=step.name,
        stage_version=step.stage.version,
        config=config.model_dump(mode="json"),
        seed=seed,
        inputs={role: InputRef(id=ArtifactId(id), sha256="0" * 64) for role, id in inputs.items()},
        sequence=1,
        **Circumstance.now(device=device, seconds=1.0).model_dump(),
    )


def asked(lineage: Lineage) -> StageCommand:
    read_back = read([word for group in groups(lineage) for word in group])
    assert isinstance(read_back, StageCommand)
    return read_back


def words_of_a_shell(text: str) -> list[str]:
    """What a program called by this command gets, after its own name."""
    assert text.startswith("python flows.py ")
    printed = subprocess.run(
        ["bash", "-c", "printf '%s\\0' " + text.removeprefix("python flows.py ")], capture_output=True, check=True
    )
    return printed.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("step", CHAIN, ids=lambda step: step.name)
def test_the_command_gives_back_config_inputs_and_seed_of_every_stage(step, preset):
    config = PRESETS[preset]().config_of(step)
    made = lineage(step, config, seed=7)
    found = asked(made)
    assert found.step == step
    assert found.config.model_dump(mode="json") == made.config
    assert found.given == {role: ref.id for role, ref in made.inputs.items()}
    assert found.seed == 7


def test_every_setting_of_the_recipe_is_written_out():
    for step in CHAIN:
        config = PRESETS["tiny"]().config_of(step)
        words = [word for group in groups(lineage(step, config)) for word in group]
        # From another preset, the recipe comes out the same: none of it is left to a default.
        found = read([*words, "--preset", "gpu"])
        assert isinstance(found, StageCommand)
        assert found.config.model_dump(mode="json") == config.model_dump(mode="json")


def test_a_gpu_by_whatever_model_is_asked_for_as_cuda():
    made = lineage(CHAIN[0], PrepareCorpusConfig(), device="NVIDIA H200")
    assert ["--device", "cuda"] in groups(made)


@pytest.mark.parametrize("device", ["cpu", "cpu, C++ kernels (avx512)"])
def test_a_cpu_needs_no_flag_whatever_its_kernels_were(device):
    assert not any("--device" in group for group in groups(lineage(CHAIN[0], PrepareCorpusConfig(), device=device)))


UGLY = ["a b", "it's", '"', "$HOME", "`id`", "a\nb", "-x", "--seed", "--a_b=c_d", "=", "|", "\\", "ü ⇒ 😀", "*", "# no"]


@pytest.mark.parametrize("text", UGLY)
def test_a_shell_takes_every_text_as_it_is(text):
    made = lineage(CHAIN[0], PrepareCorpusConfig(text_field=text))
    assert words_of_a_shell(command(made)) == [word for group in groups(made) for word in group]
    assert asked(made).config.model_dump()["text_field"] == text


# argparse before Python 3.13 drops `--` even where it is the value of a flag.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9).filter(
    lambda text: text != "--"
)


@given(TEXT)
def test_the_command_line_takes_every_text_as_it_is(text):
    assert asked(lineage(CHAIN[0], PrepareCorpusConfig(text_field=text))).config.model_dump()["text_field"] == text
