"""Pages that are whole in one file: texts of models and corpora stay texts, and nothing is fetched."""

import hashlib
from base64 import b64encode
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from pipeline.corpus.visible import quoted_text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}"
"""What a browser lets such a page do, whatever is in it: its own styles and the scripts named by their digests."""


def rendered(template: Path, script: Path, **values: object) -> str:
    """The template, every value escaped where it stands, with this script as the only one that may run.

    The filter `quoted` shows a text in quotes, what is not seen as escapes.
    """
    code = script.read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(f"\n{code}".encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["quoted"] = quoted_text
    made = environment.from_string(template.read_text(encoding="utf-8"))
    return made.render(script=f"\n{code}", policy=POLICY.format(scripts=f"'sha256-{digest}'"), **values)
