"""The rules of the house: whose packages win, who may import whom, that every stage and every field is described."""

import ast
import configparser
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_origin

import pytest
from pydantic import BaseModel

from artifacts import Circumstance, Recipe
from pipeline.codec import known_kinds
from stages.chain import CHAIN, STAGES
from stages.plan import Plan, plain
from stages.presets import PRESETS
from tests.tiny import EVERY_KIND, tiny_model
from tests.tiny_symbols import symbols_model, symbols_store

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("artifacts", "kernels", "pipeline", "stages")


@pytest.mark.parametrize("package", PACKAGES)
def test_our_package_wins_over_those_of_the_same_name_on_pypi(package):
    found = Path(importlib.import_module(package).__file__ or "")
    assert found.is_relative_to(ROOT), (
        f"{package} was imported from {found}: a package of the same name is installed; run from the root of the house"
    )


def _imports(file: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found


def test_flows_imports_its_layers_prefect_and_the_standard_library_alone():
    foreign = _imports(ROOT / "flows.py") - set(sys.stdlib_module_names)
    assert foreign <= {"artifacts", "pipeline", "stages", "prefect"}


def test_nothing_below_imports_flows_or_prefect():
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            assert not _imports(file) & {"flows", "prefect"}, file


def test_triton_is_imported_by_the_gpu_kernels_alone():
    importers = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if "triton" in _imports(file)
    }
    ops = ("expert_sum", "monet_mix", "product_key_topk", "sr_update")
    assert importers == {"kernels/triton_math.py", *(f"kernels/{op}/triton.py" for op in ops)}


