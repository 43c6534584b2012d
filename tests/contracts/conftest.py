"""One deployment for the session; every test gets it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import boa
import pytest
from boa.interpret import set_cache_dir

from tests.contracts.world import World


@pytest.fixture(scope="session")
def deployed(request: pytest.FixtureRequest) -> World:
    set_cache_dir(str(request.config.cache.mkdir("contracts")))
    return World()


@pytest.fixture
def world(deployed: World) -> Iterator[World]:
    with boa.env.anchor():
        yield deployed
