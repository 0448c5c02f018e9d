"""Which seconds of a whole song are embedded: how good the neighbours are, and what each choice costs.

The music is the whole pieces that the clips of bench_pretrained were cut from, in packages of Debian 12 that
its manifest names. SONGRAY_BENCH_PIECES is a folder with each package unpacked in a folder of its name:

    for package in $(python -c 'import bench_excerpts as b; print(*b.packages())'); do
        apt-get download $package && dpkg -x ${package}_*.deb $SONGRAY_BENCH_PIECES/$package
    done

An excerpt is made of windows of musicnn, 2.992 s: the piece is cut into them from its start, and each choice
takes some of them, so that every window is embedded once. mel128 is cut at the same seconds, and made
relative to the loudest bin of the excerpt. `test_decoded` compares this with what songray decodes.

recording: the query is a clip of 30 s, an MP3 of 80 kbit/s, searched among all pieces. All windows that
contain a part of the clip, or come within MARGIN seconds of it, are cut out of its own piece before the
excerpt is chosen; the other pieces are as they are. The share of queries whose nearest piece is theirs; those
whose piece has less than 30 s left are left out.
artist, package: each piece is a query among the others: R-precision by artist, and the share of the first
five from the same package, as in bench_fusion. Files of the same name in two packages are one recording.
The mean and the projection of a model are fitted on all pieces, with the same excerpt; queries take part in
the ranking with those of the pieces. In brackets are intervals of 95 % over resamples of the artists; pieces
without an artist count as those of an artist of their package.
"""

from __future__ import annotations

import io
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from bench_fusion import Music, cosines, means
from bench_pretrained import MUSIC, NAMES, SPEC_NAMES, manifest
from tabulate import tabulate

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.spectrograms import SPECS, Spectrogram, compute, quantise
from songray.learning.encoder import fit_encoder
from songray.learning.fusion import Fusion
from songray.learning.loop import build_model
from songray.learning.models import MODELS
from songray.learning.models.base import Embedder
from songray.learning.windows import embed_clips, jackknife_clips, tile
from songray.library import Vectors
from songray.pipeline import MEMBERS

FOLDER = Path(os.environ.get("SONGRAY_BENCH_PIECES", "pieces"))
WHOLE = 1200.0  # s, longer than all pieces
WINDOW = 187 * 256 / 16_000  # s
MARGIN = 1.5  # s
CLIP = 30.0  # s
LONG = 120.0  # s, from which a piece is long
ROUNDS = 3
COSTED = 6  # every so many pieces are decoded to measure the cost
FUSION = "fusion"
FIRST = "30 s, middle"
CHOICES = {  # seconds, pieces
    FIRST: (30.0, 1),
    "30 s, 2 pieces": (30.0, 2),
    "30 s, 3 pieces": (30.0, 3),
    "30 s, 5 pieces": (30.0, 5),
    "30 s, 10 pieces": (30.0, 10),
    "15 s, 5 pieces": (15.0, 5),
    "60 s, middle": (60.0, 1),
    "60 s, 6 pieces": (60.0, 6),
    "60 s, 20 pieces": (60.0, 20),
    "90 s, 9 pieces": (90.0, 9),
    "90 s, 30 pieces": (90.0, 30),
    "whole": (WHOLE, 1),
}
FIXED = (FIRST, "30 s, 2 pieces", "30 s, 10 pieces", "60 s, 6 pieces", "90 s, 9 pieces", "whole")
SCORES = ("recording, r@1", "artist, R-precision", "package, p@5")

Spectrograms = dict[str, Spectrogram]  # by spec
Values = tuple[np.ndarray, np.ndarray, np.ndarray]  # SCORES of each piece, NaN where it is no query


@dataclass(frozen=True)
class Piece:
    path: str
    clips: list[dict[str, str]]  # rows of the manifest

    def rest(self, count: int, clip: dict[str, str]) -> np.ndarray:
        """Which of its windows are apart from the clip."""
        starts, begin = np.arange(count) * WINDOW, float(clip["seconds_into"])
        is_apart = (starts + WINDOW <= begin - MARGIN) | (starts >= begin + CLIP + MARGIN)
        return np.flatnonzero(is_apart)


class Pieces(Music):
    """The labels of the pieces."""

    def __init__(self, pieces: list[Piece]) -> None:
        rows = [piece.clips[0] for piece in pieces]
        self.artist, self.package = (np.array([row[name] for row in rows]) for name in ("artist", "package"))
        self.recording = np.array([Path(row["source"]).name for row in rows])
        self.group = np.where(self.artist == "", self.package, self.artist)

    def same_recording(self, queries: Vectors, own: Vectors, whole: Vectors, of: np.ndarray) -> np.ndarray:
        """For each piece the share of its queries to which it is nearest. `own` is the piece of each query
        without the query, NaN where too little remains; `of` is its position."""
        others = np.where(self.recording[of][:, None] == self.recording, -np.inf, queries @ whole.T)
        similarity = (queries * own).sum(axis=1)
        is_query = np.isfinite(similarity)
        counts = np.bincount(of, is_query, len(whole))
        firsts = np.bincount(of, similarity > others.max(axis=1), len(whole))
        return np.where(counts > 0, firsts / np.maximum(counts, 1), np.nan)


