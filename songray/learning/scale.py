"""The scale of a model's vectors: the projection that a run fits on the vectors of its tracks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from songray.library import Vectors

WCCN_POWER = 0.75  # 0: no normalisation, 1: the within-class covariance becomes the identity
MAX_COMPONENTS = 64
CLASS_POWER = 0.5  # as WCCN_POWER, where classes are artists


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Vectors, (rows, dimension), scaled to length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled


def standardise(pooled: Vectors) -> Vectors:
    """The factors, (dimension,), by which each number gets a standard deviation of 1 over these vectors."""
    deviation = pooled.std(axis=0, dtype=np.float64)
    return (1 / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def centre(pooled: Vectors) -> Vectors:
    """Factors of 1: vectors that were trained for their cosine are only centred."""
    return np.ones(pooled.shape[1], np.float32)


def whiten(pooled: Vectors) -> Vectors:
    """The projection to the first principal components, each divided by its standard deviation. Otherwise the
    one or two directions that have nearly all of a latent space's variance, such as loudness, decide every
    cosine."""
    directions, deviations = principal_components(pooled, tracks_per_component=4)
    projection: Vectors = (directions / deviations).astype(np.float32)
    return projection


def wccn(pooled: Vectors, differences: Vectors) -> Vectors:
    """The projection of within-class covariance normalisation (Hatch et al., 2006): numbers are standardised,
    projected to principal components, and multiplied by the within-class covariance to the power
    −WCCN_POWER / 2.

    `differences`, (parts, dimension), are those between the vectors of a clip with and without a part of its
    windows; their covariance is shrunk as by Ledoit and Wolf (2004). Of the powers 0.5, 0.75 and 1, and of
    one component for every four, three and two tracks, these gave `contrastive` the most precise nearest
    neighbours on real clips without a loss on the styles of synthetic songs.
    """
    factors = standardise(pooled)
    directions, deviations = principal_components(pooled * factors, tracks_per_component=3)
    within = differences * factors @ directions
    if not within.any():  # every clip has one window: the variance between tracks takes its place
        within = np.diag(deviations)
    normalisation = within_class_normalisation(within, WCCN_POWER)
    projection: Vectors = (factors[:, None] * (directions @ normalisation)).astype(np.float32)
    return projection


def within_class_projection(
    vectors: Vectors, classes: NDArray[np.str_], power: float = CLASS_POWER
) -> Vectors:
    """The projection, (dimension, dimension), of within-class covariance normalisation (Hatch et al., 2006)
    of vectors whose classes are known: directions in which vectors of one class differ count less. Classes
    of one vector say nothing.
    """
    _, number, count = np.unique(classes, return_inverse=True, return_counts=True)
    means = np.zeros((len(count), vectors.shape[1]))
    np.add.at(means, number, vectors)
    differences = (vectors - (means / count[:, None])[number])[count[number] > 1]
    projection: Vectors = within_class_normalisation(differences, power).astype(np.float32)
    return projection


def within_class_normalisation(differences: NDArray[np.floating], power: float) -> NDArray[np.float64]:
    """The covariance of differences within classes, (differences, dimension), shrunk as by Ledoit and Wolf
    (2004), to the power −power / 2: (dimension, dimension)."""
    from sklearn.covariance import ledoit_wolf  # loaded when called: it takes as long as torch

    values, vectors = np.linalg.eigh(ledoit_wolf(differences, assume_centered=True)[0])
    powers = np.maximum(values, 1e-6 * values.max()) ** (-power / 2)
    normalisation: NDArray[np.float64] = vectors * powers @ vectors.T
    return normalisation


def principal_components(
    pooled: Vectors, tracks_per_component: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first principal directions of vectors, (dimension, components), and the standard deviation along
    each. Their number is limited by that of the tracks, by the rank, and by MAX_COMPONENTS."""
    centred = pooled - pooled.mean(axis=0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    rank = int((sizes > 1e-6 * sizes[0]).sum())
    kept = max(1, min(len(pooled) // tracks_per_component, MAX_COMPONENTS, rank))
    return directions[:kept].T, np.maximum(sizes[:kept], 1e-12) / np.sqrt(len(pooled))


SCALES = {"standardise": standardise, "whiten": whiten, "centre": centre}
