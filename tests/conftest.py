import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def realdata_dir() -> Path:
    """The folder of real recordings beside the checkout; tests that ask for it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data: the real recordings are not part of the project")
    return folder
