"""The figures of published systems, of the tracks of a sample. Each is a figure or a table, or the reason why
the library has too little for it."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from songray.evaluation import figures
from songray.evaluation.material import Material, title
from songray.evaluation.parts import Figure, Table, listed, sound
from songray.library import Vectors
from songray.search.maps import METHODS, Method, positions_of

SNIPPET_SONGS = 6
LEAST_SPREAD = 8  # tracks of a playlist whose spread is shown
EXAMPLES = 3  # tracks of each cluster
SHOWN: tuple[Method, ...] = ("pca", "tsne")  # maps of communities
ZOOMS = (10.0, 1.0, 0.1, 0.01)  # seconds


def loss(material: Material, run: str | None, model: str, kind: str = "loss") -> Figure | str:
    curve = material.records[run].curve if run else []
    names = [name for name in (curve[0] if curve else {}) if name.endswith(kind)]
    if not names:
        return f"Curve of {model}: {'no run of the model is compared' if not run else 'it is not trained'}"
    lines = {name.replace("_", " "): [epoch.get(name, float("nan")) for epoch in curve] for name in names}
    heading = "Unexplained variance" if kind == "unexplained" else "Loss"
    return Figure(f"{heading}, {run}", figures.curves(lines, heading.lower()))


def unexplained(material: Material, run: str | None) -> str:
    if not run or not (curve := material.records[run].curve):
        return "no such run is compared"
    last = material.records[run].metrics
    if "validation_unexplained" not in last:
        return "it does not reconstruct"
    trained = f", in training {last['unexplained']:.2f}" if "unexplained" in last else ""
    return (
        f"{last['validation_unexplained']:.2f} of the variance unexplained after {last['epoch']:.0f} of "
        f"{len(curve)} epochs ({last['seconds']:.0f} s){trained}"
    )


def snippets(material: Material, run: str) -> Figure | str:
    import torch

    record = material.records[run]
    if record.members:
        return f"Cosines of snippets: {run} joins other runs"
    lines = {}
    for position in range(min(SNIPPET_SONGS, len(material.rows))):
        windows = material.windows(run, position)
        if windows is not None and len(windows) > 2:
            with torch.inference_mode():
                pooled = material.encoder(run).model.embed(torch.from_numpy(windows)).numpy()
            vectors = material.encoder(run).normalise(pooled)
            lines[title(material.rows[position])[:34]] = (vectors @ vectors[0]).tolist()
    if not lines:
        return f"Cosines of snippets: no spectrogram of {run} has three windows"
    svg = figures.lines(lines, "window", "cosine to the first window")
    return Figure(f"Each snippet beside the first one of its song, {run}", svg)


def listener_pairs(material: Material, run: str) -> Figure | str:
    listening = material.measured.listening
    if listening is None:
        return "Pairs that listeners think alike: too few playlists"
    tracks = listening.factored[listening.factored < len(material.rows)]
    artists = material.measured.sample.artists[tracks]
    cosines = listening.factors[: len(tracks)] @ listening.factors[: len(tracks)].T
    cosines[artists[:, None] == artists[None]] = -1
    first = divmod(int(cosines.argmax()), len(tracks))
    cosines[list(first)] = cosines[:, list(first)] = -1
    pairs = {name: tracks[list(pair)] for name, pair in
             (("a", first), ("b", divmod(int(cosines.argmax()), len(tracks))))}  # fmt: skip
    vectors = material.vectors(run)
    own = {name: float(vectors[pair[0]] @ vectors[pair[1]]) for name, pair in pairs.items()}
    ranks = {name: float((vectors @ vectors[pair[0]] > own[name]).mean()) for name, pair in pairs.items()}
    caption = "; ".join(
        f"{name}: {title(material.rows[pair[0]])} and {title(material.rows[pair[1]])}, nearer than "
        f"{1 - ranks[name]:.0%} of all tracks"
        for name, pair in pairs.items()
    )
    svg = figures.scatter(material.positions(run, "pca"), marks=pairs)
    return Figure(f"Two pairs that playlists join most, on the PCA map of {run}", svg, caption)


def genre_map(material: Material, run: str) -> Figure | str:
    if len(material.genres) < 2:
        return "t-SNE by genre: fewer than two genres"
    svg = figures.scatter(material.positions(run, "tsne"), material.genre_codes)
    text = str(material.faithfulness(run, "tsne"))
    return Figure(f"t-SNE of all genres, {run}", svg, text, material.genres)


def four_genres(material: Material, run: str) -> Figure | str:
    chosen = material.measured.sets.get("4 genres")
    if not chosen:
        return "t-SNE of four genres: fewer than four genres have two tracks"
    tracks = np.flatnonzero([name in chosen for name in material.first_genres])
    codes = np.array([chosen.index(material.first_genres[track]) for track in tracks])
    svg = figures.scatter(positions_of(material.vectors(run)[tracks], "tsne"), codes)
    text = f"{chosen[0]} and {chosen[1]} are the closest two genres, the others the farthest from them."
    return Figure(f"t-SNE of four genres, {run}", svg, text, chosen)


def fused_genre(material: Material, run: str) -> Figure | str:
    names = set(material.genres)
    for fused in material.genres:
        parents = [name for name in names - {fused} if name in fused.replace("-", " ").split(" ")]
        if len(parents) >= 2:
            marks = {name: np.flatnonzero([own == name for own in material.first_genres])
                     for name in (fused, *parents[:2])}  # fmt: skip
            svg = figures.scatter(material.positions(run, "pca"), marks=marks)
            return Figure(f"{fused} between {parents[0]} and {parents[1]}, PCA of {run}", svg)
    return "A fused genre between its parents: no genre is named after two others, such as folk rock"


def albums_by_date(material: Material, run: str) -> Figure | str:
    years: dict[str, dict[int, int]] = defaultdict(dict)
    for position, row in enumerate(material.rows):
        date = row["release_date"] or ""
        if row["artist_names"] and date[:4].isdigit():
            years[row["artist_names"][0]][position] = int(date[:4])
    artist = max(years, key=lambda name: (len(set(years[name].values())), len(years[name])), default="")
    if not artist or len(set(years[artist].values())) < 3:
        return "One artist's albums by date: no artist has tracks of three years"
    tracks = np.array(list(years[artist]))
    positions = positions_of(material.vectors(run)[tracks], "pca")
    values = np.array(list(years[artist].values()), float)
    return Figure(f"{artist}, by year, PCA of {run}", figures.numbers(positions, values, "year"))


def genre_order(material: Material, run: str) -> Figure | str:
    if len(material.genres) < 3:
        return "Genres along the first component: fewer than three genres"
    first = material.positions(run, "pca")[:, 0]
    values = {name: first[material.genre_codes == code] for code, name in enumerate(material.genres)}
    between = sum(len(own) * (own.mean() - first.mean()) ** 2 for own in values.values())
    share = between / ((first - first.mean()) ** 2).sum()
    text = f"Genres explain {share:.0%} of the variance along it."
    return Figure(f"Genres along the first principal component, {run}",
                  figures.boxes(values, "first principal component"), text)  # fmt: skip


def playlist_spread(material: Material, run: str) -> Figure | str:
    listening = material.measured.listening
    shown = [own for own in (listening.continued if listening else [])
             if (own < len(material.rows)).sum() >= LEAST_SPREAD]  # fmt: skip
    if not shown:
        return f"A playlist's spread: no playlist has {LEAST_SPREAD} of the tracks"
    playlist = shown[0][shown[0] < len(material.rows)]
    vectors = material.vectors(run)
    own = vectors[playlist] @ vectors[playlist].T
    within = float((own.sum() - len(playlist)) / (len(playlist) * (len(playlist) - 1)))
    overall = float(np.linalg.norm(vectors.mean(axis=0)) ** 2)
    text = f"Mean cosine of its {len(playlist)} tracks {within:.2f}, of all pairs {overall:.2f}."
    svg = figures.scatter(material.positions(run, "pca"), marks={"": playlist})
    return Figure(f"A playlist on the PCA map of {run}", svg, text)


def arithmetic(material: Material, run: str) -> Table | str:
    if len(material.genres) < 2:
        return "a − b + c: fewer than two genres"
    vectors = material.vectors(run)
    codes = material.genre_codes
    a, c = (int(np.flatnonzero(codes == code)[0]) for code in (0, 1))
    b = int(np.flatnonzero(codes == 0)[-1])
    rows = neighbours(material, vectors, vectors[a] - vectors[b] + vectors[c], {a, b, c}, 5)
    heading = " ".join(
        f"{sign}{title(material.rows[track])} [{material.first_genres[track]}]"
        for sign, track in (("", a), ("− ", b), ("+ ", c))
    )
    return Table(f"a − b + c, {run}: {heading}", ["cosine", "track", "genre"], rows)


def neighbours(
    material: Material, vectors: Vectors, query: Vectors, left_out: set[int], k: int
) -> list[list[str]]:
    cosines = vectors @ (query / max(float(np.linalg.norm(query)), 1e-12))
    order = [int(track) for track in np.argsort(-cosines, kind="stable") if int(track) not in left_out][:k]
    return [
        [f"{cosines[track]:.3f}", title(material.rows[track]), material.first_genres[track]]
        for track in order
    ]


def two_spectrograms(material: Material) -> Figure | str:
    return sound(material, material.measured.sets.get("4 genres", [])[1:3])


def waveform(material: Material) -> Figure | str:
    recording = material.recording(0)
    if recording is None:
        return "A waveform at four zooms: the audio of the first track cannot be decoded"
    svg = figures.waveforms(recording.samples, recording.rate, ZOOMS)
    return Figure(f"The waveform of {title(material.rows[0])}, at four zooms", svg)


def composite(material: Material) -> Figure | str:
    from songray.audio.spectrograms import compute

    recording = material.recording(0)
    if recording is None:
        return "A composite of mel, MFCC and chroma: the audio of the first track cannot be decoded"
    names = {"mel128-8k": "mel", "mfcc20-8k": "MFCC", "chroma12": "chroma"}
    planes = compute(recording.resampled(22_050), list(names))
    shown = {names[name]: plane[:512] for name, plane in planes.items()}
    return Figure(f"Mel, MFCC and chroma of {title(material.rows[0])}", figures.spectrograms(shown))


def whole_map(material: Material, run: str) -> Figure:
    names, codes = material.colors
    svg = figures.scatter(material.positions(run, "umap"), codes if names else None)
    return Figure(f"UMAP of all tracks, {run}", svg, str(material.faithfulness(run, "umap")), names)


def means(material: Material, run: str) -> list[Figure | Table | str]:
    positions, rows = material.positions(run, "umap"), material.rows
    if not material.genres:
        return ["Means of artists and genres: no genres"]
    artists = Counter(row["artist_names"][0] for row in rows if row["artist_names"])
    by_genre = {name: np.flatnonzero(material.genre_codes == code)
                for code, name in enumerate(material.genres[:8])}  # fmt: skip
    by_artist = {
        name: np.flatnonzero([bool(row["artist_names"]) and row["artist_names"][0] == name for row in rows])
        for name, _ in artists.most_common(8)
    }
    every: list[Figure | Table | str] = []
    for kind, groups in (("genres", by_genre), ("the artists with the most tracks", by_artist)):
        points = np.stack([positions[own].mean(axis=0) for own in groups.values()])
        svg = figures.scatter(points, marks={name: np.array([n]) for n, name in enumerate(groups)})
        every.append(Figure(f"Means of {kind}, UMAP of {run}", svg))
    return every


def top_ten(material: Material, run: str) -> Table:
    vectors = material.vectors(run)
    rows = neighbours(material, vectors, vectors[0], {0}, 10)
    return Table(f"The ten nearest of {title(material.rows[0])}, {run}", ["cosine", "track", "genre"], rows)


def model_table(material: Material) -> Table:
    rows = []
    for name, run in material.records.items():
        cost = material.measured.facts.get("cost", {}).get(name, {})
        counts = material.measured.counts.get(name)
        share = run.metrics.get("validation_unexplained")
        rows.append(
            [name, f"{cost.get('parameters', ''):,}" if cost else "", str(cost.get("dimension", "")),
             "" if share is None else f"{share:.3f}", f"{counts.silhouette[0]:.3f}" if counts else ""]
        )  # fmt: skip
    heads = ["run", "parameters", "length of a vector", "unexplained variance", "silhouette at k = 2"]
    return Table("Models", heads, rows)


def communities(material: Material, run: str) -> list[Figure | Table | str]:
    found = material.measured.communities
    if found is None:
        return ["Communities of playlists: no playlists, or igraph is not installed"]
    clusters, labels = material.clusters(run), found.labels["leading eigenvector"]
    is_shown = found.tracks < len(material.rows)
    tracks, labels = found.tracks[is_shown], labels[is_shown]
    codes = np.full(len(material.rows), -1)
    codes[tracks] = labels
    maps: list[Figure | Table | str] = [
        Figure(f"{kind} on the {name} map of {run}", figures.scatter(material.positions(run, method), each))
        for method, name in ((method, METHODS[method]) for method in SHOWN)
        for kind, each in (("Communities", codes), ("Clusters", clusters))
    ]
    table = np.zeros((labels.max() + 1, clusters.max() + 1), np.int64)
    np.add.at(table, (labels, clusters[tracks]), 1)
    rows, columns = ([str(number + 1) for number in range(count)] for count in table.shape)
    svg = figures.heatmap(table, rows, columns, "cluster", "community")
    return [*maps, Figure(f"Communities against clusters, {run}", svg, "Numbers of tracks.")]


def examples(material: Material, run: str) -> Table:
    vectors, clusters = material.vectors(run), material.clusters(run)
    rows = []
    for number in range(clusters.max() + 1):
        members = np.flatnonzero(clusters == number)
        nearest = members[np.argsort(-(vectors[members] @ vectors[members].mean(axis=0)))[:EXAMPLES]]
        genres = Counter(material.first_genres[track] for track in members if material.first_genres[track])
        common = ", ".join(f"{name} {count}" for name, count in genres.most_common(3))
        rows.append([str(number + 1), str(len(members)), listed(material, nearest), common])
    heads = ["cluster", "tracks", "nearest to its mean", "genres"]
    return Table(f"Songs of each cluster, {run}", heads, rows)
