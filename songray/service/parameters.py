"""Requests of /v1, as the OpenAPI document describes them: parameters of queries, and bodies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from songray.catalogue.sources.registry import SearchableSource
from songray.search import filters, ranking
from songray.search.words import parse_tags
from songray.service.schema import Id

MAX_RESULTS = 500
MAX_VALUES = 200  # of one filter
TAGS = (
    "tags of the sound, one or several with commas: all of them. A track has a tag where its probability is "
    "at least 0.5, or at least 0.05 and a standard deviation (of logits) above the mean of the catalogue"
)

Name = Annotated[str, Field(min_length=1, max_length=500)]
Names = Annotated[list[Name], Field(max_length=MAX_VALUES)]
Year = Annotated[int, Field(ge=1, le=9999)]
Seconds = Annotated[float, Field(ge=0, le=1e6)]


class Filters(BaseModel):
    """Which tracks may be returned; an absent filter does not restrict."""

    model_config = ConfigDict(extra="forbid")

    genres: Names = []
    artists: Names = Field(default=[], description="ids or names")
    albums: Names = Field(default=[], description="ids or names")
    sources: Names = []
    tracks: Names = Field(default=[], description="only these")
    tags: Names = Field(default=[], description=TAGS)
    not_genres: Names = []
    not_artists: Names = []
    not_albums: Names = []
    not_sources: Names = []
    not_tracks: Names = []
    not_tags: Names = Field(default=[], description="none of these")
    year_from: Year | None = None
    year_to: Year | None = None
    seconds_from: Seconds | None = Field(default=None, description="minimum duration")
    seconds_to: Seconds | None = Field(default=None, description="maximum duration")
    explicit: bool | None = Field(default=None, description="false: no track that is marked as explicit")

    @model_validator(mode="after")
    def _validate_ranges(self) -> Filters:
        for name in ("year", "seconds"):
            first, last = getattr(self, f"{name}_from"), getattr(self, f"{name}_to")
            if None not in (first, last) and first > last:
                raise ValueError(f"{name}_from {first} is above {name}_to {last}")
        return self

    def to_filters(self, labels: Collection[str]) -> filters.Filters:
        """The filters, for an index that has these labels of tags. Raises QueryError for other tags."""
        names = [facet.name for facet in fields(filters.Facets)]
        include, exclude = (
            filters.Facets(**{name: tuple(getattr(self, f"{prefix}{name}")) for name in names})
            for prefix in ("", "not_")
        )
        return filters.Filters(
            include=replace(include, tags=parse_tags(include.tags, labels)),
            exclude=replace(exclude, tags=parse_tags(exclude.tags, labels)),
            years=(self.year_from, self.year_to),
            duration_seconds=(self.seconds_from, self.seconds_to),
            explicit=self.explicit,
        )


class Ranking(BaseModel):
    """How many tracks are returned, and how varied they are."""

    k: int = Field(default=10, ge=1, le=MAX_RESULTS, description="number of tracks")
    diversity: float = Field(default=0.0, ge=0, le=1, description="0: the most similar; 1: the most varied")
    per_artist: int = Field(default=3, ge=0, le=MAX_RESULTS, description="maximum per artist; 0: no limit")
    per_album: int = Field(default=2, ge=0, le=MAX_RESULTS, description="maximum per album; 0: no limit")

    def to_options(self, restriction: Filters, labels: Collection[str]) -> ranking.RankingOptions:
        """The options, for an index that has these labels of tags. Raises QueryError for other tags."""
        return ranking.RankingOptions(
            self.k, restriction.to_filters(labels), self.diversity, self.per_artist, self.per_album
        )


class SimilarParameters(Ranking, Filters):
    """Both, as query parameters."""


class TextParameters(SimilarParameters):
    text: str = Field(min_length=1, max_length=200, examples=["calm piano without voice"])


class PathParameters(Filters):
    start: Id = Field(alias="from")
    end: Id = Field(alias="to")
    steps: int = Field(default=10, ge=2, le=100, description="number of tracks, both ends included")


class AudioParameters(SimilarParameters):
    source: SearchableSource | None = Field(
        default=None, description="external source that is searched, in place of a file"
    )
    q: str | None = Field(default=None, min_length=1, max_length=200, description="the words to search for")


class Seed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: Id
    weight: float = Field(default=1.0, gt=0, le=100)

    def to_seed(self) -> ranking.Seed:
        return ranking.Seed(self.id, self.weight)


class RecommendRequest(Ranking):
    """Liked and disliked tracks."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "like": [{"id": "deezer:3135556"}, {"id": "deezer:1109731", "weight": 2}],
                    "unlike": [{"id": "deezer:916424"}],
                    "k": 20,
                    "filters": {"genres": ["Electro"], "year_from": 1995, "explicit": False},
                    "diversity": 0.3,
                }
            ]
        },
    )

    like: list[Seed] = Field(min_length=1, max_length=100)
    unlike: list[Seed] = Field(default=[], max_length=100)
    filters: Filters = Filters()


class PlaylistRequest(Ranking):
    """A playlist to continue."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"seeds": [{"id": "deezer:3135556"}], "k": 25}]},
    )

    seeds: list[Seed] = Field(min_length=1, max_length=500, description="in the order of the playlist")
    filters: Filters = Filters()


class JudgementRequest(BaseModel):
    """Which of two lists a listener prefers."""

    model_config = ConfigDict(extra="forbid")

    session: str = Field(pattern=r"^[0-9A-Za-z-]{8,64}$", description="random, for one visit of the page")
    track_id: Id = Field(description="the track whose neighbours were compared")
    left: Name = Field(description="run of the list on the left")
    right: Name = Field(description="run of the list on the right")
    preferred: Literal["left", "right", "neither"]


class ExportRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tracks: list[Id] = Field(min_length=1, max_length=1000, description="ids, in the order of the playlist")
