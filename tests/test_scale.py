"""The tables of docs/scale.md: the page has what the simulation prints, and its numbers are those of the code."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from experiments.bench import scale
from experiments.bench.scale import Assumptions
from jaxcnn import DEEP, SHALLOW, ModelConfig, init_variables

PAGE = Path(__file__).parent.parent / "docs/scale.md"
GIVEN = Assumptions()


def test_the_page_has_the_tables_of_the_simulation() -> None:
    page = PAGE.read_text()
    tables = scale.tables(GIVEN)
    positions = [page.find(table) for table in tables]
    assert -1 not in positions
    assert positions == sorted(positions)
    named = (
        f"products reach {100 * GIVEN.utilisation:.0f} %",
        f"memory traffic {100 * GIVEN.memory_utilisation:.0f} %",
    )
    launches = (f"{GIVEN.kernels} kernels", f"{GIVEN.launch:g} µs a launch")
    hops = (f"{GIVEN.nvlink_hop:g} µs a hop", f"{GIVEN.network_hop:g} µs by network")
    assert all(text in page for text in (*named, *launches, *hops))
    waits = [1 + 2 * len(scale.norm_channels(model)) for model in (SHALLOW, DEEP)]
    assert "waits for {} all-reduces a step, DEEP for {}".format(*waits) in page


@pytest.mark.parametrize("model", [SHALLOW, DEEP, replace(SHALLOW, input_size=64, num_classes=1_000)])
def test_parameters_and_statistics_are_those_of_the_network(model: ModelConfig) -> None:
    shapes = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))
    assert scale.parameters(model) == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    channels = [leaf.size for leaf in jax.tree.leaves(shapes["batch_stats"]) if leaf.ndim]  # scalars count batches
    assert 2 * sum(scale.norm_channels(model)) == sum(channels)


def test_a_ring_sends_each_part_twice_and_keeps_its_own() -> None:
    assert scale.sent(100, 1) == 0
    assert scale.sent(100, 2) == 100  # half of it to be summed, and half of the sums
    assert scale.sent(100, 4) == 150


def test_a_device_takes_the_longest_of_its_parts_and_then_exchanges() -> None:
    slow = replace(GIVEN, launch=1e6)  # a second
    assert scale.step_seconds(SHALLOW, 256, "TF32", slow) == pytest.approx(GIVEN.kernels * 7)
    nvlink, network = scale.links(GIVEN)
    assert scale.exchange_seconds(SHALLOW, 1, nvlink) == 0
    parts = [scale.exchange_seconds(SHALLOW, 8, link) for link in (nvlink, network)]
    assert parts[0] == pytest.approx(40.44e6 / 450e9 + 7 * 14 * 1.5e-6, rel=1e-3)
    assert parts[1] == pytest.approx(40.44e6 / 50e9 + 7 * 14 * 5e-6, rel=1e-3)
    alone = scale.step_seconds(DEEP, 512, "float32", GIVEN)
    both = scale.step_seconds(DEEP, 1024, "float32", GIVEN, 2, nvlink)
    assert both == pytest.approx(alone + scale.exchange_seconds(DEEP, 2, nvlink))


@pytest.mark.parametrize("link", scale.links(GIVEN), ids=lambda link: link.name)
@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_the_least_batch_is_where_the_gain_begins_and_stays(arithmetic: str, link: scale.Link) -> None:
    def gain(batch: int) -> float:
        one = scale.step_seconds(SHALLOW, batch, arithmetic, GIVEN)
        return one / scale.step_seconds(SHALLOW, batch, arithmetic, GIVEN, scale.DEVICES, link)

    found = [scale.least_batch(SHALLOW, arithmetic, GIVEN, link, speedup) for speedup in scale.SPEEDUPS]
    for speedup, batch in zip(scale.SPEEDUPS, found, strict=True):
        assert batch is not None
        assert gain(batch) >= speedup > gain(batch - 8)
        assert all(gain(factor * batch) >= speedup for factor in (2, 3, 10, 100))
    assert found == sorted(found, key=lambda batch: batch or 0)
    assert scale.least_batch(SHALLOW, arithmetic, GIVEN, link, 8.01) is None
