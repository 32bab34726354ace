"""The network under transformations of JAX: forward-mode derivatives, a symbolic batch, meshes with explicit axes."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import export
from torch.func import functional_call

from jaxcnn import CNN, ModelConfig, init_variables
from jaxcnn.kernels.dense import dense
from jaxcnn.kernels.dropout import dropout
from jaxcnn.kernels.pool import max_pool2x2
from jaxcnn.weights.convert import to_torch
from jaxcnn.weights.pytorch_network import TorchCNN

CONFIG = ModelConfig(
    input_size=5, in_channels=2, hidden_dims=(3, 6, 5), layers_per_block=(1,), apply_pooling=(1,), apply_bn=(1,),
    num_blocks=1, num_classes=4, dropout_rate=0.0, activation_function="silu",
)  # fmt: skip


def random_variables(rng: np.random.Generator) -> Any:
    """In float64; nothing is compiled."""
    shapes = jax.eval_shape(lambda: init_variables(CONFIG, jax.random.key(0)))
    return {
        "params": jax.tree.map(lambda a: rng.uniform(-0.5, 0.5, a.shape), shapes["params"]),
        "batch_stats": jax.tree.map(lambda a: rng.uniform(0.5, 1.5, a.shape).astype(a.dtype), shapes["batch_stats"]),
    }


def torch_network(variables: Any, train: bool) -> TorchCNN:
    network = TorchCNN(CONFIG).double()
    network.load_state_dict(to_torch(variables, CONFIG))
    return network.train(train)


@pytest.mark.parametrize("train", [False, True])
def test_first_and_second_derivatives_in_forward_mode_are_pytorchs(train: bool) -> None:
    """Along a line in the space of all parameters and images: the slope of the logits, the curvature of a loss."""
    rng = np.random.default_rng(1)
    images, direction = rng.normal(size=(2, 3, 5, 5, 2))
    with jax.enable_x64(True):
        variables = random_variables(rng)
        slopes = jax.tree.map(lambda a: rng.normal(size=a.shape), variables["params"])

        def logits(t: Any) -> Any:
            params = jax.tree.map(lambda a, slope: a + t * slope, variables["params"], slopes)
            moved = {**variables, "params": params}, images + t * direction
            return CNN(CONFIG, plain=True).apply(*moved, train, mutable=["batch_stats"])[0]

        def derivatives(t: Any) -> Any:
            y, slope = jax.linearize(logits, t)
            return y, slope(1.0), jax.hessian(lambda t: jnp.square(logits(t)).sum())(t)

        found = jax.jit(derivatives)(0.0)

    network = torch_network(variables, train)
    torch_slopes = to_torch({**variables, "params": slopes}, CONFIG)
    torch_images, torch_direction = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (images, direction))

    def torch_logits(t: torch.Tensor) -> torch.Tensor:
        params = {name: p.detach() + t * torch_slopes[name] for name, p in network.named_parameters()}
        y: torch.Tensor = functional_call(network, params, torch_images + t * torch_direction)
        return y

    start = torch.zeros((), dtype=torch.float64)
    y, slope = torch.autograd.functional.jvp(torch_logits, start, torch.ones_like(start))
    curvature = torch.autograd.functional.hessian(lambda t: torch_logits(t).square().sum(), start)
    for a, wanted in zip(found, (y, slope, curvature), strict=True):
        np.testing.assert_allclose(a, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("batch", [1, 7])
def test_plain_dropout_drops_the_same_elements_in_every_derivative(batch: int) -> None:
    x = np.random.default_rng(0).normal(size=(batch, 10)).astype(np.float32)
    part = {"columns": jnp.arange(0, 20, 2), "shape": (batch, 20)}

    @jax.jit
    def drop(x: Any) -> Any:
        key = jax.random.key(2)
        return [
            (
                dropout(key, x, 0.5, **given),
                *jax.jvp(partial(dropout, key, rate=0.5, plain=True, **given), (x,), (x,)),
            )
            for given in ({}, part)
        ]

    for wanted, y, derivative in drop(x):
        np.testing.assert_array_equal(y, wanted)
        np.testing.assert_array_equal(derivative, wanted)  # it is linear


def with_gradients(f: Callable[..., Any], *args: Any) -> Any:
    """The result, and the gradients of the sum of its squares."""

    @jax.jit
    def run(*args: Any) -> Any:
        y, back = jax.vjp(f, *args)
        return y, back(y)

    return run(*args)


def test_of_equal_maxima_the_first_has_the_plain_pools_gradient() -> None:
    x = np.random.default_rng(0).integers(1, 3, (9, 5, 4, 3)).astype(np.float32)
    plain, usual = (with_gradients(partial(max_pool2x2, plain=each), x) for each in (True, False))
    jax.tree.map(np.testing.assert_array_equal, plain, usual)


def test_the_plain_pool_keeps_what_is_no_number() -> None:
    x = np.where(np.eye(4) == 1, np.nan, 0).reshape(4, 2, 2, 1)
    assert np.isnan(max_pool2x2(jnp.asarray(x), plain=True)).all()


def test_a_plain_dense_layer_takes_only_some_columns_too() -> None:
    rng = np.random.default_rng(0)
    args = rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    columns = jnp.array([1, 3], jnp.int32)
    plain, usual = (with_gradients(partial(dense, columns=columns, plain=each), *args) for each in (True, False))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), plain, usual)


def test_a_program_with_a_symbolic_batch_equals_the_network() -> None:
    rng = np.random.default_rng(1)
    variables = jax.tree.map(jnp.asarray, random_variables(rng))
    images = rng.normal(size=(5, 5, 5, 2)).astype(np.float32)

    def logits_and_gradient(variables: Any, images: Any) -> Any:
        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            return jnp.square(CNN(CONFIG).apply(given, images, True, mutable=["batch_stats"])[0]).sum()

        return CNN(CONFIG).apply(variables, images), jax.grad(loss)(variables["params"])

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
    batch = jax.ShapeDtypeStruct(export.symbolic_shape("b, 5, 5, 2"), jnp.float32)
    program = export.export(jax.jit(logits_and_gradient))(shapes, batch)
    logits, gradient = jax.jit(logits_and_gradient)(variables, images)
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(close, program.call(variables, images), (logits, gradient))
    close(program.call(variables, images[:2])[0], logits[:2])


def test_four_devices_of_an_explicit_mesh_compute_what_one_does() -> None:
    setting = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_ENABLE_X64": "1"}
    program = Path(__file__).with_name("mesh_program.py")
    done = subprocess.run([sys.executable, program], env={**os.environ, **setting}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