def test_importing_the_layers_below_flows_loads_no_prefect():
    code = (
        "import sys, artifacts, kernels, pipeline.corpus.splits, pipeline.running.progress\n"
        "import stages.command, stages.__main__\n"
        "loaded = sorted(name for name in sys.modules if name.partition('.')[0] == 'prefect')\n"
        "sys.exit(', '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_chain_goes_through_all_stages_each_after_its_inputs():
    stage_files = {file.stem for file in (ROOT / "stages").glob("*.py") if "\n@stage(" in file.read_text()}
    assert sorted(stage_files) == sorted(step.field for step in CHAIN)
    for number, step in enumerate(CHAIN):
        assert step.inputs.keys() == step.stage.inputs.keys()
        assert set(step.inputs.values()) <= {above.name for above in CHAIN[:number]}


def test_the_import_linter_keeps_exactly_the_stages_of_the_chain_apart():
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    apart = contracts["importlinter:contract:stages"]
    assert apart["type"] == "independence"
    assert apart["modules"].split() == [f"stages.{step.field}" for step in CHAIN]


def test_what_is_raised_on_purpose_is_no_class_that_libraries_raise_too():
    """Else a command could not tell a user's mistake, which it says in a sentence, from a bug."""
    files = [ROOT / "flows.py", *(f for name in ("kernels", "pipeline", "stages") for f in (ROOT / name).rglob("*.py"))]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                raised = ast.unparse(node.exc.func)
                assert raised not in ("ValueError", "RuntimeError"), f"{file}:{node.lineno}: raise Mistake or Failure"


def test_every_input_is_of_a_kind_that_something_here_opens():
    for stage in STAGES:
        for role in stage.inputs.values():
            assert set(role.kinds) <= set(known_kinds()), stage.name


def test_every_stage_has_a_field_of_the_plan_and_a_file_of_its_name():
    fields = {name: info.annotation for name, info in Plan.model_fields.items() if name != "chain"}
    assert fields == {step.field: step.stage.config_type for step in CHAIN}
    for step in CHAIN:
        assert (ROOT / "stages" / f"{step.field}.py").is_file()
        assert step.stage.summary


def _undescribed(model: type[BaseModel]) -> list[str]:
    """Fields without a description, but for those that can only have one value."""
    found = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += _undescribed(info.annotation)
        is_fixed = get_origin(info.annotation) is Literal and len(info.annotation.__args__) == 1
        if not info.description and not is_fixed:
            found.append(f"{model.__name__}.{name}")
    return found


def test_every_field_of_every_config_is_described():
    assert _undescribed(Plan) == []


def _flat(values: dict[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_plan_that_can_be_run(name):
    plan = PRESETS[name]()
    assert plan.steps()
    contexts = {
        value
        for step in plan.steps()
        for name, value in _flat(plain(plan.config_of(step)))
        if name.endswith("context_length")
    }
    assert len(contexts) == 1  # losses of models that are compared are over the same windows


def _layers(contract: str) -> list[str]:
    """The layers of a contract of .importlinter, from the top."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    return [line.strip() for line in parser[f"importlinter:contract:{contract}"]["layers"].splitlines() if line.strip()]


def _rows(title: str) -> list[str]:
    """First cells of the table under a heading of docs/house.md."""
    section = (ROOT / "docs" / "house.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| `(.*?)` \|", section, flags=re.MULTILINE)
    return [cell.replace("\\|", "|") for cell in cells]


def _modules(folder: Path) -> set[str]:
    files = (path.stem for path in folder.glob("*.py") if path.name != "__init__.py")
    return {*files, *(path.parent.name for path in folder.glob("*/__init__.py"))}


@pytest.mark.parametrize(
    ("contract", "title", "folder"),
    [
        ("rooms", "Rooms of `pipeline`", "pipeline"),
        ("symbolic", "Rooms of `pipeline.symbolic`", "pipeline/symbolic"),
    ],
)
def test_the_map_of_the_house_is_the_tree_and_its_contracts(contract, title, folder):
    assert _rows(title) == _layers(contract)
    rooms = {room for row in _rows(title) for room in row.split(" | ")}
    assert rooms == _modules(ROOT / folder)


def test_the_storeys_are_those_that_are_checked():
    assert _rows("Storeys") == ["flows", *_layers("layers")]


def test_every_file_says_its_subject_in_its_first_line():
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text()
            assert not text or (ast.get_docstring(ast.parse(text)) or "").splitlines()[0], file


READS_AN_ORACLE = re.compile(r"^from \S+ import reference|\.reference import", re.MULTILINE)


def test_production_reads_no_oracle():
    """But for the measure of whether retrieval obeys its rule, which the oracle is."""
    readers = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if file.name != "reference.py"
        and re.search(r"^from \S+ import reference|\.reference import", file.read_text(), re.M)
    }
    assert readers == {"pipeline/models/peer/layer.py"}


OPEN_ALL = """
import sys
sys.modules["sympy"] = sys.modules["kan"] = None
from pathlib import Path
import torch
import pipeline.generate.command
from artifacts import Store
from pipeline import codec
store = Store(Path(sys.argv[1]))
values = {artifact.kind: codec.load(artifact) for artifact in map(store.open, store.ids())}
del sys.modules["sympy"]  # torch itself wants it where an operator of ours runs for the first time
for kind, value in values.items():
    assert kind == "corpus" or torch.isfinite(value(torch.tensor([[3, 1, 4, 1, 5]]))).all()
assert not [name for name in sys.modules if name.startswith("pipeline.symbolic")]
print(*sorted(values.keys() - {"corpus"}))
"""


def test_opening_and_running_a_model_of_any_kind_loads_neither_sympy_nor_pykan(tmp_path):
    store = symbols_store(tmp_path / "store", symbols_model())
    for name, experts in EVERY_KIND.items():
        model = tiny_model(experts)
        store.publish(
            recipe=Recipe(stage=f"made-{name}", stage_version=1, config={}, seed=0, inputs={}),
            kind=model.kind,
            spec=model.spec.model_dump(mode="json"),
            tensors=model.to_tensors(),
            metrics={},
            files={},
            circumstance=Circumstance.now(device="cpu", seconds=0.0),
        )
    code = [sys.executable, "-c", OPEN_ALL, str(store.root)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(known_kinds()) - {"corpus", "record", "report"}