def packages() -> list[str]:
    return sorted({row["package"] for row in manifest()})


def chosen(count: int, seconds: float, pieces: int) -> np.ndarray:
    """The windows of an excerpt of `count` windows, placed as Excerpt does."""
    length = min(round(seconds / WINDOW), count)
    gap, ends = (count - length) / (pieces + 1), np.rint(np.linspace(0, length, pieces + 1)).astype(int)
    return np.concatenate([round(gap * (n + 1)) + np.arange(ends[n], ends[n + 1]) for n in range(pieces)])


def spectrograms_of(path: str, excerpt: Excerpt) -> Spectrograms:
    recording = decode(path, excerpt)
    planes = {name: compute(recording.resampled(SPECS[name].rate), [name])[name] for name in SPEC_NAMES}
    return {name: quantise(plane, SPECS[name]) for name, plane in planes.items()}


def cut(spectrogram: Spectrogram, windows: np.ndarray) -> Spectrogram:
    """The frames of mel128 in some windows, relative to the loudest of them."""
    frames = WINDOW * SPECS["mel128"].rate / SPECS["mel128"].hop_length
    kept = [spectrogram[round(window * frames) : round((window + 1) * frames)] for window in windows]
    joined = np.concatenate(kept)
    return joined + (255 - joined.max())


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    if not FOLDER.is_dir():
        pytest.skip(f"no packages at {FOLDER}: set SONGRAY_BENCH_PIECES")
    rows: dict[str, list[dict[str, str]]] = {}
    for row in manifest():
        rows.setdefault(row["recording"], []).append(row)
    clips = list(rows.values())
    return [Piece(str(FOLDER / first["package"] / first["source"]), [first, *more]) for first, *more in clips]


@dataclass(frozen=True)
class Heard:
    """What a model makes of the music."""

    model: Embedder
    embed: Callable[[int, np.ndarray], Vectors]  # piece, windows → (1 + parts, dimension)
    counts: list[int]  # windows of each piece
    queries: Vectors  # of the clips, pooled


def hear(name: str, music: list[Spectrograms], clips: list[Spectrograms]) -> Heard:
    model = build_model(MODELS[name](), 0).eval()
    tiles = [tile(whole["mel96-16k"], 187, padding="repeat") for whole in music]
    counts = [len(windows) for windows in tiles]
    queries = embed_clips(model, [clip[model.spec] for clip in clips])
    if model.spec == "mel96-16k":  # a window of this model, which is embedded once
        vectors = np.split(embed_clips(model, list(np.concatenate(tiles))), np.cumsum(counts)[:-1])
        return Heard(model, lambda n, windows: vectors[n][windows].mean(axis=0)[None], counts, queries)

    def embed(piece: int, windows: np.ndarray) -> Vectors:
        return jackknife_clips(model, [cut(music[piece][model.spec], windows)])[0]

    return Heard(model, embed, counts, queries)


@pytest.fixture(scope="module")
def music(pieces: list[Piece]) -> list[Spectrograms]:
    torch.set_num_threads(1)
    return [spectrograms_of(piece.path, Excerpt(WHOLE)) for piece in pieces]


@pytest.fixture(scope="module")
def clips(pieces: list[Piece]) -> list[Spectrograms]:
    return [spectrograms_of(str(MUSIC / clip["file"]), Excerpt()) for piece in pieces for clip in piece.clips]


Vectorised = tuple[Vectors, Vectors, Vectors]  # of the pieces; of the clips; of their pieces without them


def pooled(heard: Heard, pieces: list[Piece], choice: str) -> tuple[list[Vectors], Vectors]:
    """Of each piece what fit_encoder takes, and the vectors of the pieces without each of the clips."""

    def embed(piece: int, kept: np.ndarray) -> Vectors:
        return heard.embed(piece, kept[chosen(len(kept), *CHOICES[choice])])

    library = [embed(n, np.arange(count)) for n, count in enumerate(heard.counts)]
    rests = [(n, p.rest(heard.counts[n], clip)) for n, p in enumerate(pieces) for clip in p.clips]
    lacking = np.full(library[0].shape[1], np.nan)
    own = [embed(n, rest)[0] if len(rest) * WINDOW > CLIP - WINDOW else lacking for n, rest in rests]
    return library, np.stack(own)


