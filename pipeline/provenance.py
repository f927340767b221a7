"""Temporary."""

import json


def environment(**facts):
    return facts


def record_attempt(folder, attempt, facts):
    (folder / "environment.json").write_text(json.dumps(facts))


def snapshot_code(place):
    return ""
