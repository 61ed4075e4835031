"""A model of any kind as a folder that transformers opens by itself, and that folder as a model again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from artifacts import Store
from artifacts.ancestry import known_ancestry
from artifacts.errors import ArtifactError
from artifacts.foreign_tensors import DTYPES, read_stored, write_shards
from artifacts.model_card import LIBRARY, model_card
from kernels.errors import Mistake
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.corpus.tokenizer import TOKENIZER, TextTokenizer, byte_of_character
from pipeline.exchange.release import BESIDE, release_in
from pipeline.models import LanguageModel
from pipeline.models.trained_length import trained_length
from pipeline.records.recording import check_speaks_as

MODELING = "modeling_legible"
LENS = "transformer_lens_legible.py"
"""Only TransformerLens needs it."""
MODEL_TYPE = "legible"
SHARD_BYTES = 4 * 10**9
EXPORTED = frozenset(("dense", "monet", "peer", "symbols"))
"""Layers that the modeling file has."""
_TRAINING = (".accumulator_EB", ".moment_E")
"""What int4 tables hold while they train, and no output depends on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    folder: Path
    files: Sequence[str]
    num_bytes: int


def export(store: Store, id: str, folder: Path, shard_bytes: int = SHARD_BYTES) -> Exported:
    """Writes the folder, whole or not at all. Mistake where something is there, or the model cannot be said in it."""
    artifact = store.open(id, kind=codec.kinds_of(LanguageModel))
    model = codec.load_as(LanguageModel, artifact)
    tokens = _tokenizer_files(store, artifact.id, model)
    context = trained_length(store, artifact.id)
    ancestry = known_ancestry(store, [artifact.id])
    card = model_card(artifact.manifest, ancestry.manifests, ancestry.missing)
    card = card.replace(f"library_name: {LIBRARY}\n", "library_name: transformers\n", 1)  # which opens this folder
    files = {
        "config.json": _json(_config(model, context, tokens.end)),
        "generation_config.json": _json({"eos_token_id": tokens.end, "pad_token_id": tokens.end, "do_sample": False}),
        "README.md": f"{card}\n{_USE}".encode(),
        **{name: Path(__file__).with_name(name).read_bytes() for name in (f"{MODELING}.py", LENS)},
        **tokens.files(context),
    }
    with _appearing(folder) as made:
        for name, raw in files.items():
            (made / name).write_bytes(raw)
        weights = write_shards(made, _tensors(model), shard_bytes)
    names = sorted([*files, *weights])
    return Exported(folder=folder, files=names, num_bytes=sum((folder / name).stat().st_size for name in names))


_USE = """
## Under transformers

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
output = model(**tokenizer("def ", return_tensors="pt"), output_routed_experts=True)
output.routed_experts  # (batch, tokens, blocks, experts kept), -1 for none; output.routed_gates are their gates
```

Hook points of every expert layer are named at the top of `modeling_legible.py`; `transformer_lens_legible.py` opens
the model in TransformerLens 4, and nnsight needs nothing.
"""


def read_export(folder: Path) -> LanguageModel:
    """The model in a folder that `export` wrote. Mistake or ArtifactError where it is none, or damaged."""
    release = release_in(str(folder))
    config = release.config
    if config.get("model_type") != MODEL_TYPE or not isinstance(config.get("experts"), dict):
        raise Mistake(f"{folder} has model_type {config.get('model_type')!r}; wanted {MODEL_TYPE!r}, an export of ours")
    spec = {"transformer": config.get("transformer"), "experts": config["experts"]}
    tensors: dict[str, Tensor] = {}
    for name, stored in release.tensors.items():
        if stored.dtype not in DTYPES:
            raise Mistake(f"{name[:200]} is of {stored.dtype} in {stored.file.name}; export the model again")
        tensors[name] = read_stored(name, stored, DTYPES[stored.dtype])
    return LanguageModel.restore(str(config.get("kind")), spec, tensors, {})


def _tensors(model: LanguageModel) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_TRAINING)}


