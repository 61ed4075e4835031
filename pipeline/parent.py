"""A process that ends with the one that started it, however that one ends."""

import os
import threading
import time
from collections.abc import Callable


def end_with(parent: int, end: Callable[[], object]) -> None:
    """Calls `end`, in a thread of its own, within a second after the process `parent` is no more this one's parent:
    killed, for example, without a chance to tell anyone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        end()

    threading.Thread(target=watch, daemon=True).start()
