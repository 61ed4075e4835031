"""A store and a way to fill it in one line."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from artifacts import ArtifactId, Circumstance, Recipe, Store
from tests.circumstance import CIRCUMSTANCE

Publish = Callable[..., ArtifactId]


@pytest.fixture
def circumstance() -> Circumstance:
    return CIRCUMSTANCE


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def publish(store: Store, circumstance: Circumstance) -> Publish:
    """publish(stage, config, **inputs): an artifact of that recipe, with two tensors and a file."""

    def publish(
        stage: str = "prepare-corpus",
        config: Mapping[str, object] | None = None,
        *,
        kind: str = "corpus",
        fill: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        **inputs: ArtifactId,
    ) -> ArtifactId:
        return store.publish(
            recipe=Recipe(stage=stage, stage_version=1, config=dict(config or {}), seed=0, inputs=inputs),
            kind=kind,
            spec={"d_model": 12},
            tensors={"keys": torch.full((7, 12), fill), "index": torch.arange(9, dtype=torch.int32)},
            metrics=metrics or {"held_out_loss_nats": 2.5},
            files={"tokenizer.json": b'{"model": "bytes"}'},
            circumstance=circumstance,
        )

    return publish
