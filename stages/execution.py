"""From a command for one stage to its artifact, and to those of inputs that are missing."""

from collections.abc import Callable, Iterator, Mapping

from artifacts import ArtifactError, ArtifactId, Store
from pipeline.corpus.imported_tokenizer import imported_tokenizer
from pipeline.corpus.sources import require_sources
from pipeline.corpus.text_files import user_path
from pipeline.exchange.release import release_in, weights_in
from pipeline.stage import Made, StageConfig
from stages.chain import Step
from stages.command import RunCommand, StageCommand
from stages.import_monet import ImportMonetConfig
from stages.import_peer import ImportPeerConfig
from stages.inputs import inputs_of
from stages.prepare_corpus import PrepareCorpusConfig

Make = Callable[[Step, StageConfig, Mapping[str, ArtifactId], bool], Made]
"""Makes (step, config, inputs, force)."""


def make_one(command: StageCommand, make: Make) -> Iterator[Made]:
    """The artifacts of inputs that had to be made first, then the stage's own."""
    made: list[Made] = []

    def make_input(step: Step, inputs: Mapping[str, ArtifactId]) -> ArtifactId:
        made.append(make(step, command.plan.config_of(step), inputs, False))
        return made[-1].id

    plan = command.plan if command.planned else None
    inputs = inputs_of(command.step, command.given, Store(command.store), make_input, plan=plan)
    yield from made
    yield make(command.step, command.config, inputs, command.force)


def require_named(command: RunCommand | StageCommand) -> None:
    """ValueError or ArtifactError where what was named is not there, before a run is recorded."""
    config = command.plan.prepare_corpus if isinstance(command, RunCommand) else command.config
    if isinstance(config, PrepareCorpusConfig):
        require_sources(config.sources)
        if config.tokenizer == "imported":
            imported_tokenizer(user_path(config.tokenizer_folder))
    if isinstance(config, ImportMonetConfig):
        release_in(config.source)
    if isinstance(config, ImportPeerConfig):
        weights_in(config.source)
    if isinstance(command, StageCommand):
        store = Store(command.store)
        for role, id in command.given.items():
            _require_kind(store, id, command.step.stage.inputs[role].kinds)


def _require_kind(store: Store, id: str, kinds: tuple[str, ...]) -> None:
    manifest = store.manifest(store.resolve(id, kind=kinds))
    if manifest.kind not in kinds:
        raise ArtifactError(
            f"{manifest.id} is a {manifest.kind!r}, made by {manifest.lineage.stage!r}; "
            f"a {' or '.join(map(repr, kinds))} was needed here"
        )
