"""Responses of /v1, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

SIMILARITY = (
    "similarity to the query: (cosine + 1)/2, comparable between queries. With diversity above 0 the list is "
    "not sorted by it"
)

Id = Annotated[str, Field(min_length=1, max_length=500, examples=["deezer:3135556"])]


class Tag(BaseModel):
    tag: str = Field(examples=["piano"])
    probability: float = Field(ge=0, le=1, description="as the run's pretrained models estimate it")


class Track(BaseModel):
    """A track as the catalogue describes it, and the tags of its sound."""

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
    recording: str | None = Field(description="the same for all ids of one recording")
    tempo_bpm: float | None
    key: str | None = Field(description="pitch class of the tonic, with sharps", examples=["F#"])
    mode: str | None = Field(description="major or minor")
    license: str | None = Field(description="name or URL of the licence, where the catalogue states one")
    tags: list[Tag] = Field(description="the tags of its sound that the filter `tags` accepts, at most 5")
    preview: str | None = Field(description="URL of the audio, where it is public")


class IndexResponse(BaseModel):
    run: str = Field(description="name of the run whose index answered")
    version: str = Field(examples=["000001"], description="version of the index")
    partial: bool = Field(description="a part of the index did not answer: better results may be missing")


class Tracks(IndexResponse):
    tracks: list[Track]


Weights = Annotated[
    dict[str, float],
    Field(
        description="the tags that the words ask for; negative: that they exclude", examples=[{"piano": 1.0}]
    ),
]


class SearchedTracks(Tracks):
    weights: Weights  # none where the words describe no sound


class Match(BaseModel):
    track: Track
    similarity: float = Field(ge=0, le=1, description=SIMILARITY)
    cosine: float | None = Field(
        description="cosine of the angle between the track's vector and the query's; null for a text"
    )
    nearest_seed: str | None = Field(description="the liked track with the highest similarity to this one")
    nearest_seed_similarity: float | None = Field(ge=0, le=1, description="that similarity")


class Matches(IndexResponse):
    similar: list[Match]


class SimilarToTrack(Matches):
    track: Track = Field(description="the track of the query")


class SimilarToAudio(Matches):
    query: str = Field(description="name of the file, or id of the track that the source returned")


class SimilarToText(Matches):
    weights: Weights


class Point(BaseModel):
    track_id: Id
    title: str
    artist_names: list[str]
    x: float
    y: float


class Map(IndexResponse):
    points: list[Point]


Position = Annotated[list[float], Field(min_length=2, max_length=2)]


class Positions(IndexResponse):
    positions: dict[str, Position] = Field(description="x and y by track id")


class AudioLink(BaseModel):
    track_id: Id
    url: str = Field(description="relative to the service; it needs no key, and expires")


class RunSummary(BaseModel):
    name: str
    model: str
    metrics: dict[str, float | None]
    versions: list[str] = Field(description="versions of its index, oldest first")


class Runs(BaseModel):
    serving: str = Field(description="name of the run that is served")
    runs: list[RunSummary]


class MapFacts(BaseModel):
    method: str = Field(description="pca, tsne or umap")
    trustworthiness: float = Field(ge=0, le=1, description="how many neighbours on the map are near in sound")
    continuity: float = Field(ge=0, le=1, description="how many that are near in sound are neighbours on it")
    clusters: int = Field(description="0 where an earlier version fitted it")


class Stats(BaseModel):
    run: str
    version: str
    tracks: int
    dimension: int
    shards: int
    recall: float = Field(description="recall at 10 against exact search, measured on a sample")
    recall_target: float
    parameters: dict[str, int] = Field(description="parameters of the HNSW graphs")
    tags: list[str] = Field(description="labels of the tags of the sound that its run gives")
    map: MapFacts | None = Field(description="null: the map is the first two principal components")
    compared: str | None = Field(description="run with which the page compares this one")


class ComparedList(IndexResponse):
    similar: list[Match]


class Comparison(BaseModel):
    track: Track = Field(description="the track of the query")
    lists: list[ComparedList] = Field(min_length=2, max_length=2, description="in random order")


class Health(BaseModel):
    status: str = Field(examples=["ok"])


class Ready(BaseModel):
    status: str = Field(examples=["ready"])
    run: str
    version: str = Field(examples=["000001"])
    tracks: int
