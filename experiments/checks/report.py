"""Printing the report of a check."""

import json
from dataclasses import asdict
from typing import Any


def conclude(report: Any, text: str, as_json: bool) -> int:
    """Prints a report as text or JSON; returns the exit status, which is 1 if there are failures."""
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print(f"{text}; {len(report.failures)} failures; {report.seconds:.0f} s")
        print(*(f"FAILED {failure}" for failure in report.failures), sep="\n", end="")
    return int(bool(report.failures))
