"""What lies in a store, and recipes of nothing but a stage and its settings."""

from artifacts import Recipe, Store


def names(store: Store) -> set[str]:
    """All that lies in the store but the state, which holds the lock."""
    return {path.name for path in store.root.glob("*")} - {".state"} if store.root.is_dir() else set()


def recipe(stage: str = "prepare-corpus", **config: object) -> Recipe:
    return Recipe(stage=stage, stage_version=1, config=config, seed=0, inputs={})
