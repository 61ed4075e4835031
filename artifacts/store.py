"""The store: one folder an artifact, written once and whole, named after its recipe."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.artifact import Artifact, check_files, file_damage, read_manifest
from artifacts.errors import ArtifactError
from artifacts.fingerprint import canonical_json, plain, sha256_of_file
from artifacts.lineage import ID, LAST_SEQUENCE, SLUG, ArtifactId, Circumstance, InputRef, Lineage, Recipe
from artifacts.manifest import (
    MANIFEST,
    MOST_BYTES,
    WEIGHTS,
    FileRecord,
    Manifest,
    check_file_name,
    check_metrics,
    parse_manifest,
)
from artifacts.names import enumerated, resolve_name
from artifacts.regular_file import read_regular
from artifacts.scratch import (
    held_folder,
    locked,
    move_into_place,
    remove_unheld,
    scratch_folder,
    scratch_folders,
    sync_folder,
    write_durably,
)
from artifacts.tensors_file import write_tensors
from artifacts.verification import Damage, damages

if TYPE_CHECKING:
    from torch import Tensor

LATEST = "latest"
LONGEST_NAME = f"{'s' * 64}/{'f' * 128}"
"""An artifact and a file of it, of names as long as they come."""
Kinds = str | tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """All manifests that can be read, oldest first, and a word on each that cannot."""

    manifests: list[Manifest]
    damaged: list[Damage]


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of artifacts. Nothing in it is opened, or made, before it is asked for."""

    root: Path

    def __post_init__(self) -> None:
        """ArtifactError where no file can lie in it, or nobody but others may look; all else is told when it is met."""
        try:
            (self.root / LONGEST_NAME).lstat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ArtifactError(
                    f"the store's name is too long for this system: {len(str(self.root)):,} characters, beginning "
                    f"with {str(self.root)[:40]!r}; name a folder with a shorter one"
                ) from None
            if error.errno == errno.EACCES:
                raise ArtifactError(
                    f"the store at {str(self.root)[:400]!r} cannot be looked into ({error.strerror}); "
                    "name another one, or see who may"
                ) from None
        except ValueError:
            raise ArtifactError(f"no folder can be called {str(self.root)[:40]!r}; name another store") from None

    def require_folder(self) -> None:
        """ArtifactError where there is no store, for commands that would have nothing to say of it."""
        if not self.root.is_dir():
            raise ArtifactError(f"there is no store at {self.root}; name its folder with --store")

    @property
    def state_dir(self) -> Path:
        """Where mutable things lie: locks, checkpoints of running stages, ids of cards. It can be rebuilt."""
        return self.root / ".state"

    def ids(self) -> list[ArtifactId]:
        """The names of all artifacts, damaged ones included."""
        if not self.root.is_dir():
            return []
        try:
            return self._folders()
        except OSError as error:
            raise ArtifactError(
                f"the store at {self.root} cannot be looked into ({error.strerror}); name another one, or see who may"
            ) from error

    def _folders(self) -> list[ArtifactId]:
        with os.scandir(self.root) as entries:
            # A link to nothing, or a file, is told as damage: what has an artifact's name is meant to be one.
            return sorted(ArtifactId(entry.name) for entry in entries if re.fullmatch(ID, entry.name))

    def listing(self) -> Listing:
        """Reads every manifest, without checking digests."""
        manifests, damaged = [], []
        for id in self.ids():
            try:
                manifests.append(parse_manifest(read_regular(self.root / id / MANIFEST, MOST_BYTES), id))
            except OSError as error:
                damaged.append(Damage(id=id, what=f"{MANIFEST} cannot be read ({error.strerror})"))
            except ArtifactError as error:
                damaged.append(Damage(id=id, what=str(error).removeprefix(f"{id}: ")))
        manifests.sort(key=lambda manifest: (manifest.lineage.sequence, manifest.id))
        return Listing(manifests=manifests, damaged=damaged)

    def manifests(self) -> list[Manifest]:
        """The manifests that can be read, oldest first; `listing` and `verify` name the others."""
        return self.listing().manifests

    def latest(self, *, kind: Kinds = None, stage: str | None = None) -> ArtifactId | None:
        """The artifact published last, by sequence number: clocks go back, the count does not."""
        for manifest in reversed(self.manifests()):
            if _is_of(manifest, kind) and stage in (None, manifest.lineage.stage):
                return manifest.id
        return None

    def find(self, recipe: Recipe) -> ArtifactId | None:
        """The last attempt of this recipe that is here and has an intact manifest."""
        attempts = self._attempts(recipe.id)
        return attempts[-1].id if attempts else None

    def resolve(self, id_or_prefix: str, *, kind: Kinds = None) -> ArtifactId:
        """The full id for an id, its beginning, the beginning of its fingerprint, or "latest"."""
        if id_or_prefix == LATEST:
            return self._resolve_latest(kind)
        if not self.root.is_dir():
            raise ArtifactError(
                f"no artifact {id_or_prefix!r}: there is no store at {self.root} yet; "
                "run a stage, or name another store"
            )
        return resolve_name(id_or_prefix, self.ids(), str(self.root))

    def manifest(self, id_or_prefix: str) -> Manifest:
        """The manifest alone, its digest checked; the files are not read."""
        return read_manifest(self.root / self.resolve(id_or_prefix))

    def open(self, id_or_prefix: str, *, kind: Kinds = None) -> Artifact:
        """The artifact, after its manifest, every file's sha256 and its kind were checked."""
        folder = self.root / self.resolve(id_or_prefix, kind=kind)
        manifest = read_manifest(folder)
        if not _is_of(manifest, kind):
            raise ArtifactError(
                f"{manifest.id} is a {manifest.kind!r}, made by {manifest.lineage.stage!r}; "
                f"a {_either(kind)} was needed here"
            )
        check_files(manifest, folder)
        return Artifact(manifest=manifest, path=folder)

    def publish(
        self,
        *,
        recipe: Recipe,
        kind: str,
        spec: Mapping[str, Any],
        tensors: "Mapping[str, Tensor]",
        metrics: Mapping[str, float],
        files: Mapping[str, bytes],
        circumstance: Circumstance,
    ) -> ArtifactId:
        """Writes an artifact; a reader sees the whole of it or nothing, whatever happens meanwhile.

        If this recipe was published before, equal contents keep the old artifact, and other contents become
        a new attempt beside it: `<id>~2`, `~3`...
        """
        check_metrics(metrics)
        _check_kind(kind)
        for name in files:
            check_file_name(name)
        self._input_refs(recipe)  # a missing input is told before gigabytes are written
        with self._disk_errors(f"write {recipe.id} into {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            with scratch_folder(self.root) as scratch:
                write_tensors(scratch / WEIGHTS, tensors, recipe=canonical_json(recipe))
                for name, data in files.items():
                    write_durably(scratch / name, data)
                draft = _Draft(
                    recipe=recipe,
                    kind=kind,
                    spec=_spec(spec),
                    metrics={name: float(value) for name, value in metrics.items()},
                    files={path.name: _file_record(path) for path in sorted(scratch.iterdir())},
                    circumstance=circumstance,
                )
                with self._locked():
                    return self._settle(scratch, draft)

    def children(self, id_or_prefix: str) -> list[Manifest]:
        """What was made directly from this artifact, oldest first."""
        id = self.resolve(id_or_prefix)
        return [m for m in self.manifests() if any(ref.id == id for ref in m.lineage.inputs.values())]

    def ancestry(self, id_or_prefix: str) -> list[Manifest]:
        """The artifact, then all it was made from, newest first and each once: children before parents."""
        known: dict[ArtifactId, Manifest] = {}
        waiting = [self.resolve(id_or_prefix)]
        while waiting:
            id = waiting.pop()
            if id not in known:
                known[id] = read_manifest(self.root / id)
                waiting.extend(ref.id for ref in known[id].lineage.inputs.values())
        return sorted(known.values(), key=lambda manifest: manifest.lineage.sequence, reverse=True)

    def verify(self) -> list[Damage]:
        """Everything that is wrong with any artifact; an empty list if nothing is."""
        return damages(self.root, self.ids())

    def remove(self, id_or_prefix: str) -> ArtifactId:
        """Removes an artifact from which nothing else was made."""
        id = self.resolve(id_or_prefix)
        writing = self._disk_errors(f"remove {id} from {self.root}")
        with writing, scratch_folder(self.root) as scratch, self._locked():
            # Only now, under the lock, can nobody publish a child or remove it first.
            children = [child.id for child in self.children(id)]
            if children:
                raise ArtifactError(f"{id} stays, it is an input of {enumerated(children)}; remove those first")
            # Renamed first: a reader never meets half an artifact.
            os.rename(self.root / id, scratch / id)
            sync_folder(self.root)
        return id

    def collect_garbage(self) -> list[str]:
        """Removes what killed runs left: dead scratch folders, and checkpoints of stages finished since."""
        rubbish = [*scratch_folders(self.root), *self._spent_checkpoints()]
        with self._disk_errors(f"remove what killed runs left in {self.root}"):
            return [str(path.relative_to(self.root)) for path in rubbish if remove_unheld(path)]

    @contextmanager
    def checkpoints(
        self, recipe: Recipe, *, anew: bool = False, waiting: Callable[[], None] = lambda: None
    ) -> Iterator[Path]:
        """The folder for checkpoints of a run of this recipe, empty if `anew`; it is gone after a run that succeeds.

        One process at a time has it. Another says that it is `waiting`, and goes on when the first has ended.
        """
        path = self.state_dir / "checkpoints" / recipe.id
        with ExitStack() as stack:
            with self._disk_errors(f"keep checkpoints of {recipe.id} in {self.root}"):
                stack.enter_context(held_folder(path, waiting=waiting))
                if anew:
                    _empty(path)
            yield path
            shutil.rmtree(path, ignore_errors=True)

    def _attempts(self, id: ArtifactId) -> list[Manifest]:
        """The attempts of one recipe with intact manifests, oldest first."""
        manifests = []
        for other in self.ids():
            if other == id or other.startswith(f"{id}~"):
                try:
                    manifests.append(read_manifest(self.root / other))
                except ArtifactError:
                    continue  # made again beside it; `verify` names it
        return sorted(manifests, key=lambda manifest: manifest.lineage.sequence)

    def _input_refs(self, recipe: Recipe) -> dict[str, InputRef]:
        refs = {}
        for role, id in recipe.inputs.items():
            if not (self.root / id).is_dir():
                raise ArtifactError(
                    f"{recipe.id} needs {id} as its {role!r}, which is not in {self.root}; make it first"
                )
            refs[role] = InputRef(id=id, sha256=read_manifest(self.root / id).content_sha256)
        return refs

    def _settle(self, scratch: Path, draft: "_Draft") -> ArtifactId:
        """Gives the draft its place, under the lock."""
        manifest = draft.manifest(
            self._next_attempt(draft.recipe.id), self._input_refs(draft.recipe), self._next_number()
        )
        for old in reversed(self._attempts(draft.recipe.id)):
            if _is_same(old, manifest):
                _heal(self.root / old.id, old, scratch)
                return old.id
        written = manifest.to_json().encode()
        if len(written) > MOST_BYTES:
            raise ArtifactError(
                f"the manifest of {manifest.id} would have {len(written):,} bytes, and {MOST_BYTES:,} are read at "
                "most; put long lists into a file of the artifact"
            )
        write_durably(scratch / MANIFEST, written)
        move_into_place(scratch, self.root / manifest.id)
        return manifest.id

    def _next_number(self) -> int:
        last = max(self.manifests(), key=lambda manifest: manifest.lineage.sequence, default=None)
        if last is None:
            return 1
        if last.lineage.sequence == LAST_SEQUENCE:
            raise ArtifactError(
                f"{last.id} says that it was number {LAST_SEQUENCE:,} of its store, after which none can be given: "
                "no store comes to that; remove it, and what was made from it"
            )
        return last.lineage.sequence + 1

    def _next_attempt(self, id: ArtifactId) -> ArtifactId:
        taken = [int(other.partition("~")[2] or 1) for other in self.ids() if other.partition("~")[0] == id]
        return ArtifactId(f"{id}~{max(taken) + 1}") if taken else id

    def _resolve_latest(self, kind: Kinds) -> ArtifactId:
        id = self.latest(kind=kind)
        if id is None:
            wanted = f"a {_either(kind)}" if kind else "an artifact"
            raise ArtifactError(f"{self.root} does not hold {wanted} yet; run the stage that makes it")
        return id

    def _spent_checkpoints(self) -> list[Path]:
        """What lies in `.state/checkpoints` and no run would go on from: empty, or its artifact is here.

        A forced run begins anew each time, so that what it leaves when it is killed is of no use either.
        """
        found = sorted((self.state_dir / "checkpoints").glob("*"))
        return [path for path in found if _is_empty(path) or self._attempts(ArtifactId(path.name.split(".")[0]))]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self.state_dir / "lock"):
            yield

    @contextmanager
    def _disk_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "make room there" if full else "see that the store can be written to"
            raise ArtifactError(
                f"could not {doing}: {error.strerror or error}; nothing is half done, {advice} and run again"
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """All that is known of an artifact before it has its place in the store."""

    recipe: Recipe
    kind: str
    spec: dict[str, Any]
    metrics: dict[str, float]
    files: dict[str, FileRecord]
    circumstance: Circumstance

    def manifest(self, id: ArtifactId, inputs: dict[str, InputRef], sequence: int) -> Manifest:
        asked = self.recipe.model_dump(exclude={"inputs"})
        lineage = Lineage(**asked, **self.circumstance.model_dump(), inputs=inputs, sequence=sequence)
        return Manifest.describe(
            id=id, kind=self.kind, spec=self.spec, metrics=self.metrics, lineage=lineage, files=self.files
        )


def _is_same(old: Manifest, new: Manifest) -> bool:
    return (old.content_sha256, old.kind, old.spec) == (new.content_sha256, new.kind, new.spec)


def _heal(folder: Path, manifest: Manifest, scratch: Path) -> None:
    """Puts back the published bytes of damaged files: the same bytes have just been made again."""
    for name in manifest.files:
        if file_damage(manifest, folder, name):
            if (folder / name).is_dir():
                os.rename(folder / name, scratch / f".{name}")  # no published file has such a name
            os.replace(scratch / name, folder / name)
    sync_folder(folder)


def _is_of(manifest: Manifest, kind: Kinds) -> bool:
    return kind is None or manifest.kind in ((kind,) if isinstance(kind, str) else kind)


def _either(kind: Kinds) -> str:
    return " or ".join(repr(one) for one in ((kind,) if isinstance(kind, str) else kind or ()))


def _check_kind(kind: str) -> None:
    if not re.fullmatch(SLUG, kind):
        raise ArtifactError(f"{kind!r} cannot be a kind; use a slug such as 'peer-int4'")


def _spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {name: plain(value, f"spec[{name!r}]") for name, value in spec.items()}
    except (TypeError, ValueError) as error:
        raise ArtifactError(str(error)) from error


def _file_record(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256_of_file(path), bytes=path.stat().st_size)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_empty(path: Path) -> bool:
    try:
        return not any(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # its run has just ended; or a file
        return False
