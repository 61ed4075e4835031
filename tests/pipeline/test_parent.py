"""A process ends with its parent, and not before."""

import os
import threading

from pipeline.parent import end_with


def test_the_end_comes_when_the_parent_is_another_and_not_before():
    orphaned, with_parent = threading.Event(), threading.Event()
    end_with(os.getppid(), with_parent.set)
    end_with(os.getpid(), orphaned.set)  # nobody is its own parent
    assert orphaned.wait(30)
    assert not with_parent.is_set()
