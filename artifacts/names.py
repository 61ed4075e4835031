"""From what a person writes to the id that is meant: the id, its beginning, or its fingerprint's."""

import difflib
import re
from collections.abc import Sequence

from artifacts.errors import ArtifactError
from artifacts.lineage import ArtifactId


def resolve_name(written: str, ids: Sequence[ArtifactId], where: str) -> ArtifactId:
    """The one id that begins so. The whole fingerprint means the first attempt, as the whole id does."""
    if not re.fullmatch(r"[a-z0-9~-]+", written):
        raise ArtifactError(f"{written!r} is no artifact id; ids look like train-monet-0123456789ab")
    shorts = {id: short(id) for id in ids}
    found = [id for id in ids if written in (id, shorts[id])]
    if not found and not re.search(r"(^|-)[0-9a-f]{12}$", written):  # a whole id never means another attempt
        found = [id for id in ids if id.startswith(written) or shorts[id].startswith(written)]
    if len(found) > 1:
        raise ArtifactError(f"{written!r} may be {enumerated(found)}; write more of the id")
    if not found:
        close = difflib.get_close_matches(written, ids, n=3, cutoff=0.5)
        advice = f"did you mean {enumerated(close)}?" if close else "`python -m artifacts ls` lists them"
        raise ArtifactError(f"no artifact {written!r} in {where} ({len(ids)} others are there); {advice}")
    return found[0]


def short(id: ArtifactId) -> str:
    """The id without its stage."""
    return id.rpartition("-")[2]


def enumerated(ids: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(ids[:most]) + more
