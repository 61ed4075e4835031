"""The stages in their order, and which of them makes the inputs of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kernels.errors import Mistake
from pipeline.stage import Stage
from stages.compare_superposition import LINKS, compare_superposition
from stages.distill_peer import distill_peer
from stages.distill_symbols import distill_symbols
from stages.errors import unknown
from stages.finetune_int4 import finetune_int4
from stages.grow_int4 import grow_int4
from stages.import_monet import import_monet
from stages.import_peer import import_peer
from stages.measure_superposition import measure_superposition
from stages.prepare_corpus import prepare_corpus
from stages.quantize_int4 import quantize_int4
from stages.quantize_int8 import quantize_int8
from stages.record_activations import record_activations
from stages.report import report
from stages.study_int4_ablation import study_int4_ablation
from stages.study_precision import study_precision
from stages.train_dense import train_dense
from stages.train_monet import train_monet
from stages.train_peer import train_peer


@dataclass(frozen=True, slots=True)
class Step:
    """A stage in its place: which stage makes each of its inputs."""

    stage: Stage
    inputs: Mapping[str, str]
    teacher: str | None = None
    """The input that the stage's model is measured against."""
    of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Of inputs that must be made from others of this step's: which of its maker's inputs is which.

    "model" is this step's own input of that role; "chain.model" what that input was made from, in the role "model".
    """

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def field(self) -> str:
        """The stage's name in Python and on a `Plan`."""
        return self.name.replace("-", "_")


CHAIN: tuple[Step, ...] = (
    Step(prepare_corpus, {}),
    Step(train_dense, {"corpus": "prepare-corpus"}),
    Step(train_monet, {"corpus": "prepare-corpus"}),
    Step(train_peer, {"corpus": "prepare-corpus"}),
    Step(import_monet, {}),
    Step(import_peer, {"host": "train-dense"}),
    Step(distill_peer, {"corpus": "prepare-corpus", "monet": "train-monet"}, teacher="monet"),
    Step(quantize_int8, {"corpus": "prepare-corpus", "peer": "distill-peer"}, teacher="peer"),
    Step(quantize_int4, {"corpus": "prepare-corpus", "peer": "distill-peer"}, teacher="peer"),
    Step(finetune_int4, {"corpus": "prepare-corpus", "int4": "quantize-int4", "peer": "distill-peer"}, teacher="peer"),
    Step(grow_int4, {"corpus": "prepare-corpus", "int4": "finetune-int4"}, teacher="int4"),
    Step(distill_symbols, {"corpus": "prepare-corpus", "int4": "finetune-int4"}, teacher="int4"),
    Step(
        report,
        {
            "corpus": "prepare-corpus",
            "dense": "train-dense",
            "monet": "train-monet",
            "peer": "distill-peer",
            "int8": "quantize-int8",
            "int4": "quantize-int4",
            "tuned": "finetune-int4",
            "symbols": "distill-symbols",
        },
    ),
    Step(record_activations, {"corpus": "prepare-corpus", "model": "finetune-int4"}),
    Step(
        measure_superposition,
        {
            "corpus": "prepare-corpus",
            "model": "finetune-int4",
            "record": "record-activations",
            "peer": "distill-peer",
            "beside": "record-activations",
        },
        of={"record": {"model": "model"}, "beside": {"model": "peer"}},
    ),
    Step(
        compare_superposition,
        {"chain": "report", **dict.fromkeys(LINKS, "measure-superposition")},
        of={link: {"model": f"chain.{link}", "peer": "chain.peer"} for link in LINKS},
    ),
    Step(study_int4_ablation, {"corpus": "prepare-corpus"}),
    Step(study_precision, {"corpus": "prepare-corpus"}),
)

STAGES: tuple[Stage, ...] = tuple(step.stage for step in CHAIN)

NAMES: tuple[str, ...] = tuple(step.name for step in CHAIN)

BESIDE = frozenset(
    (
        "train-peer", "import-monet", "import-peer", "grow-int4", "record-activations", "measure-superposition",
        "compare-superposition", "study-int4-ablation", "study-precision",
    )
)  # fmt: skip
"""Stages that a run leaves out unless its plan names them."""


def step_of(name: str) -> Step:
    """The step of this stage; ValueError names the stages there are."""
    for step in CHAIN:
        if step.name == name:
            return step
    raise Mistake(unknown("stage", name, NAMES))


def made_from(name: str) -> frozenset[str]:
    """The stage and every one below it that its artifact goes into."""
    step_of(name)
    found = {name}
    for step in CHAIN:
        if found.intersection(step.inputs.values()):
            found.add(step.name)
    return frozenset(found)
