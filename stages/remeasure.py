"""Every model of a store measured anew from its file, beside what its manifest says: `artifacts verify --measure`.

`python -m stages.remeasure --store DIR [ID ...] [--json]` exits with 1 if a figure differs. On the device and with the
kernels that lineage names a figure must be the manifest's to NEAR; elsewhere, where sums are in another order, to FAR.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from artifacts import Artifact, CommandParser, Manifest, Store, store_folder, writing_to_stdout
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.measuring.held_out import HeldOut
from pipeline.measuring.loss import measure, measure_against, validation_loss
from pipeline.models import LanguageModel
from pipeline.stage import StageConfig, chosen_device, device_name
from stages.chain import CHAIN, Step
from stages.errors import exit_code

NEAR, FAR = 1e-6, 1e-4
FIGURES = (
    "held_out_loss_nats",
    "held_out_bits_per_byte",
    "validation_loss_nats",
    "loss_increase_nats",
    "kl_to_teacher_nats",
    "loss_without_experts_nats",
    "loss_recovered",
)
"""What is compared, of those that the manifest has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remeasured:
    """One artifact: its figures as its manifest has them and as they were measured now, or why they were not."""

    id: str
    figures: Mapping[str, tuple[float, float]]
    tolerance: float
    skipped: str | None = None

    @property
    def differing(self) -> list[str]:
        return [
            f"{name} is {now:.9g}, its manifest says {said:.9g}"
            for name, (said, now) in self.figures.items()
            if not abs(said - now) <= self.tolerance
        ]


def remeasured(manifest: Manifest, store: Store, device: torch.device) -> Remeasured | None:
    """Opens the artifact, its corpus and its teacher anew and measures as its stage does; None for what is no model."""
    lineage = manifest.lineage
    step = next((step for step in CHAIN if step.name == lineage.stage), None)
    if step is None or "held_out_loss_nats" not in manifest.metrics:
        return None
    if lineage.stage_version != step.stage.version:
        why = f"version {lineage.stage_version} of {step.name} made it, this is version {step.stage.version}"
        return Remeasured(id=manifest.id, figures={}, tolerance=FAR, skipped=why)
    now = _measured(manifest, step, store, device)
    both = {name: (manifest.metrics[name], now[name]) for name in FIGURES if name in manifest.metrics}
    same = device_name(device) == lineage.device
    return Remeasured(id=manifest.id, figures=both, tolerance=NEAR if same else FAR)


def _measured(manifest: Manifest, step: Step, store: Store, device: torch.device) -> dict[str, float]:
    config = step.stage.config_type.model_validate(manifest.lineage.config)
    inputs = {role: store.open(ref.id) for role, ref in manifest.lineage.inputs.items()}
    model = _model(store.open(manifest.id), device)
    held_out = _held_out(codec.load_as(Corpus, inputs["corpus"]), config)
    if step.teacher is None:
        numbers = measure(model, held_out)
    else:
        teacher = _model(inputs[step.teacher], device)
        numbers = measure_against(model, teacher, held_out)
    if "validation_loss_nats" in manifest.metrics:
        numbers["validation_loss_nats"] = validation_loss(model, held_out)
    return numbers


def _model(artifact: Artifact, device: torch.device) -> LanguageModel:
    return codec.load_as(LanguageModel, artifact).to(device).eval()


def _held_out(corpus: Corpus, config: StageConfig) -> HeldOut:
    """By a stage's measure, in windows of its training's length or that of a field of its own."""
    values = {name: getattr(config, name) for name in type(config).model_fields}
    length = values["context_length"] if "context_length" in values else values["training"].context_length
    return HeldOut(corpus, values["measure"], length)


def main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m stages.remeasure", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help="artifacts to measure (default: all)")
    parser.add_argument("--store", type=store_folder, default="store", metavar="DIR", help="folder of the store")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_intermixed_args(arguments)
    store, device = Store(options.store), chosen_device(options.device)
    store.require_folder()
    manifests = [store.manifest(id) for id in options.ids] or store.manifests()
    found = []
    for manifest in manifests:
        if (one := remeasured(manifest, store, device)) is not None:
            found.append(one)
            if not options.json:
                with writing_to_stdout():
                    print(_line(one))  # noqa: T201
    differing = [one for one in found if one.differing]
    skipped = sum(one.skipped is not None for one in found)
    with writing_to_stdout():
        if options.json:
            print(json.dumps([{**asdict(one), "differing": one.differing} for one in found], indent=2))  # noqa: T201
        else:
            print(  # noqa: T201
                f"{len(found) - skipped} models measured anew on {device_name(device)}, {len(differing)} differ from "
                f"their manifests, {skipped} of other versions were left out."
            )
    return 1 if differing else 0


def _line(one: Remeasured) -> str:
    if one.skipped is not None:
        return f"{one.id}: not measured, {one.skipped}; make it again to compare"
    if one.differing:
        return f"{one.id}: " + "; ".join(one.differing)
    largest = max(abs(said - now) for said, now in one.figures.values())
    return f"{one.id}: as its manifest says, to {largest:.1e} (at most {one.tolerance:.0e})"


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
