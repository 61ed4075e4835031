"""What made an artifact: the recipe, which is its identity, and the circumstances, only recorded."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NewType, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from artifacts.fingerprint import fingerprint, plain

ArtifactId = NewType("ArtifactId", str)
"""`<stage>-<fingerprint of the recipe>`, with `~2`, `~3`... for further attempts; also the folder's name."""

SLUG = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
ID = SLUG[:-1] + r"-[0-9a-f]{12}(~[1-9][0-9]*)?$"
SHA256 = r"^[0-9a-f]{64}$"
LAST_SEQUENCE = 2**53
"""No store comes to it; numbers of JSON are whole up to it for every reader."""


def _utc(text: str) -> str:
    # fromisoformat takes any character between day and hour.
    if not re.fullmatch(r"[0-9TZ:.+ -]+", text) or datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError(f"{text!r} is no time in UTC; write it like 2026-01-31T12:00:00+00:00")
    return text


# The pattern keeps an id from a foreign manifest from pointing outside the store.
_Id = Annotated[ArtifactId, Field(pattern=ID)]
_Json = Annotated[dict[str, Any], BeforeValidator(lambda value: plain(value, "config"))]


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str = Field(pattern=SLUG, description="Slug of the stage, such as distill-peer; never a module path.")
    stage_version: int = Field(
        ge=0, lt=2**31, description="Raised by hand when the same config must no longer give the same artifact."
    )
    config: _Json = Field(description="Every knob of the stage, in JSON's own types.")
    seed: int = Field(ge=-(2**63), lt=2**64, description="Seed of all the stage's randomness.")
    sources_sha256: str | None = Field(
        default=None,
        pattern=SHA256,
        description="Digest of what the stage reads outside the store; only prepare-corpus has one.",
    )


class Recipe(_Asked):
    """What was asked for: the identity of an artifact, whenever and wherever it is made."""

    inputs: dict[str, _Id] = Field(description="The artifacts read, by the name of the stage's parameter.")

    @property
    def id(self) -> ArtifactId:
        """The name of the first artifact made by this recipe."""
        return ArtifactId(f"{self.stage}-{fingerprint(self)}")


class Circumstance(BaseModel):
    """When and where it was made: recorded, never fingerprinted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit: str = Field(description="Git commit of the code, or 'unknown' outside a checkout.")
    dirty: bool = Field(description="Whether the code differed from that commit.")
    torch: str = Field(description="Version of torch.")
    python: str = Field(description="Version of Python.")
    device: str = Field(
        description="What the stage ran on: cpu, with its C++ kernels if it had them, or a GPU's model."
    )
    seconds: float = Field(ge=0, le=1e12, allow_inf_nan=False, description="Time the stage took, in seconds.")
    created: Annotated[str, AfterValidator(_utc)] = Field(
        description="End of the stage, ISO 8601 in UTC; for people, since order goes by sequence."
    )

    @classmethod
    def now(cls, *, device: str, seconds: float) -> Self:
        """The circumstances of this process at this moment. The code is that of `code_of_process`."""
        import torch  # only who makes an artifact waits for it

        commit, dirty = code_of_process()
        return cls(
            commit=commit,
            dirty=dirty,
            torch=str(torch.__version__),
            python=platform.python_version(),
            device=device,
            seconds=seconds,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


class InputRef(BaseModel):
    """An input as it was when it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: _Id = Field(description="The input's id, attempt included.")
    sha256: str = Field(pattern=SHA256, description="The input's content_sha256.")


class Lineage(_Asked, Circumstance):
    """Recipe and circumstances together, with the inputs' digests and the place in the store's order."""

    inputs: dict[str, InputRef] = Field(description="The artifacts read, by parameter, with their digests.")
    sequence: int = Field(
        ge=1, le=LAST_SEQUENCE, description="Place in the order of publication, counted by the store."
    )

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            stage=self.stage,
            stage_version=self.stage_version,
            config=self.config,
            seed=self.seed,
            sources_sha256=self.sources_sha256,
            inputs={role: ref.id for role, ref in self.inputs.items()},
        )


@cache
def code_of_process() -> tuple[str, bool]:
    """`code_state` when this was called first: what a process runs is what it loaded, whatever is committed since."""
    return code_state()


def code_state() -> tuple[str, bool]:
    """(commit, dirty) of the repository that holds this code; ("unknown", True) outside a checkout."""
    try:
        # Installed elsewhere, such as in a .venv inside some other repository, this file is not tracked.
        _git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def _git(*args: str) -> str:
    # A git hook sets GIT_DIR and the like, which would lead to the repository of the hook.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).resolve().parents[1]), *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
