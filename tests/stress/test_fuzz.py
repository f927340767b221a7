"""A small share of the fuzzing in the suite; the rest is run by hand (fuzz.py)."""

import subprocess
import sys
from pathlib import Path


def test_150_mutated_files_end_in_images_rejections_or_one_line():
    command = [
        sys.executable,
        str(Path(__file__).parent / "fuzz.py"),
        "--count",
        "150",
        "--seed",
        "0",
        "--workers",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "150 cases, 0 failures" in done.stdout
