"""One HTTP request: what it brings, what is worth another try, and what a person has to put right."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from lit_align.errors import UserError

WORTH_ANOTHER_TRY = {408, 409, 425, 429}
"""Statuses below 500 that pass by themselves; those from 500 on do too, except 501."""

LONGEST_REQUESTED_WAIT = 600.0
"""Seconds that a server may ask to be left alone; one that asks for more is not coming back soon."""


class NoAnswerError(Exception):
    """A request that is worth another try.

    Args:
        reason: What went wrong.
        wait: Seconds that the server asks to wait, or 0.
        is_free: Whether the server surely did no work on it.
    """

    def __init__(self, reason: str, wait: float = 0.0, is_free: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.is_free = is_free


class RefusedError(UserError):
    """One request is refused as it is, where others may not be. `key` says which, once somebody knows."""

    key = ""


class Server:
    """Where requests go.

    Args:
        url: Of the API, without the path of a call, such as `http://localhost:8000/v1`.
        api_key_env: The environment variable that holds the key, or None. The key is read when a request is sent, and is
            neither kept here nor left in any text that comes back.
        timeout: Seconds for connecting, for each wait, and for the whole reply.

    Raises:
        UserError: The url is none, or would give away a password; or there is no key.
    """

    def __init__(self, url: str, api_key_env: str | None, timeout: float) -> None:
        got = "" if "@" in url else f", got {url!r}"  # which may hold a password
        wrong = UserError(f"The server's url must be an address such as http://localhost:8000/v1{got}.")
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:  # brackets without their other half, or a port that is no number
            raise wrong from None
        is_plain = url.isprintable() and " " not in url and not parts.query and not parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
            raise wrong
        if parts.username is not None:
            raise UserError(
                "The server's url holds a name or password, which would be saved with the settings. Put the key into an "
                "environment variable, and its name into api_key_env."
            )
        api_key(api_key_env)
        self.url = url.rstrip("/")
        self.api_key_env = api_key_env
        self.timeout = timeout
        self._opener = urllib.request.build_opener(_NoRedirect)

    def post(self, path: str, body: bytes) -> Any:
        """Sends JSON and returns what came back as JSON.

        Raises:
            NoAnswerError: It may succeed when sent again.
            UserError: It will not.
        """
        key = api_key(self.api_key_env)
        headers = {"Content-Type": "application/json", "User-Agent": "lit_align"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}{path}", body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                text = _hidden(self._read(response), key)
        except urllib.error.HTTPError as error:
            with error:
                said = _hidden(_excerpt(self._read_what_there_is(error)), key)
            raise self._failure(error, said) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise UserError(
                    f"{self.url} shows no certificate that this machine trusts: {error.reason}. Check the address."
                ) from None
            raise NoAnswerError(f"{self.url} cannot be reached: {error.reason}", is_free=True) from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"{self.url} broke off: {_hidden(str(error), key) or type(error).__name__}") from None
        try:
            return json.loads(text)
        except ValueError:
            raise NoAnswerError(f"{self.url} sent no JSON: {_excerpt(text)!r}") from None

    def _read(self, response: Any) -> str:
        """The whole reply. The timeout of a socket starts anew with every byte, so a trickle is cut here."""
        deadline = time.monotonic() + self.timeout
        parts = []
        while part := response.read1():
            parts.append(part)
            if time.monotonic() > deadline:
                raise TimeoutError(f"the reply took longer than {self.timeout:g} seconds")
        return b"".join(parts).decode(errors="replace")

    def _read_what_there_is(self, error: urllib.error.HTTPError) -> str:
        try:
            return self._read(error)
        except (OSError, http.client.HTTPException):
            return ""

    def _failure(self, error: urllib.error.HTTPError, said: str) -> Exception:
        status, reply = error.code, f"HTTP {error.code} from {error.url}: {said.rstrip('. ') or error.reason}"
        if (status in WORTH_ANOTHER_TRY or (status >= 500 and status != 501)) and "insufficient_quota" not in said:
            wait = _requested_wait(error.headers.get("Retry-After"))
            if wait > LONGEST_REQUESTED_WAIT:
                return UserError(
                    f"{reply}. The server asks to wait {wait:,.0f} seconds. Answers so far are kept: start again later to "
                    "go on."
                )
            return NoAnswerError(reply, wait, is_free=True)
        if status in (401, 403):
            where = f"environment variable {self.api_key_env}" if self.api_key_env else "none was sent: set api_key_env"
            return UserError(f"{reply}. The server does not accept the API key ({where}).")
        if status in (404, 405):
            return UserError(
                f"{reply}. There is no such API or model: check url, which often ends in /v1, and model. Chats go to "
                "/chat/completions and plain text to /completions; not every server has both."
            )
        if 300 <= status < 400:
            return UserError(
                f"{reply}. The server has moved to {error.headers.get('Location')!r}: name that address in url."
            )
        return RefusedError(f"{reply}. The server refuses the request as it is; `extra` adds and removes fields of it.")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        """Never follows."""


def api_key(variable: str | None) -> str:
    """The key from an environment variable; empty where none is named.

    Raises:
        UserError: The variable is not set, or holds what no key is.
    """
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"api_key_env: the environment variable {variable} is not set. Set it to the server's API key.")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"api_key_env: what the environment variable {variable} holds is not an API key.")
    return key


def _hidden(text: str, key: str) -> str:
    """The text without the key, which some servers repeat."""
    return text.replace(key, "<API key>") if key else text


def _excerpt(text: str) -> str:
    """What a reply says to a person."""
    try:
        reply = json.loads(text)
        said = next(reply[name] for name in ("error", "detail", "message") if reply.get(name))
        parts = [said.get("message"), said.get("code")] if isinstance(said, dict) else [said]
        return ", ".join(str(part) for part in parts if part)[:300]
    except (ValueError, AttributeError, StopIteration):
        return "a web page" if text.lstrip()[:1] == "<" else text.strip()[:300]


def _requested_wait(header: str | None) -> float:
    """Seconds from a Retry-After header, which has a number or a date; 0 where it has neither."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return seconds if seconds > 0 else 0.0
