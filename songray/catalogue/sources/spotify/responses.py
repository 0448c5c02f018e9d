"""Parses responses of Spotify: tracks, artists, playlist entries, and links to further pages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from songray.catalogue.sources.base import (
    Artist,
    Contents,
    Page,
    PlaylistEntry,
    Problem,
    RelatedArtist,
    Track,
)

MAX_ITEMS = 50  # items of a list, or ids, in one request
MAX_PLAYLIST_ITEMS = 100  # in one request, under the endpoint's former name
MAX_SEARCH_RESULTS = 1000  # that can be paged through
MAX_LETTERS = 200  # of a page's name in a problem


def page_of(path: str, fingerprint: str | None = "", step: int = 0, **options: str | int) -> Page:
    """A page, named by its request: "artist/<id>/albums?limit=50&offset=0"."""
    query = urlencode(options, safe=",:")
    return Page(f"{path}?{query}" if query else path, fingerprint, step)


@dataclass(frozen=True)
class PageRequest:
    """The request that a page's name stands for."""

    page: Page
    kind: str  # "artist/albums"
    id: str  # "" for kinds without
    options: dict[str, str]  # "limit", "offset", "ids", "q"

    @classmethod
    def of(cls, page: Page) -> PageRequest:
        url = urlsplit(page.name)
        parts = url.path.split("/")
        return cls(page, "/".join(parts[::2]), "".join(parts[1:2]), dict(parse_qsl(url.query)))

    @property
    def limit(self) -> int:
        return int(self.options.get("limit", 0))

    @property
    def offset(self) -> int:
        return int(self.options.get("offset", 0))

    @property
    def ids(self) -> list[str]:
        return self.options["ids"].split(",")

    @property
    def place(self) -> str:
        """The page's name, shortened, for the details of problems."""
        name = self.page.name
        return name if len(name) <= MAX_LETTERS else name[:MAX_LETTERS] + "…"

    def with_options(self, **changes: int) -> Page:
        options: dict[str, Any] = self.options | changes
        return page_of(urlsplit(self.page.name).path, self.page.fingerprint, **options)

    def next_pages(self, total: int) -> list[Page]:
        """All further pages of a list, linked from its first one."""
        offsets = range(self.limit, total, self.limit) if self.offset == 0 else ()
        return [self.with_options(offset=offset) for offset in offsets]


def _encodable(text: str) -> str:
    text.encode()  # raises on a lone surrogate, which JSON can contain and Parquet cannot
    return text


PlainId = Annotated[str, Field(pattern=r"^[0-9A-Za-z]+$")]
Text = Annotated[str, AfterValidator(_encodable)]


class _Linked(BaseModel):
    id: PlainId


class _Named(BaseModel):
    id: PlainId | None = None
    name: Text | None = None


class _Artist(_Linked):
    name: Text
    genres: list[Text] | None = None


class _Album(_Named):
    release_date: Text | None = None
    release_date_precision: Text | None = None


class _ExternalIds(BaseModel):
    isrc: Text | None = None


class _Track(_Linked):
    name: Text
    artists: list[_Named]
    album: _Album
    duration_ms: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    explicit: bool | None = None
    external_ids: _ExternalIds | None = None
    preview_url: Text | None = None


class _Playlist(BaseModel):
    snapshot_id: Text
    name: Text
    tracks: Any = None


class _Paging(BaseModel):
    items: list[Any]
    total: Annotated[int, Field(ge=0, le=1_000_000)]


Item = TypeVar("Item", bound=BaseModel)


def _parse_items(
    request: PageRequest, items: list[Any], model: type[Item]
) -> tuple[dict[int, Item], list[Problem]]:
    """The valid items of a list by position, and the problems of the others."""
    valid, problems = {}, []
    for position, item in enumerate(items, request.offset):
        place = f"item {position} of {request.place}"
        if kind := _unusable_kind(item):
            problems.append(Problem(kind, place))
            continue
        try:
            valid[position] = model.model_validate(item)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            problems.append(Problem("bad_item", f"{field}: {first['msg']}, in {place}"))
    return valid, problems


def _unusable_kind(item: Any) -> str:
    """The kind of problem of an item that is no track of Spotify's catalogue; "" for any other."""
    if item is None:
        return "null_item"
    if isinstance(item, dict) and item.get("type") == "episode":
        return "episode"
    if isinstance(item, dict) and item.get("is_local"):
        return "local_file"
    return ""


def parse_search(request: PageRequest, body: dict[str, Any]) -> Contents:
    paging = _Paging.model_validate(body["tracks"])
    tracks, problems = _parse_items(request, paging.items, _Track)
    pages = request.next_pages(min(paging.total, MAX_SEARCH_RESULTS))
    return _track_contents(request, tracks, problems, pages + _artist_batches(tracks))


def parse_playlist(request: PageRequest, body: dict[str, Any]) -> Contents:
    """Only a link to the items: its fingerprint changes with them, and its endpoint is the one that this app
    may request."""
    playlist = _Playlist.model_validate(body)
    items, limit = ("tracks", MAX_PLAYLIST_ITEMS) if playlist.tracks else ("items", MAX_ITEMS)
    fingerprint = f"{playlist.snapshot_id} {playlist.name}"
    return Contents(pages=[page_of(f"playlist/{request.id}/{items}", fingerprint, limit=limit, offset=0)])


