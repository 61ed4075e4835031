"""What `pip install .` installs: every tracked file of our packages, and a copy that works by itself elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from artifacts import Store
from kernels import backends
from tests.test_house import PACKAGES, ROOT

INSIDE = """
import json, sys
from pathlib import Path
from kernels import backends
from stages.__main__ import main
from stages.errors import exit_code
site, text = sys.argv[1:]
mistake = exit_code(lambda: main(["prepare-corpus", "--config.sources", "nowhere.txt"]))
code = exit_code(lambda: main(["prepare-corpus", "--config.sources", text, "--config.tokenizer", "bytes"]))
packages = ("artifacts", "kernels", "pipeline", "stages")
ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in packages]
strays = [module.__name__ for module in ours if module.__file__ and not Path(module.__file__).is_relative_to(site)]
print(json.dumps({"mistake": mistake, "code": code, "library": backends._library_name(), "strays": strays}))
"""


def _files_of(*places: str) -> list[str]:
    """Files that git tracks, and new ones that it does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sorted({name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy: building leaves folders behind, whose contents the next wheel would hold."""
    source, into = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in _files_of(*PACKAGES, "flows.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(into), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = into.glob("*.whl")
    return made


def test_the_wheel_holds_every_file_of_our_packages_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = sorted(name for name in archive.namelist() if ".dist-info/" not in name)
    assert held == _files_of(*PACKAGES, "flows.py")


def test_the_installed_copy_runs_a_stage_in_another_folder_and_tells_a_mistake_in_one_sentence(
    wheel, text_file, tmp_path
):
    site = tmp_path / ".venv" / "site-packages"
    with zipfile.ZipFile(wheel) as archive:  # as pip installs a wheel of pure Python
        archive.extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", INSIDE, str(site), str(text_file)],
        cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "there is no file or folder 'nowhere.txt'" in done.stderr
    assert "Traceback" not in done.stderr
    # The library's name is a digest of the C++ sources: they are there, byte for byte.
    said = {"mistake": 2, "code": 0, "library": backends._library_name(), "strays": []}
    assert json.loads(done.stdout.splitlines()[-1]) == said
    (made,) = Store(elsewhere / "store").manifests()
    assert made.kind == "corpus"
