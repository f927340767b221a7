"""A user's DeepSpeed JSON: which of its words are taken, and whether they agree with the run.

Knows DeepSpeed's vocabulary, not DeepSpeed.
"""

import json
from pathlib import Path
from typing import Any


def read_ds_config(path: str) -> dict[str, Any]:
    """The content of a JSON file; ValueError in one line when it is none."""
    try:
        content = json.loads(Path(path).read_text())
    except OSError as e:
        raise ValueError(f"cannot be read ({e.strerror}); give the path of a DeepSpeed JSON file") from e
    except ValueError as e:
        raise ValueError(f"not valid JSON ({e}); correct the file") from e
    if not isinstance(content, dict):
        raise ValueError("holds no JSON object; DeepSpeed wants {...} at the top")
    return content
