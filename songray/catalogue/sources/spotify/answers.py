"""What Spotify's answers hold: tracks, artists, entries of playlists, and the pages that they lead to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from songray.catalogue.sources.base import Artist, Contents, Page, PlaylistEntry, Track

MOST = 50  # entries of a list, or ids, in one request
SEARCH_ENTRIES = 1000  # that can be reached, however many were found
LETTERS = 200  # of a page's name in a problem


def page_of(path: str, fingerprint: str | None = "", step: int = 0, **options: str | int) -> Page:
    """A page's name is what it asks for: "artist/<id>/albums?limit=50&offset=0"."""
    query = urlencode(options, safe=",:")
    return Page(f"{path}?{query}" if query else path, fingerprint, step)


@dataclass(frozen=True)
class Question:
    """A page's name, taken apart."""

    page: Page
    kind: str  # "artist/albums"
    id: str  # "" for kinds without
    options: dict[str, str]  # "limit", "offset", "ids", "q"

    @classmethod
    def of(cls, page: Page) -> Question:
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
        return self.page.name if len(self.page.name) <= LETTERS else self.page.name[:LETTERS] + "…"

    def asked_with(self, **changes: int) -> Page:
        options: dict[str, Any] = self.options | changes
        return page_of(urlsplit(self.page.name).path, self.page.fingerprint, **options)

    def further(self, total: int) -> list[Page]:
        """The rest of a list, named by its first page."""
        offsets = range(self.limit, total, self.limit) if self.offset == 0 else ()
        return [self.asked_with(offset=offset) for offset in offsets]


def _encodable(text: str) -> str:
    text.encode()  # half of a surrogate pair, which JSON can hold, fits in no table
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


def _usable(question: Question, items: list[Any], model: type[Item]) -> tuple[dict[int, Item], list[str]]:
    """The items of a list by their position, and the problems of those that are none of ours."""
    found, problems = {}, []
    for position, item in enumerate(items, question.offset):
        try:
            if not (problem := _foreign(item)):
                found[position] = model.model_validate(item)
        except ValidationError as error:
            wrong = error.errors()[0]
            problem = f"bad_item: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}, in"
        if problem:
            problems.append(f"{problem} item {position} of {question.place}")
    return found, problems


def _foreign(item: Any) -> str:
    """Why an item is none that Spotify plays as a track; "" where it is."""
    if item is None:
        return "null_item:"
    if isinstance(item, dict) and item.get("type") == "episode":
        return "episode:"
    if isinstance(item, dict) and item.get("is_local"):
        return "local_file:"
    return ""


def tell_search(question: Question, answer: dict[str, Any]) -> Contents:
    paging = _Paging.model_validate(answer["tracks"])
    tracks, problems = _usable(question, paging.items, _Track)
    further = question.further(min(paging.total, SEARCH_ENTRIES))
    return _songs(question, tracks, problems, further + _genres(tracks))


def tell_playlist(question: Question, answer: dict[str, Any]) -> Contents:
    """Only what tells whether the items have changed, and under which name this app may ask for them."""
    playlist = _Playlist.model_validate(answer)
    items, limit = ("tracks", 2 * MOST) if playlist.tracks else ("items", MOST)
    fingerprint = f"{playlist.snapshot_id} {playlist.name}"
    return Contents(pages=[page_of(f"playlist/{question.id}/{items}", fingerprint, limit=limit, offset=0)])


def tell_playlist_items(question: Question, answer: dict[str, Any]) -> Contents:
    paging = _Paging.model_validate(answer)
    items = [_item(entry or {}) for entry in paging.items]
    tracks, problems = _usable(question, items, _Track)
    playlist, name = f"spotify:playlist:{question.id}", (question.page.fingerprint or "").partition(" ")[2]
    entries = [PlaylistEntry(playlist, name, place, f"spotify:{track.id}") for place, track in tracks.items()]
    contents = _songs(question, tracks, problems, question.further(paging.total) + _genres(tracks))
    return replace(contents, playlist_entries=entries)


