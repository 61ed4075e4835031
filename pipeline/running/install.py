"""`python -m pipeline.running.install WORDS`: the pinned packages into this Python's environment, for `make setup`.

PyPI's torch for Linux brings CUDA's libraries. Where no GPU is there, the build for CPUs is asked for at PyTorch's own
index, if that answers within seconds; an index that the user has configured is taken as it is. The words go to
`pip install`. Nothing but the standard library is imported: nothing else is installed yet.
"""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_SIZE, CUDA_SIZE = "0.2 GB", "2.7 GB"
"""torch 2.13.0 for Linux on x86-64, the latter with the 16 packages of NVIDIA that it needs there, 2026-11-29."""
SECONDS_TO_ANSWER, SECONDS_TO_CHOOSE = 3.0, 5.0
PIP = (sys.executable, "-m", "pip")
QUIET = ("-qq", "--disable-pip-version-check", "-c", str(CONSTRAINTS))


def main(words: Sequence[str]) -> int:
    """What pip ends with; its errors are on stderr."""
    print(f"installing the pinned packages into {sys.prefix}; the first time takes minutes", flush=True)
    version = pinned("torch")
    index = None if installed("torch") == version else index_for(version)
    if index is not None:
        words_for_torch = ("--no-deps", "--index-url", index, f"torch=={version}")
        if subprocess.run([*PIP, "install", *QUIET, *words_for_torch], check=False).returncode:
            print(f"pip could not take torch from there; it comes with the others, about {CUDA_SIZE}", flush=True)
    return subprocess.run([*PIP, "install", *QUIET, *words], check=False).returncode


def pinned(package: str) -> str:
    """The version in constraints.txt."""
    found = re.search(rf"^{package}==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    assert found is not None, f"constraints.txt pins {package}"
    return found[1]


def installed(package: str) -> str | None:
    """The version that is installed, without what follows a plus: a build for CPUs is as good."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def index_for(version: str, cpu_index: str = CPU_INDEX) -> str | None:
    """The index to take torch from; None for what pip does by itself. One line says so, but where a GPU is."""
    if sys.platform != "linux" or has_gpu():
        return None
    if has_own_index(pip_config()):
        print(
            f"no GPU here; torch comes from the index that pip is configured to, {CUDA_SIZE} if with CUDA", flush=True
        )
        return None
    end = time.monotonic() + SECONDS_TO_CHOOSE
    trial = ("--dry-run", "--ignore-installed", "--no-deps", "--retries", "0", "--report", "-", f"torch=={version}")
    with subprocess.Popen(
        [*PIP, "install", *QUIET, *trial], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as asked:  # meanwhile
        try:
            if answers(cpu_index, version, SECONDS_TO_ANSWER):
                print(f"no GPU here; torch {version} for CPUs comes from {cpu_index}, about {CPU_SIZE}", flush=True)
                return cpu_index
            offered = _offered(asked, end - time.monotonic())
        finally:
            asked.kill()
    size = CPU_SIZE if offered.endswith("+cpu") else f"with CUDA's libraries about {CUDA_SIZE}"
    print(f"no GPU here, and {cpu_index} has not answered; pip takes torch {offered or version}, {size}", flush=True)
    return None


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether a driver of NVIDIA's or AMD's shows a device, or `nvidia-smi` lists one."""
    if any(devices.glob("nvidia[0-9]*")) or (devices / "kfd").exists():
        return True
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout


def pip_config() -> str:
    """pip's configuration, of its files and of the environment, a line a setting."""
    return subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=False).stdout


def has_own_index(config: str) -> bool:
    """Whether the user has named an index that takes the place of PyPI, or wants none."""
    return re.search(r"\.(index-url|no-index)=", config) is not None


def answers(index: str, version: str, seconds: float) -> bool:
    """Whether the index offers this Python torch for CPUs in that version, and says so within so many seconds."""
    page: list[str] = []

    def read() -> None:
        try:
            with urlopen(f"{index}/torch/", timeout=seconds) as answer:
                page.append(answer.read(10_000_000).decode("utf-8", "replace"))
        except (URLError, OSError, ValueError):
            return

    # A timeout of urlopen bounds each wait; looking up a name, and many small waits, it does not.
    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(seconds)
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return bool(page) and re.search(rf"torch-{re.escape(version)}(\+|%2B)cpu-{python}-", page[0]) is not None


def _offered(asked: "subprocess.Popen[bytes]", seconds: float) -> str:
    """The version that pip would take; empty if it has not said so by then."""
    try:
        report, _ = asked.communicate(timeout=max(0.1, seconds))
        return json.loads(report)["install"][0]["metadata"]["version"]
    except (subprocess.TimeoutExpired, ValueError, LookupError):
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
