"""Comparing the cases of a study: each over its seeds, its difference to the baseline, and a verdict in words."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from jaxcnn.studies.records import CaseResult, Comparison, Row
from jaxcnn.studies.statistics import Difference, compare_to, estimate, sampling_error


def compare(groups: Sequence[tuple[str, dict[str, Any], Sequence[Row]]], baseline: str) -> Comparison:
    """Compares cases.

    Args:
        groups: (name, settings, rows) of each case that has finished runs.
        baseline: name of the case that the others are compared to. It may be missing in `groups`.
    """
    accuracies = {name: {row["seed"]: row["test_accuracy"] for row in rows} for name, _, rows in groups}
    others = {name: values for name, values in accuracies.items() if name != baseline}
    differences = compare_to(accuracies.get(baseline, {}), others)
    cases = [_case(name, settings, rows, differences.get(name)) for name, settings, rows in groups]
    means = {case.name: case.validation.mean for case in cases if case.validation is not None}
    complete = len(means) == len(cases) > 0
    return Comparison(cases, baseline, max(means, key=lambda name: means[name]) if complete else None)


def _case(name: str, settings: dict[str, Any], rows: Sequence[Row], difference: Difference | None) -> CaseResult:
    validation = [row["val_accuracy"] for row in rows if row["val_accuracy"] is not None]
    test, images = estimate([row["test_accuracy"] for row in rows]), rows[0]["test_images"]
    return CaseResult(
        name,
        settings,
        test,
        estimate(validation) if len(validation) == len(rows) else None,
        difference,
        sampling_error(test.mean, images) if images else None,
        fmean(row["best_epoch"] for row in rows),
        fmean(row["seconds"] for row in rows),
        rows[0]["trainable_parameters"],
    )


def verdict(comparison: Comparison) -> list[str]:
    """What follows from the intervals, in sentences."""
    if comparison.baseline not in [case.name for case in comparison.cases]:
        return [f"No run of {comparison.baseline} is finished, so there is nothing to compare to."]
    base = comparison.case(comparison.baseline)
    apart, unclear = [], []
    for case in comparison.cases:
        if (difference := case.difference) is None:
            continue
        if difference.is_told_apart:
            way = "above" if difference.mean > 0 else "below"
            apart.append(
                f"{case.name} is {abs(difference.mean):.2f} points {way} {base.name} ({_interval(difference)})."
            )
        else:
            unclear.append(_not_told_apart(case, base, difference))
    lines = [_choice(comparison)] if len(comparison.cases) > 1 else []
    lines += [*apart, *unclear]
    errors = [case.sampling_error for case in comparison.cases if case.sampling_error is not None]
    if errors:
        lines.append(
            f"The intervals are of the mean over seeds. The test set's size alone leaves each accuracy open by up to "
            f"{max(errors):.2f} points either way (95 % Wilson interval); cases that share it share most of that error."
        )
    return lines


def _choice(comparison: Comparison) -> str:
    if comparison.chosen is None:
        return "Some runs held no images out for validation, so no setting is chosen."
    case = comparison.case(comparison.chosen)
    assert case.validation is not None
    best = case.validation.mean
    equal = [each.name for each in comparison.cases if each.validation is not None and each.validation.mean == best]
    if len(equal) > 1:
        return (
            f"Validation accuracy decides, and it is highest for {len(equal)} cases alike ({best:.2f} %): "
            f"{', '.join(equal)}. The first one is marked."
        )
    return (
        f"Validation accuracy decides, and it chooses {case.name} ({case.validation.mean:.2f} %), whose test accuracy "
        f"is {case.test.mean:.2f} %."
    )


def _not_told_apart(case: CaseResult, base: CaseResult, difference: Difference) -> str:
    if difference.low is None:
        text = f"one seed in common cannot tell {case.name} and {base.name} apart ({difference.mean:+.2f} points)"
        return f"{text[0].upper()}{text[1:]}; give more seeds."
    parts = [
        f"{case.name} and {base.name} can't be told apart ({difference.mean:+.2f} points, {_interval(difference)})"
    ]
    fewer = 100 * (1 - case.trainable_parameters / base.trainable_parameters)
    ratio = case.seconds / base.seconds if base.seconds else 1.0
    if fewer:
        kind = f"{abs(fewer):.2g} % {'fewer' if fewer > 0 else 'more'} parameters"
        parts.append(f"{case.name} trains {kind} in {ratio:.2f} of the time")
    else:
        parts.append(f"{case.name} takes {ratio:.2f} of the time")
    if difference.more is None:
        parts.append("200 seeds would not tell them apart with a power of 80 %, if the difference is the one measured")
    else:
        parts.append(
            f"{difference.more} more seed{'s' * (difference.more > 1)} would, with a power of 80 %, if the difference "
            "is the one measured"
        )
    return "; ".join(parts) + "."


def _interval(difference: Difference) -> str:
    return f"95 % interval {difference.low:+.2f} to {difference.high:+.2f}"
