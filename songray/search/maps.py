"""Maps: vectors in two dimensions, and how far a map can be trusted."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from songray.library import Vectors

Method = Literal["pca", "tsne", "umap"]
METHODS: dict[Method, str] = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
NEIGHBOURS = 15  # of UMAP, and of the measures
MEASURED_TRACKS = 3000  # of a map whose trustworthiness is computed: its time is quadratic

Positions = NDArray[np.float32]  # (tracks, 2)


class Faithfulness(NamedTuple):
    """How well a map keeps neighbours, 0…1 (Venna and Kaski, 2001): 1 where those on the map are among the
    nearest vectors (trustworthiness), and where the nearest vectors are near on the map (continuity)."""

    trustworthiness: float
    continuity: float

    def __str__(self) -> str:
        return f"trustworthiness {self.trustworthiness:.2f}, continuity {self.continuity:.2f}"


def positions_of(vectors: Vectors, method: Method) -> Positions:
    """The positions of unit vectors, (tracks, dimension), on a map: equal ones for equal vectors."""
    if method == "pca" or len(vectors) <= NEIGHBOURS:
        from sklearn.decomposition import PCA

        found = PCA(2, random_state=0).fit_transform(vectors)
        found *= np.sign(np.take_along_axis(found, np.abs(found).argmax(axis=0, keepdims=True), axis=0))
    elif method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(vectors) - 1) / 3)
        model = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=0)
        found = model.fit_transform(vectors)
    else:
        from umap import UMAP

        model = UMAP(n_neighbors=NEIGHBOURS, metric="cosine", init="pca", random_state=0, n_jobs=1)
        found = model.fit_transform(vectors)
    positions: Positions = np.asarray(found, np.float32)
    return positions


def faithfulness(vectors: Vectors, positions: Positions) -> Faithfulness:
    """On the first 3,000 tracks."""
    from sklearn.manifold import trustworthiness

    near, on_map = vectors[:MEASURED_TRACKS], positions[:MEASURED_TRACKS]
    k = max(1, min(NEIGHBOURS, (len(near) - 1) // 2 - 1))
    # Continuity is trustworthiness with the two spaces exchanged.
    pair = trustworthiness(near, on_map, n_neighbors=k), trustworthiness(on_map, near, n_neighbors=k)
    return Faithfulness(*map(float, pair))
