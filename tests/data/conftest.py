"""The small set that tests compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from dove_data import tokenize
from tests.data.small import folder_of, save_model, settings_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def made(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set made without any disturbance; nobody may change it."""
    folder = tmp_path_factory.mktemp("sets") / "made"
    result = tokenize([pictures], folder, settings_of(model), workers=1)
    assert result.made == 3
    return folder
