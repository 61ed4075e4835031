"""Names that Prefect makes up are known from those that people type."""

import pytest
from prefect.utilities.names import generate_slug

from pipeline.running.run_names import is_made_up


def test_names_that_the_server_makes_up_are_made_up():
    assert all(is_made_up(generate_slug(2)) for _ in range(300))


@pytest.mark.parametrize("name", ["Rustic-Otter", "Incredible-Dog", "Small-Sea Co"])
def test_names_that_the_form_proposes_are_made_up(name):
    assert is_made_up(name)


@pytest.mark.parametrize("name", ["my-run", "long run of Monday", "Rustic-otter-2", "baseline", "seed 3", "rate-3e-3"])
def test_names_that_people_type_are_kept(name):
    assert not is_made_up(name)
