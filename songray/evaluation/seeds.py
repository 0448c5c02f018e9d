"""Five published systems, on the library at hand: what their authors found, and what is found here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from songray.evaluation import figures
from songray.evaluation.material import Material
from songray.evaluation.parts import Figure, Table, reconstruction
from songray.evaluation.seed_figures import (
    albums_by_date,
    arithmetic,
    communities,
    composite,
    examples,
    four_genres,
    fused_genre,
    genre_map,
    genre_order,
    listener_pairs,
    loss,
    means,
    model_table,
    playlist_spread,
    snippets,
    top_ten,
    two_spectrograms,
    unexplained,
    waveform,
    whole_map,
)


@dataclass(frozen=True)
class Seed:
    """A published system: its figures, each or the reason why it is missing, and findings beside ours."""

    name: str
    source: str
    figures: Sequence[Figure | Table | str]
    findings: Sequence[tuple[str, str]]  # of the authors, and here


def seeds(material: Material) -> list[Seed]:
    return [clothier(material), song2vec(material), vae(material), dual_axis(material), songnet(material)]


def text_of(figure: Figure | str) -> str:
    return figure if isinstance(figure, str) else figure.caption


def clothier(material: Material) -> Seed:
    run = material.run_of("cae")
    pairs = listener_pairs(material, run or material.best)
    return Seed(
        "Convolutional autoencoder over time",
        "Clothier and Benson, 2021; the model cae",
        [
            reconstruction(material, run, "cae"),
            loss(material, run, "cae"),
            snippets(material, run or material.best),
            pairs,
        ],
        [
            (
                "test error over that of initial weights about 0.20, and 1.7 times that of training",
                unexplained(material, run),
            ),
            ("of two pairs that listeners think alike, one lies together on the map", text_of(pairs)),
        ],
    )


def song2vec(material: Material) -> Seed:
    run, pca = material.run_of("ali"), material.run_of("pca")
    facts = material.measured.facts.get("genre sets", {})
    shown = [name for name in (run, pca, material.best) if name in facts]
    score = "4 genres, k-means: AMI"
    values = [f"{name} {facts[name][score]:.2f}" for name in shown if score in facts[name]]
    return Seed(
        "song2vec",
        "Ross and Ramakrishnan; the model ali",
        [
            two_spectrograms(material),
            loss(material, run, "ali"),
            Table.of_facts("Clusters of ALI, of PCA and of the best run, against genres",
                           {name: facts[name] for name in dict.fromkeys(shown)})
            if shown else "Clusters against genres: fewer than four genres have two tracks",
            genre_map(material, run or material.best),
            four_genres(material, run or material.best),
            fused_genre(material, run or material.best),
            albums_by_date(material, run or material.best),
        ],
        [
            ("on four genres ALI is well above PCA, which is near chance (AMI)",
             "; ".join(values) or "no genres"),
        ],
    )  # fmt: skip


def vae(material: Material) -> Seed:
    run = material.run_of("vae") or material.best
    order, spread = genre_order(material, run), playlist_spread(material, run)
    return Seed(
        "Variational autoencoder",
        "A convolutional VAE behind a home page with a map; the model vae",
        [order, spread, arithmetic(material, run)],
        [
            ("genres lie in order along the first component", text_of(order)),
            ("a playlist's songs lie together", text_of(spread)),
        ],
    )


def dual_axis(material: Material) -> Seed:
    run = material.run_of("dualaxis")
    return Seed(
        "Dual-axis autoencoder",
        "An autoencoder over time and over frequency; the model dualaxis",
        [
            waveform(material),
            composite(material),
            reconstruction(material, run, "dualaxis"),
            loss(material, run, "dualaxis", "unexplained"),
            whole_map(material, run or material.best),
            *means(material, run or material.best),
            top_ten(material, run or material.best),
        ],
        [
            (
                "MSE 0.0037 in training and validation, clearly below a plain 2-D one",
                unexplained(material, run),
            )
        ],
    )


def songnet(material: Material) -> Seed:
    run = material.run_of("cae2d") or material.best
    counts = material.measured.counts.get(run)
    here = f"{run}: {counts.silhouette[0]:.3f}, k by silhouette {counts.by_silhouette}" if counts else ""
    return Seed(
        "SongNet",
        "Dantuluri, Farnan and Bose; the model cae2d",
        [
            model_table(material),
            loss(material, material.run_of("cae2d"), "cae2d"),
            "Clusters after several epochs: a run keeps the weights of one epoch",
            Figure(f"Silhouette and elbow, {run}", figures.cluster_counts(counts), "Dashed: the chosen k.")
            if counts else "Silhouette and elbow: too few tracks",
            *communities(material, run),
            examples(material, run),
        ],
        [
            ("silhouette at k = 2 of 0.09 to 0.21", here),
            ("communities of 2706, 28, 20 and 9 songs: degenerate, and no match with clusters",
             "; ".join(remark for remark in material.measured.remarks if "degenerate" in remark)
             or "communities are not degenerate: see the table of communities"),
        ],
    )  # fmt: skip
