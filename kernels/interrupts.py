"""Ctrl-C while a program still imports: it ends at once, without the traceback of whatever was being loaded."""

import signal
import sys


def end_at_once_while_importing(*, command: bool | None = None) -> None:
    """Until the command begins, which `artifacts.as_command` makes it hear of Ctrl-C, an interrupt ends the process.

    Of a `command` alone: by itself what Python runs with -m, and neither a library nor tests. Who ignores interrupts,
    as what a shell runs in the background does, goes on doing so.
    """
    if command is None:
        command = sys.argv[:1] == ["-m"]  # so it stands there while the packages around a command are imported
    if command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
