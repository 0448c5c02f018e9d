"""Seeds → ranked tracks; pure, no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from songray.index import Index, Row


class UnknownTrack(LookupError):
    """A track id that is not in the index."""


@dataclass(frozen=True)
class Recommendation:
    track: Row
    similarity: float  # (1 + cosine) / 2


def similarity(cosine: float) -> float:
    """0 (opposite) … 1 (the same), comparable between queries."""
    return min(1.0, max(0.0, (1 + cosine) / 2))


def find(index: Index, track_id: str) -> int:
    """The track's label; raises UnknownTrack with a sentence."""
    label = index.label(track_id)
    if label is None:
        raise UnknownTrack(f"track {track_id} is not in the index (version {index.manifest.version})")
    return label


def similar(index: Index, track_id: str, k: int) -> list[Recommendation]:
    """The k tracks that sound most like one, without itself; equals in the order of their ids."""
    seed = find(index, track_id)
    labels, cosines = index.nearest(index.vector(seed), k + 1)
    ranked = [
        Recommendation(index.track(label), similarity(cosine))
        for label, cosine in zip(labels.tolist(), cosines.tolist(), strict=True)
        if label != seed
    ]
    ranked.sort(key=lambda found: (-found.similarity, found.track["track_id"]))
    return ranked[:k]


def examples(index: Index, seeds: int = 3, k: int = 5) -> str:
    """The neighbours of a few tracks, spread over the index, and whether they share a genre, as text."""
    lines = []
    for number in range(min(seeds, len(index))):
        seed = index.track(number * len(index) // seeds)
        lines.append(f"\n{_line(seed)} sounds like")
        for found in similar(index, seed["track_id"], k):
            same = "same style" if set(seed["genres"]) & set(found.track["genres"]) else "another style"
            verdict = f"  ({same})" if seed["genres"] else ""
            lines.append(f"  {found.similarity:.3f}  {_line(found.track)}{verdict}")
    return "\n".join(lines)


def _line(track: Row) -> str:
    artists = ", ".join(track["artist_names"]) or "unknown artist"
    genres = f" [{', '.join(track['genres'])}]" if track["genres"] else ""
    return f"{track['title']} – {artists}{genres}"
