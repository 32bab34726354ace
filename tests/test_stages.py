"""How many stages are copied and how many are frozen: two numbers, of which masks and heads are cases."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcnn import InputError, create_transfer_model, init_variables
from jaxcnn.cli.transfer import parse
from jaxcnn.config import SHALLOW, FreezeConfig, ModelConfig, TransferConfig, from_dict, to_json
from jaxcnn.masks import frozen_stages, mask_name
from jaxcnn.weights.transfer import Source, copied_stages, transplant

REFERENCE = Path(__file__).parent / "reference" / "small" / "model.pth"
NETWORK = ModelConfig(
    input_size=8, hidden_dims=(4, 8, 16, 8), layers_per_block=(1, 1), apply_pooling=(1, 0), apply_bn=(1, 1),
    num_blocks=2, num_classes=4,
)  # fmt: skip
ORDER = ["block_0", "block_1", "fc1", "fc2", "fc3"]


@pytest.mark.parametrize(
    ("mask", "until", "frozen"), [("full", 1, 0), ("partial", 0, 1), ("partial", 2, 3), ("frozen", 1, 4)]
)
def test_a_mask_is_a_number_of_frozen_stages(mask: str, until: int, frozen: int) -> None:
    by_name = FreezeConfig(mask=mask, freeze_until_block=until)
    by_number = FreezeConfig(frozen_stages=frozen)
    for epoch in (0, 5):
        assert frozen_stages(by_name, SHALLOW, epoch) == frozen_stages(by_number, SHALLOW, epoch) == frozen
    assert mask_name(by_number, SHALLOW) == mask_name(by_name, SHALLOW) == mask


def test_a_number_may_freeze_the_fully_connected_stages_too() -> None:
    assert [frozen_stages(FreezeConfig(frozen_stages=n), SHALLOW, 0) for n in (5, 6)] == [5, 6]
    assert [mask_name(FreezeConfig(frozen_stages=n), SHALLOW) for n in (5, 6)] == ["frozen", "frozen"]
    gradual = FreezeConfig(frozen_stages=5, unfreeze_every=2)
    assert [frozen_stages(gradual, SHALLOW, epoch) for epoch in (0, 2, 4)] == [6, 5, 5]


def test_a_head_is_a_number_of_copied_stages() -> None:
    assert copied_stages(TransferConfig(), SHALLOW) == 6
    assert copied_stages(TransferConfig(head="all"), SHALLOW) == 4
    assert copied_stages(TransferConfig(copied_stages=3), SHALLOW) == 3
    assert copied_stages(TransferConfig(freeze=FreezeConfig(mask="scratch")), SHALLOW) == 0
    nothing = TransferConfig(copied_stages=0)
    assert nothing.freeze.mask == "scratch"
    assert copied_stages(nothing, SHALLOW) == 0
    assert from_dict(TransferConfig, to_json(nothing)) == nothing


@pytest.mark.parametrize("copied", range(len(ORDER)))
def test_stages_above_the_copied_ones_begin_with_the_weights_of_their_seed(copied: int) -> None:
    source = Source(dict(init_variables(NETWORK, jax.random.key(1))), NETWORK, [])
    made = transplant(source, num_classes=4, copied_stages=copied, key=jax.random.key(0))
    assert (made.taken, made.new) == (ORDER[:copied], ORDER[copied:])
    fresh = init_variables(made.config, jax.random.key(0))
    for collection in ("params", "batch_stats"):
        for name, module in made.variables[collection].items():
            wanted = source.variables if name in ORDER[:copied] else fresh
            jax.tree.map(np.testing.assert_array_equal, module, wanted[collection][name])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FreezeConfig(frozen_stages=-1), "freeze.frozen_stages=-1"),
        (lambda: FreezeConfig(mask="partial", frozen_stages=1), "the mask partial says what is frozen"),
        (lambda: FreezeConfig(mask="scratch", frozen_stages=1), "the mask scratch says"),
        (lambda: TransferConfig(copied_stages=2, head="all"), "head='all' says it too"),
        (lambda: TransferConfig(copied_stages=2, freeze=FreezeConfig(mask="scratch")), "takes nothing over"),
        (lambda: TransferConfig(copied_stages=0, freeze=FreezeConfig(mask="frozen")), "would freeze new weights"),
        (lambda: frozen_stages(FreezeConfig(frozen_stages=7), SHALLOW, 0), "frozen_stages=7 .* has 6 stages"),
        (lambda: copied_stages(TransferConfig(copied_stages=7), SHALLOW), "copied_stages=7 .* has 6 stages"),
        (
            lambda: copied_stages(TransferConfig(copied_stages=2, freeze=FreezeConfig(mask="frozen")), SHALLOW),
            "4 frozen stages are not usable: 2 are taken over",
        ),
        (
            lambda: copied_stages(TransferConfig(copied_stages=5, freeze=FreezeConfig(probe_epochs=1)), SHALLOW),
            "take over all 6 stages",
        ),
    ],
)
def test_numbers_that_contradict_a_name_or_the_network_are_refused(make: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()


def test_numbers_name_the_run() -> None:
    for words, name in (
        (["--frozen-stages", "2"], "transfer_cifar10_to_cifar100_frozen2"),
        (["--copied-stages", "2"], "transfer_cifar10_to_cifar100_copied2_full"),
        (["--copied-stages", "3", "--frozen-stages", "2"], "transfer_cifar10_to_cifar100_copied3_frozen2"),
        (["--copied-stages", "0"], "transfer_cifar10_to_cifar100_scratch"),
    ):
        (config,), *_ = parse(words)
        assert config.name == name
    assert config == replace(config, copied_stages=0)


def test_from_python_numbers_take_the_place_of_names() -> None:
    network = {"input_size": 32, "apply_pooling": (1, 1, 1, 0), "activation_function": "relu"}
    _, _, mask = create_transfer_model(REFERENCE, 10, copied_stages=3, frozen_stages=1, **network)
    assert [name for name, trains in mask.items() if not all(jax.tree.leaves(trains))] == ["block_0"]
    _, _, partial = create_transfer_model(REFERENCE, 10, **network)
    assert sorted(name for name, trains in partial.items() if not all(jax.tree.leaves(trains))) == ORDER[:2]
    with pytest.raises(InputError, match="the mask frozen says"):
        create_transfer_model(REFERENCE, 10, mask="frozen", frozen_stages=1, **network)
