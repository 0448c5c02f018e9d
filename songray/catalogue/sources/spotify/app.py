"""Access of an app to Spotify: spotipy with the app's credentials and token. Failures become FetchError."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import requests
import spotipy
from spotipy.cache_handler import MemoryCacheHandler
from spotipy.oauth2 import SpotifyClientCredentials, SpotifyOauthError

from songray import web
from songray.errors import FetchError, InvalidOption, MissingInput

CREDENTIALS = "SPOTIPY_CLIENT_ID and SPOTIPY_CLIENT_SECRET"
CONNECT_SECONDS = 10.0
MAX_LETTERS = 200  # of a quoted message


@cache
def app(spotify_url: str, token_url: str, timeout_seconds: float) -> App:
    """The app of this process, so that its token is reused. Raises InvalidOption without credentials."""
    return App(spotify_url, token_url, timeout_seconds)


class App:
    """spotipy for the threads of one process, which share the token; the token never leaves the process.

    It neither waits nor retries: web.Client does. `refused` holds consecutive refusals by kind of page and
    limit, from which the process infers which endpoints its app may not request.
    """

    def __init__(self, spotify_url: str, token_url: str, timeout_seconds: float) -> None:
        for name in ("spotipy.client", "spotipy.oauth2"):  # they log the secret and the token at DEBUG
            logging.getLogger(name).addFilter(_reject)
        self.host = urlsplit(spotify_url).netloc
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
            raise InvalidOption(f"set {CREDENTIALS} in the environment of every machine") from error
        if not (self._credentials.client_id + self._credentials.client_secret).isascii():
            raise InvalidOption(f"{CREDENTIALS} contain characters that are not ASCII: copy them again")
        self._credentials.OAUTH_TOKEN_URL = token_url
        self._spotify = spotipy.Spotify(
            auth_manager=self._credentials, requests_session=_session(_check), requests_timeout=timeout
        )
        self._spotify.prefix = spotify_url

    def request(self, call: Callable[[spotipy.Spotify], Any]) -> Any:
        """What spotipy returns. Raises FetchError, or MissingInput where Spotify refuses the credentials."""
        try:
            with self._token_lock:  # the first thread requests a token, the others reuse it
                token = self._credentials.get_access_token(as_dict=False)
            body = call(self._spotify)
        except requests.Timeout as error:
            raise FetchError("timeout", str(error), retryable=True) from error
        except requests.RequestException as error:
            raise FetchError("connection", str(error), retryable=True) from error
        except FetchError as error:
            if error.status != 401:
                raise
            self._forget(token)
            raise FetchError("token_refused", str(error), 401, retryable=True) from error
        if body is None:  # spotipy returns None for a body that is not JSON
            raise FetchError("connection", "the response was cut off", retryable=True)
        return body

    def _forget(self, token: str) -> None:
        with self._token_lock:
            if (self._token.get_cached_token() or {}).get("access_token") == token:
                self._token.save_token_to_cache(None)


def _reject(record: logging.LogRecord) -> bool:
    return False


def _session(check: Callable[..., None]) -> requests.Session:
    session = requests.Session()
    session.headers["User-Agent"] = web.USER_AGENT
    session.hooks["response"].append(check)
    return session


def _check(response: requests.Response, **_: Any) -> None:
    """Raise FetchError as for any service, before spotipy logs the response."""
    if not response.ok:
        place = f"{response.url.split('?')[0]} ({_message(response)})"
        web.check_status(response.status_code, place, response.headers.get("Retry-After"))


def _check_credentials(response: requests.Response, **_: Any) -> None:
    if response.status_code in (400, 401, 403):
        reason = _message(response)
        raise MissingInput(f"{response.url} refuses {CREDENTIALS} ({reason}): correct them and crawl again")
    _check(response)


def _message(response: requests.Response) -> str:
    """The message in an error's body, whose shape differs between Spotify's API and its accounts service."""
    try:
        error = response.json()["error"]
        words = [error] if isinstance(error, str) else [error.get("reason"), error["message"]]
        return " ".join(filter(None, words))[:MAX_LETTERS].encode(errors="replace").decode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return response.reason or "no reason"
