"""The modality integration rate: how far image tokens are from text tokens inside the decoder.

MIR (Huang et al., "Deciphering Cross-Modal Alignment in Large Vision-Language Models with Modality
Integration Rate", arXiv 2410.07167, and the authors' program): for each layer, features of both
kinds are scaled by the mean length of the text's, outliers are replaced, and the Frechet distance
between the two is taken; the rate is the logarithm of their sum over layers, to base 10 as in that
program. Less is better aligned. Its default replaces the square root of the matrices' product by
five steps of an iteration; here, as in its `accurate` mode, it is exact.

Shape suffixes: n tokens, m other tokens, h hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_DEVIATIONS = 3.0  # of the lengths' standard deviation, between the median and an outlier
# Two tokens have a covariance; fewer have none.
LEAST_TOKENS = 2


def modality_integration_rate(distances: Sequence[float]) -> float:
    """log10 of the sum of `layer_distance` over the layers.

    Raises:
        ValueError: the sum is 0, as of features of both kinds that are the same.
    """
    if sum(distances) <= 0:
        raise ValueError("the features of both kinds are the same: their distance has no logarithm")
    return math.log10(sum(distances))


def layer_distance(vision_nh: Tensor, text_mh: Tensor) -> float:
    """Frechet distance of a layer's features, after the two normalisations; in float64."""
    vision_nh, text_mh = vision_nh.double(), text_mh.double()
    scale = 1 / text_mh.norm(dim=-1).mean()
    return frechet_distance(without_outliers(scale * vision_nh), without_outliers(scale * text_mh))


def without_outliers(features_nh: Tensor) -> Tensor:
    """Those whose length is too far from the median one replaced by the median of all features.

    Of an even number the median is the lower of the two in the middle, as torch's is.
    """
    lengths = features_nh.norm(dim=-1)
    is_outlier = (lengths - lengths.median()).abs() > _DEVIATIONS * lengths.std()
    return torch.where(is_outlier[:, None], features_nh.median(dim=0).values, features_nh)


def frechet_distance(first_nh: Tensor, second_mh: Tensor) -> float:
    """|mean - mean'|^2 + tr(C) + tr(C') - 2 tr((C C')^1/2), with unbiased covariances C.

    With A^T A = C and B^T B = C' the eigenvalues of C C' are the squares of the singular values of
    A B^T: their sum needs no square root of a matrix, and is exact where C is singular.

    Raises:
        ValueError: there are fewer than two rows.
    """
    if min(len(first_nh), len(second_mh)) < LEAST_TOKENS:
        raise ValueError("a covariance needs at least two tokens of each kind")
    shift = (first_nh.mean(dim=0) - second_mh.mean(dim=0)).square().sum()
    first, second = _root(first_nh), _root(second_mh)
    common = torch.linalg.svdvals(first @ second.T).sum()
    return float(shift + first.square().sum() + second.square().sum() - 2 * common)


def _root(features_nh: Tensor) -> Tensor:
    """[k, h] whose product with itself is the covariance of the rows, k at most h."""
    centred = (features_nh - features_nh.mean(dim=0)) / math.sqrt(len(features_nh) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    return torch.linalg.qr(centred, mode="r").R