def parse_playlist_items(request: PageRequest, body: dict[str, Any]) -> Contents:
    paging = _Paging.model_validate(body)
    items = [_playlist_item(entry or {}) for entry in paging.items]
    tracks, problems = _parse_items(request, items, _Track)
    playlist, name = f"spotify:playlist:{request.id}", (request.page.fingerprint or "").partition(" ")[2]
    entries = [
        PlaylistEntry(playlist, name, position, f"spotify:{track.id}") for position, track in tracks.items()
    ]
    pages = request.next_pages(paging.total) + _artist_batches(tracks)
    return replace(_track_contents(request, tracks, problems, pages), playlist_entries=entries)


def _playlist_item(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The track in an entry of a playlist, under its present or its former name."""
    item: dict[str, Any] | None = entry.get("item") or entry.get("track")
    return {**item, "is_local": True} if item and entry.get("is_local") else item


def parse_artist(request: PageRequest, body: dict[str, Any]) -> Contents:
    albums = page_of(f"artist/{request.id}/albums", limit=MAX_ITEMS, offset=0)
    top_tracks = page_of(f"artist/{request.id}/top-tracks")
    related = page_of(f"artist/{request.id}/related-artists", step=1)
    artist = _describe_artist(_Artist.model_validate(body))
    return Contents(artists=[artist], pages=[albums, top_tracks, related])


def parse_artists(request: PageRequest, body: dict[str, Any]) -> Contents:
    artists, problems = _parse_items(request, body["artists"], _Artist)
    return Contents(artists=[_describe_artist(artist) for artist in artists.values()], problems=problems)


def parse_related_artists(request: PageRequest, body: dict[str, Any]) -> Contents:
    """Links to the artists' own pages, which alone link further: so no artist is followed twice."""
    artists, problems = _parse_items(request, body["artists"], _Linked)
    of = f"spotify:artist:{request.id}"
    return Contents(
        related_artists=[RelatedArtist(of, f"spotify:artist:{artist.id}") for artist in artists.values()],
        pages=[page_of(f"artist/{artist.id}") for artist in artists.values()],
        problems=problems,
    )


def parse_albums(request: PageRequest, body: dict[str, Any]) -> Contents:
    paging = _Paging.model_validate(body)
    albums, problems = _parse_items(request, paging.items, _Linked)
    pages = [page_of(f"album/{album.id}/tracks", limit=MAX_ITEMS, offset=0) for album in albums.values()]
    return Contents(problems=problems, pages=request.next_pages(paging.total) + pages)


def parse_album_tracks(request: PageRequest, body: dict[str, Any]) -> Contents:
    """Links to the tracks: the list of an album contains neither their ISRC nor the album."""
    paging = _Paging.model_validate(body)
    tracks, problems = _parse_items(request, paging.items, _Linked)
    batches = _batches("tracks", [track.id for track in tracks.values()])
    return Contents(problems=problems, pages=request.next_pages(paging.total) + batches)


def parse_tracks(request: PageRequest, body: dict[str, Any]) -> Contents:
    return _track_contents(request, *_parse_items(request, body["tracks"], _Track))


def parse_track(request: PageRequest, body: dict[str, Any]) -> Contents:
    return _track_contents(request, *_parse_items(request, [body], _Track))


def _track_contents(
    request: PageRequest, tracks: dict[int, _Track], problems: list[Problem], pages: Iterable[Page] = ()
) -> Contents:
    """The tracks, with links one step away to all of their artists."""
    without = sum(track.preview_url is None for track in tracks.values())
    if without:
        detail = f"{without} of {len(tracks)} tracks of {request.place}"
        problems.append(Problem("no_preview_url", detail))
    artists = [page_of(f"artist/{artist}", step=1) for artist in _artist_ids(tracks)]
    return Contents(
        [_describe_track(track) for track in tracks.values()], problems=problems, pages=[*pages, *artists]
    )


def _artist_ids(tracks: dict[int, _Track]) -> list[str]:
    ids = [artist.id for track in tracks.values() for artist in track.artists if artist.id]
    return list(dict.fromkeys(ids))


def _artist_batches(tracks: dict[int, _Track]) -> list[Page]:
    """Batches of the tracks' artists, which have the genres."""
    return _batches("artists", _artist_ids(tracks))


def _batches(kind: str, ids: list[str]) -> list[Page]:
    starts = range(0, len(ids), MAX_ITEMS)
    return [page_of(kind, ids=",".join(ids[start : start + MAX_ITEMS])) for start in starts]


def _describe_track(track: _Track) -> Track:
    artists = [artist for artist in track.artists if artist.id]
    dated = not (track.album.release_date or "0000").startswith("0000")  # 0000 stands for an unknown date
    return Track(
        track_id=f"spotify:{track.id}",
        title=track.name,
        location=track.preview_url,
        artist_ids=[f"spotify:artist:{artist.id}" for artist in artists],
        artist_names=[artist.name or "" for artist in artists],
        album_id=f"spotify:album:{track.album.id}" if track.album.id else None,
        album=track.album.name,
        release_date=track.album.release_date if dated else None,
        release_date_precision=track.album.release_date_precision if dated else None,
        duration_seconds=track.duration_ms / 1000 if track.duration_ms is not None else None,
        isrc=track.external_ids.isrc if track.external_ids else None,
        explicit=track.explicit,
        audio_version=track.id,  # the preview's link is not stable, and contains the id of the app
    )


def _describe_artist(artist: _Artist) -> Artist:
    return Artist(f"spotify:artist:{artist.id}", artist.name, artist.genres or [])
