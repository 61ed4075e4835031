"""Where a store may be between two runs: somewhere else, or in two places."""

import shutil

from artifacts import Store


def same(store: Store) -> Store:
    return store


def moved(store: Store) -> Store:
    """The same folder under another name and parent."""
    target = Store(store.root.parent / "elsewhere" / "artifacts")
    target.root.parent.mkdir()
    if store.root.is_dir():
        store.root.rename(target.root)
    return target


def copied(store: Store) -> Store:
    """A copy, with new times; the first one is no longer there."""
    target = Store(store.root.parent / "copy")
    if store.root.is_dir():
        shutil.copytree(store.root, target.root, copy_function=shutil.copyfile)
        shutil.rmtree(store.root)
    return target
