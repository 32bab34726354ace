"""Runs a row's program once for each line on standard input: `python -P turns.py ROW SETTING`, with SETTING as JSON.

The code is that of the checkout on PYTHONPATH, which may be older or newer than this file. So this file imports only
the functions of `jax_program` that make the programs.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, Literal, cast

Program = Callable[[], object]
Mask = Literal["full", "partial", "frozen"]

PASSES = 4
"""Epochs on cached features per turn. Each takes a fraction of a second."""


def repeat(program: Program) -> Program:
    """A program that runs another one `PASSES` times."""
    return lambda: [program() for _ in range(PASSES)]


def make_program(row: str, values: dict[str, Any]) -> Program:
    """The program of a row."""
    from experiments.bench import jax_program
    from experiments.bench.setting import Setting

    setting = Setting(**values)
    if row == "evaluate":
        return jax_program.evaluation(setting)
    kind, mask = cast(tuple[str, Mask], row.split("_", 1))
    if row == "epoch_frozen_cached":
        return repeat(jax_program.epochs(setting, "frozen", "none"))
    if kind == "epoch":
        return jax_program.epochs(setting, mask, "autoaugment")
    return jax_program.train_steps(setting, mask)


def main(row: str, values: dict[str, Any]) -> None:
    """For each line on stdin, runs the program once and then prints "done". All other output goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    program = make_program(row, values)
    for _ in sys.stdin:
        program()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
