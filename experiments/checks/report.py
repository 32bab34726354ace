"""What a check says at its end."""

import json
from dataclasses import asdict
from typing import Any


def conclude(report: Any, told: str, as_json: bool) -> int:
    """Prints what a check found, in words or as JSON; the status to end with: 1 if there are failures."""
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print(f"{told}; {len(report.failures)} failures; {report.seconds:.0f} s")
        print(*(f"FAILED {failure}" for failure in report.failures), sep="\n", end="")
    return int(bool(report.failures))
