"""Which tracks a query may return."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

CACHED_FILTERS = 64  # whose matching tracks a shard keeps, one bit a track each
CACHED_CHARACTERS = 1000  # of a filter that is kept


@dataclass(frozen=True)
class Facets:
    """Values of a track's attributes. Ids are compared exactly, names and genres without case."""

    genres: tuple[str, ...] = ()
    artists: tuple[str, ...] = ()  # ids or names
    albums: tuple[str, ...] = ()  # ids or names
    sources: tuple[str, ...] = ()
    tracks: tuple[str, ...] = ()  # ids
    tags: tuple[str, ...] = ()  # of the sound, labels of the index


@dataclass(frozen=True)
class Filters:
    """Conditions that a track must satisfy; the default is satisfied by all."""

    include: Facets = field(default_factory=Facets)  # for each attribute with values: any of them; all tags
    exclude: Facets = field(default_factory=Facets)  # none of the values
    years: tuple[int | None, int | None] = (None, None)  # from, to; a track without a year fails any bound
    duration_seconds: tuple[float | None, float | None] = (None, None)
    explicit: bool | None = None  # False: no track that is marked as explicit

    def without_tracks(self) -> Filters:
        """The conditions but for those on track ids, which differ from listener to listener."""
        include, exclude = (replace(facets, tracks=()) for facets in (self.include, self.exclude))
        return replace(self, include=include, exclude=exclude)


EVERYTHING = Filters()
