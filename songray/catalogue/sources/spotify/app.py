"""An app's access to Spotify: spotipy with its credentials and its token; failures become FetchError."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import requests
import spotipy
from spotipy.cache_handler import MemoryCacheHandler
from spotipy.oauth2 import SpotifyClientCredentials, SpotifyOauthError

from songray import web
from songray.errors import FetchError

CREDENTIALS = "SPOTIPY_CLIENT_ID and SPOTIPY_CLIENT_SECRET"
CONNECT_SECONDS = 10.0
LETTERS = 200  # of a message that is quoted


@cache
def app(spotify_url: str, token_url: str, timeout_seconds: float) -> App:
    """The one of this process, so that its token lasts. Raises ValueError without credentials."""
    return App(spotify_url, token_url, timeout_seconds)


class App:
    """spotipy for the threads of a process, which share its token; it never leaves the process.

    It neither waits nor tries again: that is web.Client's work. `refused` holds refusals in a row, by kind of
    page and its limit, from which a process learns what its app may not ask at all.
    """

    def __init__(self, spotify_url: str, token_url: str, timeout_seconds: float) -> None:
        for name in ("spotipy.client", "spotipy.oauth2"):  # at DEBUG they log the secret and the token
            logging.getLogger(name).addFilter(_nothing)
        timeout = (min(CONNECT_SECONDS, timeout_seconds), timeout_seconds)
        self.refused: defaultdict[tuple[str, int], list[FetchError]] = defaultdict(list)
        self._token = MemoryCacheHandler()
        self._token_lock = threading.Lock()
        try:
            self._credentials = SpotifyClientCredentials(
                requests_session=_session(_check_credentials),
                requests_timeout=timeout,
                cache_handler=self._token,
            )
        except SpotifyOauthError as error:
            raise ValueError(f"set {CREDENTIALS} in the environment of every machine") from error
        if not (self._credentials.client_id + self._credentials.client_secret).isascii():
            raise ValueError(f"{CREDENTIALS} hold letters that no credentials have: copy them anew")
        self._credentials.OAUTH_TOKEN_URL = token_url
        self._spotify = spotipy.Spotify(
            auth_manager=self._credentials, requests_session=_session(_check), requests_timeout=timeout
        )
        self._spotify.prefix = spotify_url

    def answer(self, request: Callable[[spotipy.Spotify], Any]) -> Any:
        """What spotipy returns; raises FetchError, or RuntimeError where Spotify refuses the credentials."""
        try:
            with self._token_lock:  # one thread asks for a token, and the others find it
                token = self._credentials.get_access_token(as_dict=False)
            answer = request(self._spotify)
        except requests.Timeout as error:
            raise FetchError("timeout", str(error), retryable=True) from error
        except requests.RequestException as error:
            raise FetchError("connection", str(error), retryable=True) from error
        except FetchError as failure:
            if failure.status != 401:
                raise
            self._forget(token)
            raise FetchError("token_refused", str(failure), 401, retryable=True) from failure
        if answer is None:  # what spotipy makes of a body that is no JSON
            raise FetchError("connection", "the answer was cut short", retryable=True)
        return answer

    def _forget(self, token: str) -> None:
        with self._token_lock:
            if (self._token.get_cached_token() or {}).get("access_token") == token:
                self._token.save_token_to_cache(None)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _session(check: Callable[..., None]) -> requests.Session:
    session = requests.Session()
    session.headers["User-Agent"] = web.USER_AGENT
    session.hooks["response"].append(check)
    return session


def _check(response: requests.Response, **_: Any) -> None:
    """Raise FetchError unless all is well: as for any service, and before spotipy would log it."""
    if not response.ok:
        place = f"{response.url.split('?')[0]} ({_message(response)})"
        web.check_status(response.status_code, place, response.headers.get("Retry-After"))


def _check_credentials(response: requests.Response, **_: Any) -> None:
    if response.status_code in (400, 401, 403):
        reason = _message(response)
        raise RuntimeError(f"{response.url} refuses {CREDENTIALS} ({reason}): correct them and crawl again")
    _check(response)


def _message(response: requests.Response) -> str:
    """What a body says of its failure; APIs and accounts differ in the shape."""
    try:
        error = response.json()["error"]
        words = [error] if isinstance(error, str) else [error.get("reason"), error["message"]]
        return " ".join(filter(None, words))[:LETTERS].encode(errors="replace").decode()
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.reason or "no reason given"
