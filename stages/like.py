"""The settings of an artifact, to start from: its stage's config, the inputs and the seed that it was made with."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from artifacts import Store
from artifacts.store import LATEST
from kernels.errors import Mistake
from pipeline.stage import StageConfig
from stages.chain import Step
from stages.errors import invalid


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What an artifact was asked for with."""

    config: StageConfig
    inputs: Mapping[str, str]
    """By role."""
    seed: int


def settings_of(written: str, step: Step, store: Store, *, names_sources: bool) -> Settings:
    """Those of the artifact that `written` names, `latest` being the stage's own. Mistake if another stage made it.

    Where text is, no recipe holds: unless the user `names_sources`, a corpus of text of one's own is refused.
    """
    name = (store.latest(stage=step.name) or written) if written == LATEST else written
    manifest = store.manifest(name)
    lineage, stage = manifest.lineage, step.stage
    if lineage.stage != step.name:
        raise Mistake(
            f"--like: {manifest.id} was made by {lineage.stage}, whose settings are no settings of {step.name}; "
            f"name an artifact of {step.name}, or run {lineage.stage}"
        )
    try:
        config = stage.config_type.model_validate(lineage.config)
    except ValidationError as error:
        raise Mistake(
            f"--like: {manifest.id} was made by version {lineage.stage_version} of {step.name}, this is version "
            f"{stage.version}, and its settings have changed: {invalid(error)}; write them as flags"
        ) from None
    if stage.sources and not names_sources and stage.sources(config) != lineage.sources_sha256:
        raise Mistake(
            f"--like: {manifest.id} was made of other text than the default corpus, and its lineage has the text's "
            "digest, not its place; name it with --config.sources"
        )
    return Settings(config=config, inputs={role: ref.id for role, ref in lineage.inputs.items()}, seed=lineage.seed)
