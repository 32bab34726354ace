"""One row's program of a checkout, run once for each line on standard input: `python -P turns.py ROW SETTING`.

The checkout is the one on PYTHONPATH, which may be an older or a newer one than this file's. So nothing of it is
imported but the functions that make the benchmark's programs. Setting is JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, Literal, cast

Program = Callable[[], object]
Mask = Literal["full", "partial", "frozen"]

PASSES = 4
"""Epochs on cached features in a turn, which take a fraction of a second each."""


def several(program: Program) -> Program:
    """The program `PASSES` times."""
    return lambda: [program() for _ in range(PASSES)]


def make_program(row: str, values: dict[str, Any]) -> Program:
    """What the row times."""
    from experiments.bench import jax_program
    from experiments.bench.setting import Setting

    setting = Setting(**values)
    if row == "evaluate":
        return jax_program.evaluation(setting)
    kind, mask = cast(tuple[str, Mask], row.split("_", 1))
    if row == "epoch_frozen_cached":
        return several(jax_program.epochs(setting, "frozen", "none"))
    if kind == "epoch":
        return jax_program.epochs(setting, mask, "autoaugment")
    return jax_program.train_steps(setting, mask)


def main(row: str, values: dict[str, Any]) -> None:
    """Answers each line with a line once the program has run."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else goes to the one who waits for answers
    program = make_program(row, values)
    for _ in sys.stdin:
        program()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