def _config(model: LanguageModel, context: int, end: int | None) -> dict[str, Any]:
    """What both transformers and `read_export` build the model from."""
    spec = model.spec.model_dump(mode="json")
    if spec["experts"]["layer"] not in EXPORTED or model.shape.attention.kind != "softmax":
        raise Mistake(
            f"an expert layer {spec['experts']['layer']!r} with attention {model.shape.attention.kind!r} is in no "
            f"modeling file here; exported are {', '.join(sorted(EXPORTED))}, with softmax attention"
        )
    if spec["experts"].get("accumulator"):
        spec["experts"]["accumulator"] = False
    shape, state = model.shape, model.state_dict()
    offsets = [state.get(f"model.layers.{block}.moe.index.offset_C1") for block in range(shape.num_layers)]
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["LegibleForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{MODELING}.LegibleConfig",
            "AutoModelForCausalLM": f"{MODELING}.LegibleForCausalLM",
        },
        "dtype": "float32",
        "kind": model.kind,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "eos_token_id": end,
        "pad_token_id": end,
        "transformer": spec["transformer"],
        "experts": spec["experts"],
        "index_dtypes": [None if offset is None else str(offset.dtype).removeprefix("torch.") for offset in offsets],
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokens:
    """What an export says of tokens."""

    tokenizer: bytes
    config: Mapping[str, Any]
    beside: Mapping[str, bytes]
    end: int | None
    """The token that ends a document."""

    def files(self, context: int) -> dict[str, bytes]:
        config = {**self.config, "model_max_length": context}
        return {**self.beside, TOKENIZER: self.tokenizer, "tokenizer_config.json": _json(config)}


def _tokenizer_files(store: Store, id: str, model: LanguageModel) -> _Tokens:
    """Those of the corpus that the model was made from, or that an imported checkpoint brought."""
    ancestry = [store.open(made.id) for made in store.ancestry(id) if made.kind == "corpus" or TOKENIZER in made.files]
    for artifact in ancestry:
        if artifact.kind == "corpus":
            corpus = codec.load_as(Corpus, artifact)
            check_speaks_as(model, corpus)
            return _of_corpus(corpus.tokenizer)
    for artifact in ancestry:
        files = artifact.files()
        config = json.loads(files["tokenizer_config.json"].read_bytes()) if "tokenizer_config.json" in files else {}
        beside = {
            name: files[name].read_bytes() for name in BESIDE if name in files and name != "generation_config.json"
        }
        ends = json.loads(files["config.json"].read_bytes()).get("eos_token_id")
        end = next((end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int), None)
        return _Tokens(tokenizer=files[TOKENIZER].read_bytes(), config=config, beside=beside, end=end)
    raise ArtifactError(f"{id} was made from no corpus and brought no tokenizer, so nothing says what its tokens are")


def _of_corpus(tokenizer: TextTokenizer) -> _Tokens:
    raw = tokenizer.to_files().get(TOKENIZER) or _bytes_as_bpe(tokenizer)
    end = tokenizer.separator
    name = None if end is None else Tokenizer.from_str(raw.decode()).id_to_token(end)
    special = {} if name is None else {"eos_token": name, "pad_token": name}
    # Generic: transformers reads tokenizer.json as it is, and does not tidy what is decoded.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    return _Tokens(tokenizer=raw, config=config, beside={}, end=end)


def _bytes_as_bpe(tokenizer: TextTokenizer) -> bytes:
    """Bytes as a byte-level BPE that merges nothing: token b is byte b, as in the corpus."""
    if [bytes([byte]) for byte in range(256)] != list(tokenizer.token_bytes):
        raise AssertionError("a tokenizer without a file that is not of bytes")
    written = Tokenizer(models.BPE(vocab=byte_of_character(), merges=[]))
    written.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    written.decoder = decoders.ByteLevel()
    return written.to_str().encode()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside it, which takes its place when all is written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Mistake(f"--to: {folder} is there already; name a new folder, or an empty one")
    if not folder.absolute().parent.is_dir():
        raise Mistake(f"--to: there is no folder {folder.absolute().parent} to write {folder.name} into; make it first")
    with TemporaryDirectory(
        dir=folder.absolute().parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True
    ) as made:
        yield Path(made)
        Path(made).chmod(0o755)
        Path(made).rename(folder)
