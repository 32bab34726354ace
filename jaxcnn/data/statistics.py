"""Mean and standard deviation of a data set's channels."""

from fractions import Fraction

import numpy as np

from jaxcnn.config.standardisation import Standardisation


def channel_statistics(images: np.ndarray) -> Standardisation:
    """Mean and standard deviation of each channel of uint8 images (N, H, W, C) divided by 255.

    The sums are of whole numbers, and so are exact in any order.
    """
    channels = images.shape[-1]
    sums = np.zeros((2, channels), np.uint64)
    for start in range(0, len(images), 128):
        pixels = images[start : start + 128].reshape(-1, np.prod(images.shape[1:])).astype(np.uint32)
        for total, values in zip(sums, (pixels, pixels * pixels), strict=True):
            # The sum of 128 squares of bytes fits in 32 bits. The sum over an image's pixels may not.
            columns = values.sum(axis=0, dtype=np.uint32)
            total += columns.reshape(-1, channels).sum(axis=0, dtype=np.uint64)
    count = images.size // channels
    means = [Fraction(int(total), count) for total in sums[0]]
    variances = [Fraction(int(total), count) - mean**2 for total, mean in zip(sums[1], means, strict=True)]
    return Standardisation(
        tuple(float(mean / 255) for mean in means),
        tuple(float(variance) ** 0.5 / 255 for variance in variances),
    )