def _item(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The track in an entry of a playlist, under its new name or its old one."""
    item: dict[str, Any] | None = entry.get("item") or entry.get("track")
    return {**item, "is_local": True} if item and entry.get("is_local") else item


def tell_artist(question: Question, answer: dict[str, Any]) -> Contents:
    albums = page_of(f"artist/{question.id}/albums", limit=MOST, offset=0)
    top_tracks = page_of(f"artist/{question.id}/top-tracks")
    related = page_of(f"artist/{question.id}/related-artists", step=1)
    artist = _described(_Artist.model_validate(answer))
    return Contents(artists=[artist], pages=[albums, top_tracks, related])


def tell_artists(question: Question, answer: dict[str, Any]) -> Contents:
    artists, problems = _usable(question, answer["artists"], _Artist)
    return Contents(artists=[_described(artist) for artist in artists.values()], problems=problems)


def tell_related_artists(question: Question, answer: dict[str, Any]) -> Contents:
    """Whole artists: but only their own pages lead further, so that none is followed twice."""
    artists, problems = _usable(question, answer["artists"], _Linked)
    return Contents(pages=[page_of(f"artist/{artist.id}") for artist in artists.values()], problems=problems)


def tell_albums(question: Question, answer: dict[str, Any]) -> Contents:
    paging = _Paging.model_validate(answer)
    albums, problems = _usable(question, paging.items, _Linked)
    pages = [page_of(f"album/{album.id}/tracks", limit=MOST, offset=0) for album in albums.values()]
    return Contents(problems=problems, pages=question.further(paging.total) + pages)


def tell_album_tracks(question: Question, answer: dict[str, Any]) -> Contents:
    """Their ids alone: an album's list has neither ISRC nor album, so each track is asked for."""
    paging = _Paging.model_validate(answer)
    tracks, problems = _usable(question, paging.items, _Linked)
    pages = question.further(paging.total) + _pages_of("tracks", [track.id for track in tracks.values()])
    return Contents(problems=problems, pages=pages)


def tell_tracks(question: Question, answer: dict[str, Any]) -> Contents:
    return _songs(question, *_usable(question, answer["tracks"], _Track))


def tell_track(question: Question, answer: dict[str, Any]) -> Contents:
    return _songs(question, *_usable(question, [answer], _Track))


def _songs(
    question: Question, tracks: dict[int, _Track], problems: list[str], pages: Iterable[Page] = ()
) -> Contents:
    """The tracks; whoever plays on them is a step away."""
    silent = sum(track.preview_url is None for track in tracks.values())
    if silent:
        problems.append(f"no_preview_url: {silent} of {len(tracks)} tracks of {question.place}")
    followed = [page_of(f"artist/{artist}", step=1) for artist in _players(tracks)]
    return Contents([_song(track) for track in tracks.values()], problems=problems, pages=[*pages, *followed])


def _players(tracks: dict[int, _Track]) -> list[str]:
    players = [artist.id for track in tracks.values() for artist in track.artists if artist.id]
    return list(dict.fromkeys(players))


def _genres(tracks: dict[int, _Track]) -> list[Page]:
    """Artists tell the genres, so those of a list of many artists are asked for together."""
    return _pages_of("artists", _players(tracks))


def _pages_of(kind: str, ids: list[str]) -> list[Page]:
    return [page_of(kind, ids=",".join(ids[start : start + MOST])) for start in range(0, len(ids), MOST)]


def _song(track: _Track) -> Track:
    artists = [artist for artist in track.artists if artist.id]
    dated = not (track.album.release_date or "0000").startswith("0000")  # how Spotify says "unknown"
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
        audio_version=track.id,  # a preview's link comes and goes, and tells by whom it was asked for
    )


def _described(artist: _Artist) -> Artist:
    return Artist(f"spotify:artist:{artist.id}", artist.name, artist.genres or [])
