"""On four devices, whose mesh has explicit axes, the network computes what it computes on one."""

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from jaxcnn import CNN, ModelConfig, init_variables

CONFIG = ModelConfig(
    input_size=5, in_channels=2, hidden_dims=(3, 6, 5), layers_per_block=(1,), apply_pooling=(1,), apply_bn=(1,),
    num_blocks=1, num_classes=4, dropout_rate=0.4,
)  # fmt: skip


def losses(params, statistics, images, mask):
    variables = {"params": params, "batch_stats": statistics}
    logits, updated = CNN(CONFIG).apply(
        variables, images, True, mask=mask, mutable=["batch_stats"], rngs={"dropout": jax.random.key(3)}
    )
    return (logits**2).sum(), (logits, updated, CNN(CONFIG).apply(variables, images))


program = jax.jit(jax.grad(losses, has_aux=True))
images, mask = np.random.default_rng(0).normal(size=(8, 5, 5, 2)), np.arange(8) < 7

with jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))):
    variables = jax.device_put(init_variables(CONFIG, jax.random.key(0)), PartitionSpec())
    divided = jax.device_put((images, mask), PartitionSpec("data"))
    four = program(variables["params"], variables["batch_stats"], *divided)

variables = jax.device_get(variables)
one = program(variables["params"], variables["batch_stats"], images, mask)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), four, one)
logits = four[1][0]
assert logits.dtype == np.float64
assert jax.typeof(logits).sharding.spec[0] == "data"
assert len(logits.sharding.device_set) == 4