@pytest.fixture(scope="module")
def vectors(
    pieces: list[Piece], music: list[Spectrograms], clips: list[Spectrograms]
) -> dict[str, dict[str, Vectorised]]:
    """By model and choice; the baselines also with the scale `centre`."""
    made: dict[str, dict[str, Vectorised]] = {}
    for name in NAMES:
        heard = hear(name, music, clips)
        found = {choice: pooled(heard, pieces, choice) for choice in CHOICES}
        declared = heard.model.scale
        for scale in dict.fromkeys((declared, "centre")):
            heard.model.scale = scale
            by_choice = made.setdefault(name if scale == declared else f"{name}, {scale}", {})
            for choice, (library, own) in found.items():
                encoder = fit_encoder(heard.model, library)
                whole = np.stack([vectors[0] for vectors in library])
                by_choice[choice] = tuple(map(encoder.normalise, (whole, heard.queries, own)))
    joined = Fusion(np.array([MEMBERS[name] for name in NAMES], np.float32))
    made[FUSION] = {
        choice: tuple(map(joined.join, zip(*(made[name][choice] for name in NAMES), strict=True)))
        for choice in CHOICES
    }
    return made


def score(labels: Pieces, pieces: list[Piece], made: Vectorised, half: np.ndarray | None = None) -> Values:
    whole, queries, own = made
    of = np.repeat(np.arange(len(pieces)), [len(piece.clips) for piece in pieces])
    recording = labels.same_recording(queries, own, whole, of)
    artist, package = labels.score(cosines(whole), half)
    return recording if half is None else recording[half], artist, package


def length(piece: Piece) -> float:
    return float(soundfile.info(piece.path).duration)


def test_recall(pieces: list[Piece], vectors: dict[str, dict[str, Vectorised]]) -> None:
    labels, lengths = Pieces(pieces), np.array([length(piece) for piece in pieces])
    quartiles = ", ".join(f"{seconds:.0f}" for seconds in np.percentile(lengths, [0, 25, 50, 75, 100]))
    print(f"\n{len(pieces)} pieces, {len(set(labels.group))} artists; s, quartiles: {quartiles}")
    for title, are_queries in {"all": lengths > 0, f"from {LONG:.0f} s": lengths >= LONG}.items():
        print(
            f"\nqueries: {title}, {are_queries.sum()} pieces; difference: of the same queries, from {FIRST}"
        )
        for name, by_choice in vectors.items():
            values = {
                choice: [np.where(are_queries, v, np.nan) for v in score(labels, pieces, made)]
                for choice, made in by_choice.items()
            }
            rows = [
                [choice, *map(labels.interval, found)]
                + [labels.interval(a - b, "+") for a, b in zip(found, values[FIRST], strict=True)]
                for choice, found in values.items()
            ]
            print(f"\n{name}\n")
            print(tabulate(rows, ["excerpt", *SCORES, *(["difference"] * 3)], tablefmt="github"))


def test_choice(pieces: list[Piece], vectors: dict[str, dict[str, Vectorised]]) -> None:
    """An excerpt is chosen on a half of the artists by the mean of the three scores, and measured with the
    queries of the other half. Of each piece the mean over the halves is taken, and then the intervals."""
    labels, rows, counts = Pieces(pieces), [], []
    short = [choice for choice, (seconds, _) in CHOICES.items() if seconds <= 30]
    for name, by_choice in vectors.items():
        held_out: dict[str, list[np.ndarray]] = {}
        votes: dict[str, Counter[str]] = {"best": Counter(), "best of at most 30 s": Counter()}
        for half, other in labels.halves():
            fitted = {c: means(score(labels, pieces, made, half)).mean() for c, made in by_choice.items()}
            tried = zip(votes, (CHOICES, short), strict=True)
            best = {title: max(choices, key=fitted.__getitem__) for title, choices in tried}
            for title, choice in (best | {choice: choice for choice in FIXED}).items():
                values = np.full((len(SCORES), len(pieces)), np.nan)
                values[:, other] = score(labels, pieces, by_choice[choice], other)
                held_out.setdefault(title, []).append(values)
            for title, choice in best.items():
                votes[title][choice] += 1
        with warnings.catch_warnings(action="ignore"):  # pieces without an artist are no queries
            found = {title: np.nanmean(values, axis=0) for title, values in held_out.items()}
        for title, values in found.items():
            gained = [labels.interval(gain, "+") for gain in values - found[FIRST]]
            rows.append([name, title, *map(labels.interval, values), *gained])
        counts += [[name, title, str(dict(vote.most_common()))] for title, vote in votes.items()]
    print(f"\non the other half of the artists; difference: of the same queries, from {FIRST}\n")
    print(tabulate(rows, ["model", "excerpt", *SCORES, *(["difference"] * 3)], tablefmt="github"))
    print("\nchosen on halves\n")
    print(tabulate(counts, ["model", "", "excerpts"], tablefmt="github"))


