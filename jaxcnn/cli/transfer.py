"""Transfer saved weights to another data set, with all blocks frozen, some, or none."""

import re
from collections.abc import Sequence
from dataclasses import asdict

from jaxcnn.cli.flags import HostFlags
from jaxcnn.cli.transfer_flags import parse
from jaxcnn.errors import InputError


def program(argv: Sequence[str]) -> None:
    """Runs the program with these arguments. Several transfers are compared at the end."""
    configs, existing, hosts = parse(argv)
    if len(configs) == 1:
        from jaxcnn.runs.hosts import join
        from jaxcnn.runs.run import run_experiment

        with join(configs[0].device, **asdict(hosts)):
            run_experiment(configs[0], existing)
        return
    if hosts != HostFlags():
        raise InputError("--coordinator, --processes and --process belong to a single run, not to --mask all")
    from jaxcnn.studies.execute import require_all
    from jaxcnn.studies.plan import compare_runs
    from jaxcnn.studies.study import run_study

    first = configs[0]
    folder = first.runs_dir / re.sub(rf"_{first.freeze.mask}(_seed\d+)?$", "_comparison", first.name)
    result = run_study(compare_runs(configs, folder), existing, figures="png", pictures=True)
    require_all(result.failed, len(configs))
