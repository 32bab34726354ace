"""One epoch: batches, the compiled loop that trains on them, and evaluation."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from operator import itemgetter
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcnn.data.splits import ImageRows, Split
from jaxcnn.kernels.backend import fixed_settings, is_cpu
from jaxcnn.kernels.batch import take_images
from jaxcnn.kernels.executables import Jit, jit
from jaxcnn.kernels.features import Features, map_values
from jaxcnn.kernels.shards import Shards
from jaxcnn.training.devices import DIVIDED, DIVIDED_STEPS, EVERYWHERE, fetch, gather, padded_size, put, replicate
from jaxcnn.training.records import Batch, EvalStep, Evaluation, Metrics, TrainState, TrainStep

TrainEpoch = Callable[..., tuple[TrainState, Metrics]]
OnStep = Callable[[int, Metrics], None]
"""Called with the number of images since the epoch began or was resumed, and the metrics summed over them."""
ShouldStop = Callable[[], bool]


_T = TypeVar("_T")


def never() -> bool:
    """A `ShouldStop` that never stops an epoch."""
    return False


def default_steps_per_call() -> int | None:
    """How many training steps run as one compiled call: 4 on a CPU, all of an epoch (None) on an accelerator.

    On a CPU four steps a call are a tenth faster than one, since the later ones find their buffers in place. More gain
    little, and a signal would wait longer.
    """
    return 4 if is_cpu() else None


_STREAMED_STEPS = 8
"""Steps in a call on an accelerator if the images are not all there."""


def padded_order(
    order: np.ndarray[Any, Any], batch_size: int, width: int | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Indices int32 and mask bool, both (steps, width); padding has index 0 and mask False.

    Every row has `batch_size` images, and the last one what is left. `width` is `batch_size` if not given.
    """
    steps = -(-len(order) // batch_size)
    indices = np.zeros(steps * batch_size, np.int32)
    indices[: len(order)] = order
    mask = np.arange(steps * batch_size) < len(order)
    wider = ((0, 0), (0, (width or batch_size) - batch_size))
    return np.pad(indices.reshape(steps, batch_size), wider), np.pad(mask.reshape(steps, batch_size), wider)


def batches(split: Split, order: np.ndarray[Any, Any], batch_size: int, mesh: Mesh | None = None) -> Iterator[Batch]:
    """The images of `split` in `order`, in batches of one shape; the last one is padded.

    With a mesh, each batch is divided among its devices, and a process reads only the images of its own devices.
    """
    for indices, mask in zip(*padded_order(order, batch_size, padded_size(batch_size, mesh)), strict=True):
        if mesh is None:
            images = map_values(itemgetter(indices), split.images)
            yield Batch(images, split.labels[indices], mask)
        else:
            images, labels = gather(split, indices, mesh)
            yield Batch(images, labels, put(mesh, DIVIDED, mask.shape, mask.__getitem__))


def make_train_epoch(
    step: TrainStep,
    split: Split,
    batch_size: int,
    *,
    steps_per_call: int | None,
    jit: Jit = jit,
    mesh: Mesh | None = None,
    shards: Shards | None = None,
) -> TrainEpoch:
    """Makes the function that trains one epoch: `(state, order, scale, on_step, should_stop) -> (state, metrics)`.

    `order` has the indices of the images, and `scale` multiplies the learning rate. The metrics are those of each step.
    A short last batch is trained on too. The images are stored on each device (on a CPU they stay where they are),
    unless they are `ImageRows` or there are several processes: then the images of each call are copied to the devices
    while the call before runs. Both compute the same bits.

    A compiled loop runs `steps_per_call` steps, or the whole epoch if that is None. After each loop `on_step` is
    called, then `should_stop`, which ends the epoch there if it returns true. The number of steps in a loop changes no
    metric and no weight. A state that was passed in must not be used again: its buffers are reused.

    Args:
        step: the step; it must be made with the same `shards`.
        split: the images.
        batch_size: images of a step, on all devices together.
        steps_per_call: steps that one compiled call runs.
        jit: compiles the loop.
        mesh: the devices; None for JAX's default device.
        shards: how `step` divides the batch. With a mesh and no `shards`, the compiler divides the step's computation.
    """
    streamed = isinstance(split.images, ImageRows) or jax.process_count() > 1
    most = steps_per_call or (_STREAMED_STEPS if streamed else -(-len(split.labels) // batch_size))
    stored = None if streamed else jax.device_put(split) if mesh is None else replicate(split, mesh)

    def run(
        state: TrainState, stored: Split, indices: Any, mask: Any, steps: Any, scale: Any
    ) -> tuple[TrainState, Metrics]:
        if streamed:  # taken from the images of the call as from all images, they give the same bits
            stored = Split(map_values(_join_steps, stored.images), _join_steps(stored.labels))

        def one(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, seen = carry
            images = map_values(lambda images: take_images(images, indices[i]), stored.images)
            batch = Batch(images, stored.labels[indices[i]], mask[i])
            state, metrics = step(state, batch, scale)
            return state, jax.tree.map(lambda history, value: history.at[i].set(value), seen, metrics)

        done: tuple[TrainState, Metrics] = jax.lax.fori_loop(0, steps, one, (state, Metrics(*jnp.zeros((3, most)))))
        return done

    if mesh is not None and shards is not None:
        images = _division(split.images) if streamed else EVERYWHERE
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(EVERYWHERE, images, DIVIDED_STEPS, DIVIDED_STEPS, EVERYWHERE, EVERYWHERE),
            out_specs=EVERYWHERE,
            check_vma=False,  # the custom gradients sum over the devices themselves
        )
    compiled = jit(fixed_settings()(run), donate_argnums=0)

    def on_devices(rows: np.ndarray[Any, Any]) -> Any:
        return rows if mesh is None else put(mesh, DIVIDED_STEPS, rows.shape, rows.__getitem__)

    width = padded_size(batch_size, mesh)
    each = width if mesh is None or shards is None else width // mesh.size  # images of a step on one device
    in_call = (np.arange(most)[:, None] * each + np.arange(width) % each).astype(np.int32)

    @fixed_settings()
    def load(rows: np.ndarray[Any, Any]) -> Split:
        return gather(split, rows, mesh) if stored is None else stored

    @fixed_settings()
    def train(
        state: TrainState, order: Any, scale: float, on_step: OnStep, should_stop: ShouldStop = never
    ) -> tuple[TrainState, Metrics]:
        indices, mask = padded_order(order, batch_size, width)
        starts = range(0, len(indices), most)
        # Rows after the epoch's end only pad to one compiled shape.
        rows = [np.arange(start, start + most) % len(indices) for start in starts]
        loaded = (load(indices[some]) for some in rows)
        seen = Metrics(*np.zeros((3, 0)))
        for start, some, images in zip(starts, rows, _ahead(loaded) if streamed else loaded, strict=True):
            steps = min(most, len(indices) - start)
            places = on_devices(in_call if streamed else indices[some])
            state, metrics = compiled(state, images, places, on_devices(mask[some]), steps, np.float32(scale))
            seen = jax.tree.map(lambda a, b, n=steps: np.concatenate([a, np.asarray(b)[:n]]), seen, metrics)
            on_step(min((start + steps) * batch_size, len(order)), jax.tree.map(np.sum, seen))
            if should_stop():
                break
        return state, seen

    return train


def _join_steps(x: jax.Array) -> jax.Array:
    """(steps, images, ...) -> (steps * images, ...)."""
    return x.reshape(-1, *x.shape[2:])


def _division(images: Any) -> Any:
    """The partition of a call's split: that of `gather`."""
    divided = replace(images, values=DIVIDED_STEPS, columns=EVERYWHERE) if isinstance(images, Features) else None
    return Split(divided or DIVIDED_STEPS, DIVIDED_STEPS)


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The same items. A thread makes each while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _total(metrics: Sequence[Metrics]) -> Metrics:
    return Metrics(*(sum(np.float64(m[i]) for m in metrics) for i in range(3)))


@fixed_settings()
def evaluate(
    step: EvalStep,
    variables: Any,
    split: Split,
    batch_size: int,
    *,
    seed: int | Sequence[int] = 0,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Loss, accuracy and logits on all of `split`.

    Args:
        step: of `evaluation_step`.
        variables: of the network.
        split: images, or `Features`, and labels.
        batch_size: images at a time; it does not change the result beyond rounding.
        seed: of the augmentation, for a step that has one.
        mesh: the devices that the step is made for.
    """
    keys = np.random.default_rng(seed).integers(2**32, size=(-(-len(split.labels) // batch_size), 2), dtype=np.uint32)
    parts = zip(batches(split, np.arange(len(split.labels)), batch_size, mesh), keys, strict=True)
    results = [step(variables, batch, key) for batch, key in parts]
    total = _total([jax.tree.map(np.asarray, metrics) for metrics, _ in results])
    logits = np.concatenate([fetch(each)[:batch_size] for _, each in results])[: len(split.labels)]
    return Evaluation(float(total.loss / total.count), float(100 * total.correct / total.count), logits)
