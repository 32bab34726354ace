"""Which precision a run computes in, and how far bfloat16's gradients are from float32's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_training import STANDARDISATION, assert_same_bits, draw_dataset, experiment, run
from tiny_run import TINY

from jaxcnn.config import SHALLOW, ExperimentConfig, ModelConfig, Precision
from jaxcnn.config.experiment import CONTINUE, Existing
from jaxcnn.data.augment import standardise
from jaxcnn.kernels.precision import resolve_precision
from jaxcnn.model import make_network
from jaxcnn.runs import folder
from jaxcnn.runs import run as program
from jaxcnn.runs.folder import with_precision
from jaxcnn.runs.run import plan, run_experiment
from jaxcnn.training.step import cross_entropy
from jaxcnn.weights.convert import from_torch
from jaxcnn.weights.pytorch_network import TorchCNN

pytestmark = pytest.mark.usefixtures("compiled_once", "own_cache")


def computing_in(precision: Precision, config: ExperimentConfig = TINY, **fields: Any) -> ExperimentConfig:
    return replace(config, train=replace(config.train, precision=precision, **fields))


@pytest.mark.parametrize(("backend", "auto"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_auto_goes_by_the_device_and_what_is_named_does_not(
    backend: str, auto: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert resolve_precision("auto") == auto
    assert resolve_precision("float32") == "float32"
    assert resolve_precision("bfloat16") == "bfloat16"


def test_a_run_that_continues_keeps_the_precision_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "resolve_precision", lambda precision: "bfloat16")  # as on an accelerator

    def precision_of(train: Any, existing: Existing = CONTINUE) -> str:
        (tmp_path / "config.json").write_text(json.dumps({"train": train}))
        return with_precision(computing_in("auto"), tmp_path, existing).train.precision

    assert with_precision(computing_in("auto"), tmp_path, CONTINUE).train.precision == "bfloat16"
    assert precision_of({"precision": "float32"}) == "float32"
    assert precision_of({}) == "float32"  # of a version that had no other
    assert precision_of({"precision": "float32"}, Existing(overwrite=True)) == "bfloat16"
    assert with_precision(computing_in("float32"), tmp_path, CONTINUE).train.precision == "float32"


def test_auto_is_the_same_run_as_the_precision_it_stands_for(finished: Path) -> None:
    planned = plan(replace(computing_in("auto"), runs_dir=finished.parent))
    assert planned.config.train.precision == "float32"
    assert planned.summary is not None


@pytest.mark.slow
def test_auto_trains_the_same_bits_as_float32_on_a_cpu() -> None:
    config = experiment(epochs=1)
    (auto,), _ = run(computing_in("auto", config), draw_dataset())
    (wanted,), _ = run(config, draw_dataset())
    assert_same_bits(auto, wanted)


def test_bfloat16_on_a_cpu_is_said_to_be_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "_train", stop)
    for precision, times in (("bfloat16", 1), ("auto", 0)):
        with pytest.raises(KeyboardInterrupt):
            run_experiment(replace(computing_in(precision), name=precision, runs_dir=tmp_path))
        assert capsys.readouterr().out.count("bfloat16 is for accelerators") == times
        kept = json.loads((tmp_path / precision / "config.json").read_text())["train"]["precision"]
        assert kept == ("bfloat16" if times else "float32")


def jax_gradients(variables: Any, model: ModelConfig, x: jax.Array, labels: jax.Array, precision: Precision) -> Any:
    """Of all kernels."""

    def objective(params: Any) -> jax.Array:
        logits, _ = make_network(model, precision).apply(
            {**variables, "params": params}, x, True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels).mean()

    gradient = jax.jit(jax.grad(objective))(variables["params"])
    return [np.asarray(leaf) for leaf in jax.tree.leaves(gradient) if leaf.ndim > 1]


def torch_gradients(network: TorchCNN, x: torch.Tensor, labels: torch.Tensor, *, autocast: bool) -> Any:
    """Of all kernels."""
    network.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.nn.functional.cross_entropy(network(x), labels).backward()
    return [parameter.grad.clone().numpy() for parameter in network.parameters() if parameter.ndim > 1]


def relative_norm(of: Any, wanted: Any) -> float:
    """The norm of all differences together, over that of all gradients."""
    of, wanted = (np.concatenate([leaf.ravel() for leaf in leaves]) for leaves in (of, wanted))
    return float(np.linalg.norm(of - wanted) / np.linalg.norm(wanted))


SMALL = replace(SHALLOW, input_size=16, hidden_dims=(16, 32, 64, 64, 64, 32))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("model", [SMALL, SHALLOW], ids=["small", "shallow"])
def test_bfloat16_gradients_are_about_as_far_from_float32s_as_autocasts(model: ModelConfig) -> None:
    batch_size = 64
    model = replace(model, dropout_rate=0.0)
    torch.manual_seed(0)
    network = TorchCNN(model)
    variables = from_torch(network.state_dict(), model)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, model.input_size, model.input_size, 3), np.uint8)
    labels = rng.integers(0, model.num_classes, batch_size)
    x = standardise(jnp.asarray(images), STANDARDISATION)
    exact, half = (jax_gradients(variables, model, x, jnp.asarray(labels), p) for p in ("float32", "bfloat16"))
    torch_x, torch_labels = torch.from_numpy(np.array(x.transpose(0, 3, 1, 2))), torch.from_numpy(labels)
    theirs, autocast = (torch_gradients(network, torch_x, torch_labels, autocast=a) for a in (False, True))
    ours = relative_norm(half, exact)
    assert 0 < ours < 1.1 * relative_norm(autocast, theirs)
