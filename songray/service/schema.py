"""What is asked and what is answered, as the OpenAPI document describes it."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from songray.search import ranking as recommender
from songray.search import shard as shards

MOST_RESULTS = 500
MOST_NAMES = 200  # that one filter lists

Id = Annotated[str, Field(min_length=1, max_length=500, examples=["deezer:3135556"])]
Name = Annotated[str, Field(min_length=1, max_length=500)]
Names = Annotated[list[Name], Field(max_length=MOST_NAMES)]
Year = Annotated[int, Field(ge=1, le=9999)]
Seconds = Annotated[float, Field(ge=0, le=1e6)]


class Track(BaseModel):
    """What the catalogue says of a track."""

    track_id: Id
    source: str = Field(examples=["deezer"])
    title: str = Field(examples=["Harder, Better, Faster, Stronger"])
    artist_ids: list[str] = Field(examples=[["deezer:artist:27"]])
    artist_names: list[str] = Field(examples=[["Daft Punk"]])
    album_id: str | None
    album: str | None
    release_date: str | None = Field(examples=["2001-03-07"])
    release_date_precision: str | None = Field(description="year, month or day")
    duration_seconds: float | None
    genres: list[str]
    isrc: str | None
    explicit: bool | None
    recording: str | None = Field(description="groups the ids of one recording")
    preview: str | None = Field(description="URL of the audio, where it has a public one")


class Answer(BaseModel):
    version: str = Field(examples=["000001"], description="of the index that answered")
    partial: bool = Field(description="a part of the index did not answer: there may be better results")


class Tracks(Answer):
    tracks: list[Track]


class Match(BaseModel):
    track: Track
    similarity: float = Field(ge=0, le=1, description="with what was asked for: (1 + cosine) / 2")
    nearest_seed: str | None = Field(description="which of the liked tracks it sounds most like")
    nearest_seed_similarity: float | None = Field(description="with that one")


class Matches(Answer):
    similar: list[Match]


class Similar(Matches):
    track: Track = Field(description="what was asked for")


class Heard(Matches):
    """What sounds like audio from elsewhere."""

    heard: str = Field(description="the file's name, or the track that the source found")


class Point(BaseModel):
    track_id: Id
    title: str
    artist_names: list[str]
    x: float
    y: float


class Map(Answer):
    points: list[Point]


class RunOfLibrary(BaseModel):
    name: str
    model: str
    metrics: dict[str, float | None]
    versions: list[str] = Field(description="of its index, oldest first")


class Runs(BaseModel):
    serving: str = Field(description="the run that answers")
    runs: list[RunOfLibrary]


class Stats(BaseModel):
    run: str
    version: str
    tracks: int
    dimension: int
    shards: int
    recall: float = Field(description="share of the 10 nearest that are found, measured on a sample")
    recall_target: float
    parameters: dict[str, int] = Field(description="of hnswlib")


class Health(BaseModel):
    status: str = Field(examples=["ok"])


class Ready(BaseModel):
    status: str = Field(examples=["ready"])
    run: str
    version: str = Field(examples=["000001"])
    tracks: int


class Filters(BaseModel):
    """Which tracks may be answered; what is left out does not restrict."""

    model_config = ConfigDict(extra="forbid")

    genres: Names = []
    artists: Names = Field(default=[], description="ids or names")
    albums: Names = Field(default=[], description="ids or names")
    sources: Names = []
    tracks: Names = Field(default=[], description="no others than these")
    not_genres: Names = []
    not_artists: Names = []
    not_albums: Names = []
    not_sources: Names = []
    not_tracks: Names = []
    year_from: Year | None = None
    year_to: Year | None = None
    seconds_from: Seconds | None = Field(default=None, description="of duration")
    seconds_to: Seconds | None = None
    explicit: bool | None = Field(default=None, description="false: none that the catalogue calls explicit")

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> Filters:
        for name in ("year", "seconds"):
            first, last = getattr(self, f"{name}_from"), getattr(self, f"{name}_to")
            if None not in (first, last) and first > last:
                raise ValueError(f"{name}_from {first} is above {name}_to {last}")
        return self

    def meant(self) -> shards.Filters:
        names = [facet.name for facet in fields(shards.Facets)]
        return shards.Filters(
            include=shards.Facets(**{name: tuple(getattr(self, name)) for name in names}),
            exclude=shards.Facets(**{name: tuple(getattr(self, f"not_{name}")) for name in names}),
            years=(self.year_from, self.year_to),
            duration_seconds=(self.seconds_from, self.seconds_to),
            explicit=self.explicit,
        )


class Choice(BaseModel):
    """How many tracks, and how they differ."""

    k: int = Field(default=10, ge=1, le=MOST_RESULTS, description="how many tracks")
    diversity: float = Field(default=0.0, ge=0, le=1, description="0: the most similar; 1: the most varied")
    per_artist: int = Field(default=3, ge=0, le=MOST_RESULTS, description="at most; 0: any number")
    per_album: int = Field(default=2, ge=0, le=MOST_RESULTS, description="at most; 0: any number")

    def wish(self, filters: Filters) -> recommender.RankingOptions:
        return recommender.RankingOptions(
            self.k, filters.meant(), self.diversity, self.per_artist, self.per_album
        )


class SimilarChoice(Choice, Filters):
    """Both, as parameters of a URL."""


class PathChoice(Filters):
    start: Id = Field(alias="from")
    end: Id = Field(alias="to")
    steps: int = Field(default=10, ge=2, le=100, description="tracks, both ends among them")


class SoundChoice(SimilarChoice):
    source: Literal["deezer", "itunes"] | None = Field(
        default=None, description="to search, in place of a file"
    )
    q: str | None = Field(default=None, min_length=1, max_length=200, description="what to search for there")


class Seed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: Id
    weight: float = Field(default=1.0, gt=0, le=100, description="how much it counts")

    def meant(self) -> recommender.Seed:
        return recommender.Seed(self.id, self.weight)


class Recommend(Choice):
    """Tracks to sound like, and tracks not to sound like."""

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


class Continue(Choice):
    """A playlist to go on with."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"seeds": [{"id": "deezer:3135556"}], "k": 25}]},
    )

    seeds: list[Seed] = Field(min_length=1, max_length=500, description="in the playlist's order")
    filters: Filters = Filters()
