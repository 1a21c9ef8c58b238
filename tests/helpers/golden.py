"""Golden files: outputs as they were last looked at. `UPDATE_GOLDEN=1 pytest` writes them anew; look at the diff."""

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "golden"


def check_golden(name: str, content: str) -> None:
    """Assert that `content` is what stands in tests/golden/`name`."""
    path = FOLDER / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="")
    expected = path.read_bytes().decode()
    assert content == expected, f"{path} differs; if the change is meant, run the test with UPDATE_GOLDEN=1"
