"""Transfer saved weights to another data set, with all blocks frozen, some, or none."""

import re
from collections.abc import Sequence

from jaxcnn.cli.transfer_flags import parse


def program(argv: Sequence[str]) -> None:
    """Runs the program with these arguments. Several transfers are compared at the end."""
    configs, existing = parse(argv)
    if len(configs) == 1:
        from jaxcnn.runs.run import run_experiment

        run_experiment(configs[0], existing)
        return
    from jaxcnn.studies.execute import require_all
    from jaxcnn.studies.plan import masks_study
    from jaxcnn.studies.study import run_study

    first = configs[0]
    folder = first.runs_dir / re.sub(rf"_{first.freeze.mask}(_seed\d+)?$", "_comparison", first.name)
    result = run_study(masks_study(configs, folder), existing, figures="png", pictures=True)
    require_all(result.failed, len(configs))
