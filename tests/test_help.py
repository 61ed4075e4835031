"""`--help`: one screen at once; `--help-all`: every setting with its range, out of the configs themselves."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from stages.__main__ import main
from stages.bounds import in_words
from stages.chain import CHAIN
from stages.command import read
from stages.everyday import FEW, everyday
from stages.help import pages
from stages.plan import Plan
from stages.presets import PRESETS
from stages.settings import leaves
from stages.write_help import written

ROOT = Path(__file__).resolve().parents[1]


def help_of(capsys, monkeypatch, *words: str, columns: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        read(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_pages_are_what_the_parsers_say():
    """`python -m stages.write_help` writes them anew."""
    assert (ROOT / "stages" / "help_pages.txt").read_text() == written()
    assert set(pages()) == {
        "", "run", "stage", "ui", "serve", "republish", *(f"stage {step.name}" for step in CHAIN)
    }  # fmt: skip


def test_no_page_is_wider_than_80_columns_and_that_of_a_run_is_one_screen():
    for name, text in pages().items():
        assert max(map(len, text.splitlines())) < 80, name
    run = pages()["run"]
    assert len(run.splitlines()) <= 40
    assert re.findall(r"^  (\w+) +\S.*$", run.split("presets:")[1].split("\n\n")[0], re.MULTILINE) == list(PRESETS)
    for said in ("90 seconds", "10 min", "an hour", "--corpus", "--scale", "--help-all", "flows.py stage NAME --help"):
        assert said in run


def test_a_wide_terminal_is_used_up_to_120_columns(capsys, monkeypatch):
    widths = [
        max(map(len, help_of(capsys, monkeypatch, "run", "--preset", "tiny", "--help", columns=columns).splitlines()))
        for columns in (80, 120, 300)
    ]
    assert widths[0] < 80
    assert 110 < widths[1] < 120
    assert widths[2] == widths[1]


@pytest.mark.parametrize(
    "words",
    [
        ("flows.py", "--help"),
        ("flows.py", "run", "--help"),
        ("flows.py", "stage", "train-monet", "-h"),
        ("-m", "stages", "train-monet", "--help"),
        ("-m", "artifacts", "--help"),
        ("-m", "artifacts", "diff", "--help"),
    ],
    ids=" ".join,
)
def test_help_does_not_wait_for_torch(words):
    flags = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(flags, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python ")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "artifacts.terminal" in loaded
    assert not loaded & {"torch", "numpy", "scipy", "sympy", "matplotlib", "prefect"}


def test_the_bare_command_has_the_page_of_the_stage_under_its_own_name(capsys):
    with pytest.raises(SystemExit):
        main(["train-monet", "--help"])
    bare = capsys.readouterr().out
    assert bare.startswith("usage: python -m stages train-monet [options]\n")
    assert bare.splitlines()[1:] == pages()["stage train-monet"].splitlines()[1:]


def test_help_after_a_preset_has_that_presets_defaults(capsys, monkeypatch):
    said = " ".join(help_of(capsys, monkeypatch, "stage", "train-monet", "--preset", "small", "--help").split())
    assert "Width of the residual stream. (4 to 32,768; default: 256)" in said


class Shape(BaseModel):
    both: int = Field(ge=1, le=4096)
    more: int = Field(ge=0)
    above: float = Field(gt=0, le=1)
    within: float = Field(gt=0, lt=1)
    huge: float = Field(gt=1, le=1e12)
    below: int = Field(le=10**11)
    many: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    free: int
    text: str = Field(min_length=1, max_length=5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("both", "1 to 4,096"),
        ("more", "0 or more"),
        ("above", "above 0, at most 1"),
        ("within", "above 0, below 1"),
        ("huge", "above 1, at most 1e+12"),
        ("below", "at most 100,000,000,000"),
        ("many", "each above 0, at most 1"),
        ("free", ""),
        ("text", ""),
    ],
)
def test_a_bound_in_words(name, words):
    assert in_words(Shape.model_fields[name]) == words


def fields(model: BaseModel, *path: str) -> dict[str, tuple[FieldInfo, object]]:
    found = {}
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found |= fields(value, *path, name)
        else:
            found["--" + ".".join((*path, name)).replace("_", "-")] = info, value
    return found


def is_number(value: object) -> bool:
    one = value[0] if isinstance(value, tuple) and value else value
    return isinstance(one, int | float) and not isinstance(one, bool)


def test_every_number_says_its_range_and_its_default(capsys, monkeypatch):
    """As printed, flag by flag, beside bounds that are read from pydantic's JSON schema."""
    said = help_of(capsys, monkeypatch, "run", "--help-all", columns=120)
    told = dict(re.findall(r"^  (--[\w.-]+)(.*?)(?=^  --|^\S|\Z)", said, re.MULTILINE | re.DOTALL))
    numbers = {flag: (info, value) for flag, (info, value) in fields(Plan()).items() if is_number(value)}
    assert len(numbers) > 200
    for flag, (info, value) in numbers.items():
        text = " ".join(told[flag].split())
        bounds = in_words(info)
        assert bounds, flag
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert text.endswith(f"({bounds}; default: {shown})"), flag
        for limit in re.findall(r"\d[\d,.e+]*\b", bounds):
            assert float(limit.rstrip(",").replace(",", "")) in limits(info), flag


def limits(info: FieldInfo) -> set[float]:
    class One(BaseModel):
        value: info.annotation = info  # type: ignore[valid-type]

    schema = One.model_json_schema()["properties"]["value"]
    schema = schema.get("items", schema)
    return {float(schema[name]) for name in schema if "inimum" in name or "aximum" in name}


def test_settings_of_every_day_are_fields_of_the_stage_and_none_of_how_it_is_measured():
    for step in CHAIN:
        config = Plan().config_of(step)
        paths = set(leaves(config))
        shown = set(everyday(config))
        assert shown
        assert shown <= paths
        assert shown == paths or len(paths) > FEW
    shown = set(everyday(Plan().train_monet))
    assert {"training.steps", "transformer.d_model", "monet.num_sub_experts"} <= shown
    assert not shown & {"measure.batch_size", "training.beta2"}
