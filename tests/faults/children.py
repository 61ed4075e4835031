"""Forked children: each does one job, may be killed while it does, and is not waited for for ever."""

import json
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import ArtifactError

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a child ended, and what it had to say."""

    signal: int | None = None
    hung: bool = False
    value: Any = None
    told: str | None = None
    """The sentence of an ArtifactError."""
    raised: str | None = None
    """The traceback of any other exception."""

    @property
    def problem(self) -> str | None:
        """What kept the child from returning, if anything did."""
        if self.hung:
            return f"hung for {PATIENCE_SECONDS:g} s"
        if self.signal is not None:
            return f"died of signal {self.signal}"
        return self.told or self.raised


@dataclass(frozen=True, slots=True)
class Child:
    """A process that runs."""

    pid: int
    answer: Path

    def wait(self, seconds: float = PATIENCE_SECONDS) -> Ending:
        """Its ending; if it does not come to one in time, it is killed and has hung."""
        descriptor = os.pidfd_open(self.pid)
        try:
            ended, _, _ = select.select([descriptor], [], [], seconds)
        finally:
            os.close(descriptor)
        if not ended:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        answer = json.loads(self.answer.read_text() or "{}")
        self.answer.unlink()
        if not ended:
            return Ending(hung=True)
        if os.WIFSIGNALED(status):
            return Ending(signal=os.WTERMSIG(status))
        return Ending(**answer)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def started(job: Callable[[], Any]) -> Child:
    """A child that does the job, whose result JSON must be able to hold."""
    descriptor, name = tempfile.mkstemp(prefix="answer-")
    os.close(descriptor)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _answer(job, descriptor=os.open(name, os.O_WRONLY))
    return Child(pid, Path(name))


def ending_of(job: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Ending:
    """Does the job in a child and waits for it."""
    return started(job).wait(seconds)


def _answer(job: Callable[[], Any], descriptor: int) -> None:
    """Ends this process with the job's result, or with what went wrong."""
    answer: dict[str, Any] = {}
    try:
        answer = {"value": job()}
    except ArtifactError as error:
        answer = {"told": str(error)}
    finally:
        if sys.exc_info()[0] is not None:
            answer = {"raised": traceback.format_exc()}
        os.write(descriptor, json.dumps(answer).encode())
        os._exit(0)
