"""What every test shares: markers that skip where a machine cannot, hypothesis profiles."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A deadline fails healthy tests on a busy machine; a fixed seed keeps CI's verdict repeatable.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True, scope="session")
def _no_runs_of_ones_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The developer's own measurements must not stand in the tests' verdicts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU that torch can use"))
        if item.get_closest_marker("network") and os.environ.get("WORTHIT_NETWORK") != "1":
            item.add_marker(pytest.mark.skip(reason="needs the network: WORTHIT_NETWORK=1"))


@functools.cache
def has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
