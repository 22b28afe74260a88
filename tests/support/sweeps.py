"""What the jobs of sweeps left."""

import json
from pathlib import Path
from typing import Any


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of the jobs of the only sweep in a folder, by number."""
    found = [json.loads(path.read_text()) for path in folder.glob("jobs/*/[0-9]*.json")]
    by_number = {job["job"]: job for job in found}
    assert len(by_number) == len(found), "more than one sweep"
    return dict(sorted(by_number.items()))
