"""Columns on the disk that grow by the rows of one batch after the other, and are gone on from after a kill."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from artifacts import ArtifactError
from pipeline.training.sealed_file import load_sealed, save_sealed, unusable

_SEAL = "rows.pt"


@dataclass(frozen=True, slots=True)
class Column:
    """One value a row, or `width` of them."""

    dtype: torch.dtype
    width: int | None = None

    @property
    def row_bytes(self) -> int:
        return (1 if self.width is None else self.width) * self.dtype.itemsize


class Appended:
    """Rows up to the last `seal` outlive whatever ends the process; those after it are made again.

    They are written, not mapped: a full disk is then an error and no signal.
    """

    def __init__(self, folder: Path, columns: Mapping[str, Column]) -> None:
        self.columns, self._folder, self._stack = dict(columns), folder, ExitStack()
        self._digests = {name: hashlib.sha256() for name in columns}
        self.rows = self._sealed_rows()
        with _told(folder):
            self._files = {name: self._stack.enter_context(self._path(name).open("ab")) for name in columns}
            for name, file in self._files.items():
                file.truncate(self.rows * columns[name].row_bytes)

    def append(self, values: Mapping[str, Tensor]) -> None:
        """One tensor a column, of as many rows each."""
        with _told(self._folder):
            for name, file in self._files.items():
                data = values[name].to("cpu", self.columns[name].dtype).contiguous().numpy().data
                file.write(data)
                self._digests[name].update(data)
        self.rows += len(next(iter(values.values())))

    def seal(self) -> None:
        """Brings all rows down to the disk."""
        with _told(self._folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
        save_sealed({"rows": self.rows, "sha256": digests}, self._folder / _SEAL)

    def tensors(self) -> dict[str, Tensor]:
        """The sealed columns, mapped: what is not read takes no memory. They stay when the files are removed."""
        return {name: self._mapped(name, column) for name, column in self.columns.items()}

    def close(self) -> None:
        self._stack.close()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.rows"

    def _mapped(self, name: str, column: Column) -> Tensor:
        values = column.row_bytes // column.dtype.itemsize * self.rows
        flat = torch.from_file(str(self._path(name)), shared=False, size=values, dtype=column.dtype)
        return flat if column.width is None else flat.view(self.rows, column.width)

    def _sealed_rows(self) -> int:
        """How many rows there are to go on from; their digests are those of what lies there."""
        seal = self._folder / _SEAL
        if not seal.exists():
            return 0
        state = load_sealed(seal)
        rows, digests = state.get("rows"), state.get("sha256")
        if type(rows) is not int or rows < 0 or not isinstance(digests, dict) or digests.keys() != self.columns.keys():
            raise unusable(seal, "is of another form: it is not of these columns")
        for name, column in self.columns.items():
            if not self._take(name, rows * column.row_bytes) or self._digests[name].hexdigest() != digests[name]:
                raise unusable(self._path(name), "is damaged, its bytes do not give the digest that was sealed")
        return rows

    def _take(self, name: str, size: int) -> bool:
        """Reads so many bytes into the column's digest; false if there are fewer."""
        try:
            with self._path(name).open("rb") as file:
                while size and (data := file.read(min(size, 1 << 20))):
                    self._digests[name].update(data)
                    size -= len(data)
        except OSError as error:
            raise unusable(self._path(name), f"cannot be read ({error.strerror})") from None
        return size == 0


@contextmanager
def appended(folder: Path | None, columns: Mapping[str, Column]) -> Iterator[Appended]:
    """In this folder, or for as long as it takes where None is given."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory())) if folder is None else folder
        table = Appended(place, columns)
        stack.callback(table.close)
        yield table


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"could not write rows into {folder}: {error.strerror or error}; see that there is room and that it can "
            "be written to, and run again"
        ) from error
