"""Trains on several forced devices and on one, and prints how far the results are apart, as JSON.

Arguments: the numbers of devices. With `--process I --of N --port P` it is one of N processes that train together, each
with all of its devices.
"""

import argparse
import contextlib
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import ModelConfig, from_arrays, init_variables
from jaxcnn.config import DataConfig, ExperimentConfig, FreezeConfig, TrainConfig
from jaxcnn.config.experiment import Existing
from jaxcnn.data.splits import ImageRows, Split
from jaxcnn.errors import InputError
from jaxcnn.masks import frozen_stages
from jaxcnn.model import key_of
from jaxcnn.runs.run import run_experiment
from jaxcnn.training.devices import make_mesh
from jaxcnn.training.loop import fit
from jaxcnn.training.step import init_state
from jaxcnn.weights.files import read_state_dict

MODEL = ModelConfig(
    input_size=8, in_channels=3, num_classes=5, num_blocks=2, hidden_dims=(4, 6, 8, 8), layers_per_block=(1, 1),
    apply_pooling=(1, 1), apply_bn=(1, 1), dropout_rate=0.3,
)  # fmt: skip
BATCH = 12  # 8 devices do not divide it
EPOCHS = 2 if jax.config.jax_enable_x64 else 4  # single precision: 24 steps
random = np.random.default_rng(0)
DATA = from_arrays(
    random.integers(0, 256, (100, 8, 8, 3), np.uint8), random.integers(0, 5, 100), validation=0.2, input_size=8
)  # 64 training images: the last batch has 4


class Linear(nn.Module):
    """A network of the user's own, with flax's batch normalisation over the batch that it sees."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1)[:, :8])
        return nn.Dense(5)(x)


CASES = {
    "unfreezing": (FreezeConfig(unfreeze_every=1), "autoaugment"),
    "partial": (FreezeConfig(mask="partial", freeze_until_block=0), "flipcrop"),
    "frozen": (FreezeConfig(mask="frozen"), "none"),
    "full": (FreezeConfig(), "autoaugment"),
}


def train(case, mesh, *, streamed=False, module=None):
    """The trained state as NumPy arrays, and the record of the last epoch."""
    freeze, augment = CASES[case]
    config = ExperimentConfig(
        model=MODEL,
        data=DataConfig(augment=augment),
        freeze=freeze,
        train=TrainConfig(epochs=EPOCHS, batch_size=BATCH, early_stopping_target=None),
    )
    data = DATA
    if streamed:
        images = ImageRows(data.train.images, np.arange(len(data.train.labels)))
        data = replace(data, train=Split(images, data.train.labels))
    variables = init_variables(MODEL, key_of(0))
    if module is not None:
        variables = jax.jit(module.init)(key_of(0), np.zeros((2, 8, 8, 3)))
    frozen = frozen_stages(freeze, MODEL, 0)
    begun = init_state(variables, MODEL, config.optim, seed=0, frozen_stages=frozen)
    *_, (state, record) = fit(begun, config, data, mesh=mesh, model=module)
    return jax.tree.map(np.asarray, (state.params, state.batch_stats)), record


def distance(one, other):
    """The largest difference between two results of `train`: of a weight, or of a loss."""
    losses = [abs(getattr(one[1], name) - getattr(other[1], name)) for name in ("train_loss", "val_loss")]
    pairs = zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True)
    return max([float(np.max(np.abs(a - b))) for a, b in pairs] + losses)


def continued(counts):
    """How far a run that continues on other devices is from one that did not, and what it printed about that."""
    with tempfile.TemporaryDirectory() as folder:
        base = ExperimentConfig(
            name="alone",
            runs_dir=Path(folder),
            data=DataConfig(name="digits", fraction=0.1),
            model=replace(MODEL, in_channels=1),
            train=TrainConfig(epochs=2, batch_size=BATCH, early_stopping_target=None),
        )
        run_experiment(replace(base, devices=1), figures=None)
        other = replace(base, name="other", devices=counts[0])
        run_experiment(replace(other, train=replace(base.train, epochs=1)), figures=None)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            run_experiment(replace(other, devices=counts[1]), Existing(extend=True), figures=None)
        read = [read_state_dict(Path(folder) / name / "model.pth") for name in ("alone", "other")]
        far = max(float((read[0][name] - read[1][name]).abs().max()) for name in read[0])
        return far, printed.getvalue()


def own(refused, divides):
    """What is said of a network of the user's own on so many devices, and how far it is from one device on others."""
    try:
        train("full", make_mesh(refused), module=Linear())
    except InputError as error:
        said = str(error)
    alone, several = (train("full", mesh, module=Linear()) for mesh in (None, make_mesh(divides)))
    return said, distance(alone, several)


def main():
    """Prints the distances."""
    parser = argparse.ArgumentParser()
    parser.add_argument("counts", type=int, nargs="*")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--continue", dest="continued", type=int, nargs=2)
    parser.add_argument("--own", type=int, nargs=2)
    parser.add_argument("--process", type=int)
    parser.add_argument("--of", type=int)
    parser.add_argument("--port", type=int)
    flags = parser.parse_args()
    found = {}
    if flags.process is not None:
        jax.distributed.initialize(f"localhost:{flags.port}", flags.of, flags.process)
        mesh = make_mesh(len(jax.local_devices()))
        for case in flags.cases:
            params, record = train(case, mesh)
            digest = [float(np.sum(leaf.astype(np.float64))) for leaf in jax.tree.leaves(params)]
            found[case] = [record.train_loss, record.val_loss, *digest]
    elif flags.continued:
        found = dict(zip(("far", "printed"), continued(flags.continued), strict=True))
    elif flags.own:
        found = dict(zip(("refused", "own network"), own(*flags.own), strict=True))
    else:
        sharded = {}
        for case in flags.cases:
            alone = train(case, None)
            leaves = [float(np.sum(leaf.astype(np.float64))) for leaf in jax.tree.leaves(alone[0])]
            found[f"{case} alone"] = [alone[1].train_loss, alone[1].val_loss, *leaves]
            for count in flags.counts:
                sharded[case, count] = train(case, make_mesh(count))
                found[f"{case} on {count}"] = distance(alone, sharded[case, count])
        case, count = next(iter(sharded))
        found["streamed"] = distance(sharded[case, count], train(case, make_mesh(count), streamed=True))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
