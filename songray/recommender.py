"""Seeds → ranked tracks; pure, no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from songray.index import Index
from songray.runs import Vectors
from songray.shards import Place, Row


class UnknownTrack(LookupError):
    """A track id that is not in the index."""


@dataclass(frozen=True)
class Recommendation:
    track: Row
    similarity: float  # (1 + cosine) / 2


def similarity(cosine: float) -> float:
    """0 (opposite) … 1 (the same), comparable between queries."""
    return min(1.0, max(0.0, (1 + cosine) / 2))


async def find(index: Index, track_id: str) -> tuple[Place, Vectors]:
    """The track's place and vector; raises UnknownTrack with a sentence."""
    found = await index.find([track_id])
    if track_id not in found:
        raise UnknownTrack(f"track {track_id} is not in the index (version {index.manifest.version})")
    return found[track_id]


async def similar(index: Index, track_id: str, k: int) -> list[Recommendation]:
    """The k tracks that sound most like one, without itself; equals in the order of their ids."""
    seed, vector = await find(index, track_id)
    (candidates,) = await index.nearest(vector[None], k + 1)
    places = list(zip(candidates["shard"].tolist(), candidates["label"].tolist(), strict=True))
    rows = await index.rows(places)
    ranked = [
        Recommendation(row, similarity(cosine))
        for place, row, cosine in zip(places, rows, candidates["cosine"].tolist(), strict=True)
        if place != seed
    ]
    ranked.sort(key=lambda found: (-found.similarity, found.track["track_id"]))
    return ranked[:k]


async def examples(index: Index, seeds: int = 3, k: int = 5) -> str:
    """The neighbours of a few tracks, drawn by lot, and whether they share a genre, as text."""
    lines = []
    for seed in await index.rows(await index.search("", seeds)):
        lines.append(f"\n{_line(seed)} sounds like")
        for found in await similar(index, seed["track_id"], k):
            same = "same style" if set(seed["genres"]) & set(found.track["genres"]) else "another style"
            verdict = f"  ({same})" if seed["genres"] else ""
            lines.append(f"  {found.similarity:.3f}  {_line(found.track)}{verdict}")
    return "\n".join(lines)


def _line(track: Row) -> str:
    artists = ", ".join(track["artist_names"]) or "unknown artist"
    genres = f" [{', '.join(track['genres'])}]" if track["genres"] else ""
    return f"{track['title']} – {artists}{genres}"
