"""A checkpoint in the layout of Monet's public release -> Monet."""

import json
from typing import Literal

from pydantic import Field

from kernels.errors import Mistake
from pipeline.exchange.monet import config_of, model_of, spec_of
from pipeline.exchange.release import CONFIG, TOKENIZER, Release, digest_of, release_in
from pipeline.figures.parameters import parameters_by_block
from pipeline.measuring.sizes import measure_size
from pipeline.models import LanguageModel
from pipeline.stage import Output, StageConfig, stage


class ImportMonetConfig(StageConfig):
    """Which checkpoint is read, and whether it has a tokenizer."""

    source: str = Field(
        default="",
        exclude=True,  # the recipe holds the digest of its files instead
        max_length=4096,
        description="Folder with config.json, model.safetensors or its shards, and tokenizer.json; or "
        "hf:NAME[@REVISION] of the Hub.",
    )
    tokenizer: Literal["files", "none"] = Field(
        default="files",
        description="Whether the checkpoint brings its tokenizer.json (files), or tokens are numbers alone (none).",
    )


def checkpoint_digest(config: ImportMonetConfig) -> str:
    """sha256 over those of the checkpoint's files."""
    return digest_of(config.source)


@stage(name="import-monet", version=1, sources=checkpoint_digest)
def import_monet(config: ImportMonetConfig) -> Output[LanguageModel]:
    """checkpoint of the public release -> Monet: the same tensors under the same names, in float32."""
    release = release_in(config.source)
    public = config_of(release)
    spec = spec_of(public)
    beside = _tokenizer_files(config, release)
    model = model_of(spec, release.tensors)
    sizes = measure_size(model)
    metrics = {
        "num_parameters": sizes["num_parameters"],
        "num_experts": float(model.expert_layers()[0].num_experts),
        "context_tokens": float(public.max_position_embeddings),
    }
    files = {
        "plot.png": parameters_by_block(f"Monet, imported: {metrics['num_parameters']:,.0f} parameters", model),
        CONFIG: release.config_json,  # with it and the tokenizer the artifact's folder is one for prepare-corpus
        "checkpoint.json": json.dumps(dict(release.sha256), indent=1, sort_keys=True).encode(),
        **beside,
    }
    return Output(value=model, metrics=metrics, files=files)


def _tokenizer_files(config: ImportMonetConfig, release: Release) -> dict[str, bytes]:
    if config.tokenizer == "none":
        return {}
    if TOKENIZER not in release.beside:
        raise Mistake(
            f"there is no {TOKENIZER} in {release.folder}; have transformers write it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...), or say --config.tokenizer none: ids alone"
        )
    return dict(release.beside)
