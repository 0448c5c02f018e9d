"""Audio of tracks, for the page."""

from __future__ import annotations

import os
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from songray.service.audio import AudioLinks, media_type
from songray.service.dependencies import CurrentService, CurrentSnapshot
from songray.service.problems import problem_responses
from songray.service.responses import json_response
from songray.service.routes.tracks import TrackId, track_row
from songray.service.schema import AudioLink
from songray.service.transcode import Transcoder

router = APIRouter(tags=["audio"])


@router.get(
    "/v1/tracks/{track_id:path}/audio", response_model=AudioLink, responses=problem_responses(404, 422)
)
async def link(track_id: TrackId, request: Request, snapshot: CurrentSnapshot) -> Response:
    """A link to the audio of a track, for players, which send no key: it expires after an hour or two."""
    await track_row(snapshot, track_id)
    links: AudioLinks = request.app.state.audio_links
    return json_response({"track_id": track_id, "url": links.create(track_id)})


@router.get(
    "/audio/{track_id:path}",
    response_class=Response,
    responses={
        200: {"content": {"audio/*": {}}, "description": "The whole file"},
        206: {"content": {"audio/*": {}}, "description": "The range of the file that was requested"},
        307: {"description": "The audio is where Location says"},
        400: {"description": "The range is malformed"},
        416: {"description": "The file has no such range"},
        **problem_responses(403, 404, 415, 422, 502, 503),
    },
)
async def audio(
    track_id: TrackId,
    request: Request,
    service: CurrentService,
    snapshot: CurrentSnapshot,
    expires: Annotated[int, Query(ge=0, le=1 << 53)] = 0,
    signature: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """The audio of a track: the file of a folder, of which a range may be requested, as MP3 where browsers do
    not play its format; or a redirect to where the catalogue has it now."""
    links: AudioLinks = request.app.state.audio_links
    if not links.verify(track_id, expires, signature):
        raise HTTPException(403, "the link has expired, or is not signed: request /v1/tracks/{id}/audio")
    location = await service.locate(await track_row(snapshot, track_id))
    if location.url.startswith(("http://", "https://")):
        return RedirectResponse(location.url, 307, {"Cache-Control": "no-store"})
    if location.is_public or "://" in location.url:
        raise HTTPException(404, f"the catalogue of {track_id} names no audio that can be played")
    if not os.path.isfile(location.url):
        raise HTTPException(
            404, f"the file of {track_id} is no longer there: run `songray crawl folder` again"
        )
    path, kind = location.url, media_type(location.url)
    if kind is None:
        transcoder: Transcoder = request.app.state.transcoder
        try:
            path, kind = str(await transcoder.file(path)), "audio/mpeg"
        except (OSError, ValueError, LookupError) as error:  # PyAV's errors are of these kinds
            reason = getattr(error, "strerror", None) or "it has no sound"  # without its private path
            raise HTTPException(415, f"the file of {track_id} cannot be decoded: {reason}") from error
    return FileResponse(path, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})
