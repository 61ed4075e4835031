"""Data sets of the Hugging Face hub: which commit one is at, and its rows."""

from collections.abc import Iterator
from pathlib import Path

from kernels.errors import Mistake
from pipeline.corpus.readers import Reading, Row, readable, row_of
from pipeline.corpus.remarks import Remarks, repr_of


def hf_parts(location: str) -> tuple[str, str | None, str | None]:
    """(name, config, revision) of `hf:NAME[:CONFIG][@REVISION]`."""
    rest, _, revision = location.removeprefix("hf:").partition("@")
    name, _, config = rest.partition(":")
    return name, config or None, revision or None


def hf_commit(name: str, revision: str | None) -> str:
    """The commit that the hub, or without a network its cache, has now. It stands for the contents."""
    import huggingface_hub

    try:
        # The folder of a snapshot is named after its commit; the README is all that is fetched for it.
        folder = huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns="README.md"
        )
    except huggingface_hub.errors.HFValidationError:
        raise Mistake(f"{repr_of(f'hf:{name}')} is no name of a data set; wanted hf:NAME or hf:OWNER/NAME") from None
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise Mistake(
            f"'hf:{name}' cannot be reached ({type(error).__name__}); check its name and the network, "
            f"or name a local file"
        ) from error
    return Path(folder).name


def hf_rows(location: str, reading: Reading, remarks: Remarks) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise Mistake(f"{location!r} needs the package `datasets`; run: pip install -e '.[hf]'") from error
    name, config, revision = hf_parts(location)
    rows = datasets.load_dataset(name, config, split=reading.hf_split, streaming=True, revision=revision)
    for number, row in enumerate(rows):
        where = f"{location} row {number}, counted from 0"
        yield from readable(
            lambda row=row, number=number, where=where: row_of(str(number), row, where, reading, remarks),
            reading,
            remarks,
        )
