"""README: its Python runs as it stands, its files are there, and it is no longer than a reader's patience."""

import re
from pathlib import Path

from tests.tiny_symbols import symbols_model, symbols_store

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES = 150


def python_of(section: str) -> str:
    """The indented block of Python in this section, without its indent."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return "\n".join(line[4:] for line in text.splitlines() if line.startswith("    ") or not line.strip())


def test_the_lines_of_python_run_on_a_store_as_they_stand(tmp_path, monkeypatch, capsys):
    symbols_store(tmp_path / "store", symbols_model())
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of("From Python"), "README.md", "exec"), {"__name__": "readme"})
    assert "without the first" in capsys.readouterr().out


def test_every_file_that_is_linked_to_is_there():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_it_is_short():
    assert len(README.splitlines()) <= MOST_LINES