def excerpt_of(choice: str) -> Excerpt:
    seconds, count = CHOICES[choice]
    return Excerpt(seconds, f"spread:{count}")


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds of processor time of a call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def decoding(sound: bytes | str, choice: str) -> float:
    return seconds_of(partial(decode, sound, excerpt_of(choice)))


def cost(path: str, choice: str) -> list[float]:
    """Seconds of music, seconds to decode it, seconds for its spectrograms, kilobytes of them, and
    when compressed by zstd, as in a library."""
    recording = decode(path, excerpt_of(choice))
    cells = [plane.tobytes() for plane in spectrograms_of(path, excerpt_of(choice)).values()]
    both = seconds_of(partial(spectrograms_of, path, excerpt_of(choice)))
    decoded = decoding(path, choice)
    sizes = [
        sum(len(cell) for cell in made) / 1000 for made in (cells, [pa.compress(c, "zstd") for c in cells])
    ]
    return [len(recording.samples) / recording.rate, decoded, both - decoded, *sizes]


def test_cost(pieces: list[Piece]) -> None:
    torch.set_num_threads(1)
    sample = pieces[::COSTED]
    clip = spectrograms_of(str(MUSIC / sample[0].clips[0]["file"]), Excerpt())
    embedding = {}
    for name in NAMES:
        model = build_model(MODELS[name](), 0).eval()
        embed = partial(embed_clips, model, [clip[model.spec]])
        embedding[name] = min(seconds_of(embed) for _ in range(ROUNDS)) / CLIP
    rows = []
    for choice in CHOICES:
        costs = np.mean([cost(piece.path, choice) for piece in sample], axis=0)
        rows.append([choice, *costs, *(costs[0] * each for each in embedding.values())])
    lengths = np.mean([length(piece) for piece in sample])
    print(f"\na track, means over {len(sample)} pieces of {lengths:.0f} s; seconds of one processor\n")
    heads = ["excerpt", "music, s", "decoding", "spectrograms", "kB", "kB, zstd", *embedding]
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))


def encoded(path: str, container: str, codec: str) -> bytes:
    """A file in another format, with 192 kbit/s where it is lossy."""
    file = io.BytesIO()
    with av.open(path) as source, av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=source.streams.audio[0].rate, layout="stereo")
        stream.bit_rate = 192_000
        for frame in source.decode(audio=0):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def test_seeking(pieces: list[Piece]) -> None:
    """Whether only the excerpt is decoded, by format: the longest piece, as it is and encoded again."""
    longest = max(pieces, key=length)
    formats = {"MP3": ("mp3", "libmp3lame"), "FLAC": ("flac", "flac"), "AAC": ("mp4", "aac")}
    sounds = {name: encoded(longest.path, *how) for name, how in formats.items()}
    sounds["Ogg Vorbis"] = Path(longest.path).read_bytes()
    choices = (FIRST, "30 s, 3 pieces", "30 s, 10 pieces", "60 s, 6 pieces", "90 s, 30 pieces", "whole")
    rows = [
        [name, *(min(decoding(sound, choice) for _ in range(ROUNDS)) for choice in choices)]
        for name, sound in sounds.items()
    ]
    print(f"\nseconds of one processor to decode an excerpt of a song of {length(longest):.0f} s\n")
    print(tabulate(rows, ["format", *choices], tablefmt="github", floatfmt=".3f"))


def test_decoded(pieces: list[Piece], vectors: dict[str, dict[str, Vectorised]]) -> None:
    """The excerpts that songray decodes and joins, beside those that are cut from the spectrogram."""
    labels, rows = Pieces(pieces), []
    for choice in (FIRST, "30 s, 10 pieces"):
        music = [spectrograms_of(piece.path, excerpt_of(choice)) for piece in pieces]
        for name in NAMES:
            model = build_model(MODELS[name](), 0).eval()
            found = jackknife_clips(model, [spectrograms[model.spec] for spectrograms in music])
            made = fit_encoder(model, found).normalise(np.stack([v[0] for v in found]))
            cut_out = vectors[name][choice][0]
            is_fixed = model.scale != "wccn"  # whose directions differ between two fits
            cosine = (made * cut_out).sum(axis=1).mean() if is_fixed else np.nan
            rows.append(
                [
                    choice,
                    name,
                    cosine,
                    *means(labels.score(cosines(made))),
                    *means(labels.score(cosines(cut_out))),
                ]
            )
    print("\ndecoded, and cut from the spectrogram of the whole\n")
    heads = ["excerpt", "model", "cosine", *SCORES[1:], *(f"{head}, cut" for head in SCORES[1:])]
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))
