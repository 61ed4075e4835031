"""What a manifest says of a model is what the saved file gives, for every stage that makes one, on both paths."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from artifacts import ArtifactId, Store
from pipeline.stage import run_stage
from stages.chain import CHAIN
from stages.command import RunCommand, read
from stages.plan import Plan
from stages.remeasure import FIGURES, NEAR, main, remeasured
from tests.shapes import SHAPES, flags

CPU = torch.device("cpu")
BESIDE = {
    **{f"train-peer.transformer.{name}": 2 for name in ("num-layers", "num-heads", "num-kv-heads")},
    "train-peer.transformer.d-model": 16,
    "train-peer.training.steps": 6,
    "train-peer.peer.num-keys": 6,
    "train-peer.peer.num-experts": 40,
    "train-peer.peer.pairs-per-head": 3,
}
MODELS = {
    step.name
    for step in CHAIN
    if "corpus" in step.inputs and not step.name.startswith(("study", "record", "report", "measure"))
}


def plan_of(text_file: Path, store: Path) -> Plan:
    words = ["run", "--corpus", f"mixed={text_file}", "--store", str(store), *SHAPES, *flags(BESIDE)]
    command = read(words)
    assert isinstance(command, RunCommand)
    return command.plan


@pytest.fixture
def made(cpu_path, tmp_path, text_file) -> Store:
    """Every stage that makes a model, each opening what the one before it saved."""
    store, ids = Store(tmp_path / "store"), dict[str, ArtifactId]()
    plan = plan_of(text_file, store.root)
    for step in CHAIN:
        if step.name in MODELS or step.name == "prepare-corpus":
            inputs = {role: ids[below] for role, below in step.inputs.items()}
            ids[step.name] = run_stage(step.stage, plan.config_of(step), inputs=inputs, store=store).id
    return store


@pytest.mark.parametrize("cpu_path", ["stock", "portable"], indirect=True)
def test_every_model_of_the_chain_measures_as_its_manifest_says(made, capsys):
    found = [remeasured(manifest, made, CPU) for manifest in made.manifests()]
    models = [one for one in found if one is not None]
    assert {one.id.rsplit("-", 1)[0] for one in models} == MODELS
    for one in models:
        assert one.tolerance == NEAR
        assert one.differing == []
        compared = {"held_out_loss_nats", "held_out_bits_per_byte"}
        if made.manifest(one.id).lineage.inputs.keys() > {"corpus"}:
            compared |= set(FIGURES) - {"validation_loss_nats"}
        assert one.figures.keys() >= compared
    # A figure of another model, as a stale one would be.
    manifest = next(m for m in made.manifests() if m.lineage.stage == "distill-peer")
    stale = {**manifest.metrics, "kl_to_teacher_nats": manifest.metrics["kl_to_teacher_nats"] + 2e-6}
    other = remeasured(manifest.model_copy(update={"metrics": stale}), made, CPU)
    assert other is not None
    assert [words.split()[0] for words in other.differing] == ["kl_to_teacher_nats"]
    assert main(["--store", str(made.root)]) == 0
    assert f"{len(MODELS)} models measured anew on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("cpu_path", ["stock"], indirect=True)
def test_of_another_version_of_its_stage_a_model_is_left_out_with_the_reason(made):
    manifest = next(m for m in made.manifests() if m.lineage.stage == "train-dense")
    older = manifest.model_copy(update={"lineage": manifest.lineage.model_copy(update={"stage_version": 0})})
    one = remeasured(older, made, CPU)
    assert one is not None
    assert one.skipped is not None
    assert one.skipped.startswith("version 0 of train-dense made it, this is version ")


@pytest.mark.parametrize("cpu_path", ["stock"], indirect=True)
def test_verify_measures_in_a_process_of_its_own(made):
    command = [sys.executable, "-m", "artifacts", "verify", "--measure", "--json", "--store", str(made.root)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["damaged"] == []
    assert {one["id"].rsplit("-", 1)[0] for one in report["measured"]} == MODELS
