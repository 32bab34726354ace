"""Cached features: what frozen stages compute from images that are the same in every epoch."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.config.network import ModelConfig
from jaxcnn.config.standardisation import Standardisation
from jaxcnn.config.training import Precision
from jaxcnn.data.augment import standardise
from jaxcnn.data.splits import Dataset, ImageRows, Split, aligned_empty
from jaxcnn.files import digest
from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.kernels.dense import dense_parts
from jaxcnn.kernels.executables import kept_jit
from jaxcnn.kernels.features import Features
from jaxcnn.masks import partition
from jaxcnn.model import make_network
from jaxcnn.training.devices import DIVIDED, EVERYWHERE, fetch, gather, padded_size

FEATURE_CACHE_BYTES = 4 * 2**30
"""The most memory for cached features. If those of a run need more, frozen stages run in every epoch."""


def caches_features(config: ExperimentConfig, dataset: Dataset, frozen: int) -> bool:
    """Whether `fit` computes the features of this many frozen stages once, as all epochs have the same images."""
    if not (frozen and config.freeze.cache_features) or config.data.augment != "none" or config.protocol != "sound":
        return False
    return feature_bytes(config, dataset, frozen) <= FEATURE_CACHE_BYTES


@fixed_settings()
def compute_features(
    variables: Any,
    splits: Sequence[Split],
    *,
    model: ModelConfig,
    standardisation: Standardisation,
    end_stage: int,
    batch_size: int,
    precision: Precision = "float32",
    mesh: Mesh | None = None,
) -> list[Split]:
    """The splits with `Features` in place of their images: the inputs of stage `end_stage`, in evaluation mode.

    If stage `end_stage` is dense, and at least a quarter of its input columns are zero for every image of every split,
    those columns are left out; `Features.columns` names the others. In trained networks four fifths of the columns and
    more are zero after a ReLU without batch normalisation. Leaving them out makes training faster. It does not lower
    peak memory, because all columns are computed first.
    """
    network = make_network(model, precision)

    def forward(variables: Any, images: Any) -> Any:
        return network.apply(variables, standardise(images, standardisation), end_stage=end_stage)

    if mesh is not None:
        forward = jax.shard_map(forward, mesh=mesh, in_specs=(EVERYWHERE, DIVIDED), out_specs=DIVIDED, check_vma=False)
    compiled = kept_jit(forward)

    shape, dense = _feature_shape(model, end_stage), end_stage >= model.num_blocks
    nonzero = np.zeros(shape, bool)

    def compute(split: Split) -> np.ndarray[Any, Any]:
        n = len(split.labels)
        features = aligned_empty((n, *shape), jnp.bfloat16 if precision == "bfloat16" else np.float32)
        for start in range(0, n, batch_size):
            rows = np.arange(start, start + padded_size(batch_size, mesh)) % n  # the last batch has the same shape
            images = split.images[rows] if mesh is None else gather(split, rows, mesh).images
            some = fetch(compiled(variables, images))[: min(batch_size, n - start)]
            features[start : start + batch_size] = some
            if dense:
                np.logical_or(nonzero, some.any(0), out=nonzero)
        return features

    values, columns = [compute(split) for split in splits], None
    if dense:
        kept = _columns_to_keep(nonzero.ravel())
        if len(kept) <= _WORTH * nonzero.size:
            values = [_select_in_place(kept, each.reshape(-1, nonzero.size)) for each in values]
            columns = kept
    return [Split(Features(each, end_stage, columns), s.labels) for each, s in zip(values, splits, strict=True)]


_WORTH = 0.75
"""Columns are left out if at most this share of them remains: selecting rows of the weights costs time too."""


def _columns_to_keep(needed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Indices of the columns to keep: those that are needed, bool (C,), and a few more.

    `dense` takes the same number of columns from each of its parts, so parts with fewer needed columns are filled up.
    The number is rounded up to a multiple of 32, so that features that differ in a few columns share one program:

        part 0 needs 40, part 1 needs 7    ->    64 columns from each
    """
    parts = needed.reshape(dense_parts(len(needed)), -1)
    count = min(max(1, -(-int(parts.sum(1).max()) // 32)) * 32, parts.shape[1])
    some = np.sort(np.argsort(~parts, kind="stable")[:, :count])
    return (some + np.arange(0, needed.size, parts.shape[1])[:, None]).ravel().astype(np.int32)


def _select_in_place(columns: np.ndarray[Any, Any], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """x[:, columns] for x (N, C), written over x itself: a data set's features may take gigabytes."""
    flat, n = x.reshape(-1), len(columns)
    for start in range(0, len(x), 1024):
        some = x[start : start + 1024, columns]
        flat[start * n : start * n + some.size] = some.ravel()
    return flat[: len(x) * n].reshape(len(x), n)


class SharedFeatures:
    """The features of the last run, which the next one uses if it freezes the same weights and has the same images.

    So in a study of learning rates for a frozen backbone, the first run of each seed computes them for all of that
    seed. Only those of one run are kept, so that several runs need no more memory than one.
    """

    def __init__(self) -> None:
        self._key = ""
        self._features: list[Features] = []

    def compute(
        self, variables: Any, splits: Sequence[Split], *, model: ModelConfig, end_stage: int, **settings: Any
    ) -> list[Split]:
        """`compute_features`, unless the call before had equal arguments."""
        if any(isinstance(split.images, ImageRows) for split in splits):
            key = ""  # the images are not in memory, and a digest would read them all
        else:
            frozen = {name: partition(tree, model, end_stage)[0] for name, tree in variables.items()}
            images = {str(i): split.images for i, split in enumerate(splits)}
            key = f"{digest({**frozen, 'images': images})} {model} {end_stage} {settings}"
        if not key or key != self._key:
            self.drop()  # before others are computed
            found = compute_features(variables, splits, model=model, end_stage=end_stage, **settings)
            self._key, self._features = key, [split.images for split in found] if key else []
            return found
        return [Split(each, split.labels) for each, split in zip(self._features, splits, strict=True)]

    def drop(self) -> None:
        """Frees the features."""
        self._key, self._features = "", []


def feature_bytes(config: ExperimentConfig, dataset: Dataset, end_stage: int) -> int:
    """Memory in bytes of the features of the training and validation images."""
    images = len(dataset.train.labels) + (0 if dataset.validation is None else len(dataset.validation.labels))
    width = 2 if config.train.precision == "bfloat16" else 4
    return images * int(np.prod(_feature_shape(config.model, end_stage))) * width


def _feature_shape(model: ModelConfig, end_stage: int) -> tuple[int, ...]:
    if end_stage > model.num_blocks:
        return (model.hidden_dims[end_stage - 1],)
    size = model.input_size >> sum(model.apply_pooling[:end_stage])
    return (size, size, model.channels[end_stage - 1])
