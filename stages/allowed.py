"""The folders from which runs that are started from outside, by form or API, may read and to which they may write."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kernels.errors import Mistake
from pipeline.corpus.sources import Source
from pipeline.corpus.text_files import TABLE_SUFFIXES, TEXT_SUFFIXES, user_path
from pipeline.stage import StageConfig
from stages.import_monet import ImportMonetConfig
from stages.import_peer import ImportPeerConfig
from stages.prepare_corpus import PrepareCorpusConfig

ALLOWED = "LEGIBLE_ALLOWED_FOLDERS"
"""In the environment of `serve`, and so of the runs that it starts: a JSON list of folders. Unset, any may be used."""

_READ = TEXT_SUFFIXES | TABLE_SUFFIXES
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def allow(folders: Sequence[Path]) -> None:
    """From now on, runs of this process and of those that it starts are held to these folders and what is below."""
    os.environ[ALLOWED] = json.dumps([str(folder.resolve()) for folder in folders])


def check_allowed(store: str, config: StageConfig) -> None:
    """ValueError if the store, or text to be read, lies elsewhere; symbolic links count as what they lead to.

    A store without a name is refused of everybody: to whoever joins paths it is the working directory.
    """
    if not store.strip():
        raise Mistake(f"store: got {store[:40]!r}, wanted: the folder of a store")
    if ALLOWED not in os.environ:
        return
    folders = [Path(folder) for folder in json.loads(os.environ[ALLOWED])]
    _check("store", [store], folders)
    if isinstance(config, PrepareCorpusConfig):
        _check("sources", (path for text in config.sources for path in _local(text)), folders)
        _check("tokenizer_folder", _folder(config.tokenizer_folder), folders)
    if isinstance(config, ImportPeerConfig) or (
        isinstance(config, ImportMonetConfig) and not config.source.startswith("hf:")  # which no other stage takes
    ):
        _check("source", _folder(config.source), folders)


def _check(what: str, paths: Iterable[str | Path], folders: Sequence[Path]) -> None:
    for path in paths:
        if "\0" in str(path):
            raise Mistake(f"{what}: got {str(path)[:400]!r}, which no file is called; write another path")
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(folder) for folder in folders):
            shown = str(path) if str(real) == str(path) else f"{path}, which is {real}"
            raise Mistake(
                f"{what}: got {shown[:400]}; served runs take what is below {' or '.join(map(str, folders))} alone; "
                "name more folders with `python flows.py serve --allow DIR`"
            )


def _folder(text: str) -> Iterator[Path]:
    """A folder that is read, and the links in it."""
    if text:
        folder = user_path(text)
        yield folder
        yield from (file for file in folder.glob("*") if file.is_symlink())


def _local(text: str) -> Iterator[Path]:
    """What a source may read on this machine: nothing for a data set of the hub."""
    source = Source.parse(text)
    for location in _hub_locations(source.location) if source.is_hf else [source.location]:
        path = user_path(location)
        yield path
        yield from (file for file in path.rglob("*") if file.is_symlink() and file.suffix.lower() in _READ)


def _hub_locations(location: str) -> list[str]:
    """What `hf:` may stand before on this machine: `datasets` takes a folder for a data set, too."""
    location = location.removeprefix("hf:")
    name = re.split("[:@]", location)[0]
    is_hub = _HUB_NAME.fullmatch(name) and not any(Path(path).exists() for path in (name, location))
    return [] if is_hub else [name, location]
