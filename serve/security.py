"""Who may ask what: names and origins, the token, sizes of bodies, and what every answer tells browsers.

`Guard` stands before everything else, on the bytes of each request, so nothing that it refuses is parsed or kept.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError, error_body
from serve.settings import ServeSettings
from shared.errors import TalkheadError

SHORTEST_TOKEN = 16  # characters
SMALL_BODY = 1 << 20  # bytes of requests that upload nothing
BODY_SECONDS = 60.0  # that a client may be silent within a body
DISCARDED = 64 << 20  # bytes of a body that nobody wants that are still read and thrown away
DISCARD_SECONDS = 5.0
UPLOADS = ("/v1/videos", "/v1/edits", "/v1/landmarks")  # what takes bodies of the largest size
OPEN_PATHS = ("/", "/favicon.ico", "/health", "/healthz", "/readyz")  # and the page's files: asked for without a token
FAILED = "something went wrong in the service; its log tells what"
DEFAULT_PORTS = {"http": 80, "https": 443}
CSP = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
       "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
}

PREFLIGHT = {"access-control-allow-methods": "GET, HEAD, POST, DELETE", "access-control-max-age": "600",
             "access-control-allow-headers": "authorization, content-type, idempotency-key, last-event-id, range"}
log = logging.getLogger("talkhead.serve")


class Guard:
    """ASGI middleware: answers by itself what is to be refused, adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings
        self.origins = {normal_origin(origin) for origin in settings.origins}
        self.names = own_names(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        send = self._with_headers(scope, send)
        try:
            self._check(scope)
            if self._foreign(scope) and "access-control-request-method" in Headers(scope=scope):
                await Response(status_code=204, headers=PREFLIGHT)(scope, receive, send)
                return
            app = self.app
        except ApiError as error:
            app = error_response(error)
        if scope["type"] == "websocket":
            await app(scope, receive, send)
        else:
            body = _Body(self.limit(scope["path"]), Headers(scope=scope), receive, send)
            try:
                await body.run(app, scope)
            except Exception:
                if body.replied:
                    raise
                log.exception("%s %r failed", scope["method"], scope["path"])
                await error_response(ApiError(500, "failed", FAILED))(scope, receive, body.send)

    def limit(self, path: str) -> int:
        """Bytes that the body of a request to `path` may have."""
        uploads = any(path == start or path.startswith(start + "/") for start in UPLOADS)
        return self.settings.upload_bytes if uploads else SMALL_BODY

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = _only(headers, "host")
        name = host_name(host)
        if name is None:
            raise ApiError(400, "bad_host", "the Host header should be a name or an address, and a port")
        if name not in self.names and not is_address(name):  # a page whose name was made to lead here sends its own name
            raise ApiError(421, "unknown_host", f"this service does not answer under the name {name[:80]!r}; if it should, start "
                           f"it with --origin {_scheme(scope)}://{host[:80]}")
        if "origin" in headers:
            origin = _only(headers, "origin")
            if normal_origin(origin) not in {normal_origin(f"{_scheme(scope)}://{host}")} | self.origins:
                raise ApiError(403, "foreign_origin", f"pages of {origin[:80]!r} may not use this service; if they should, start "
                               f"it with --origin {origin[:80]}")
        if "transfer-encoding" in headers and "content-length" in headers:
            raise ApiError(400, "bad_request", "a request has a Content-Length or a Transfer-Encoding, not both")
        if scope["type"] == "http" and scope["method"] != "OPTIONS":
            self._check_token(scope["path"], headers)

    def _foreign(self, scope: Scope) -> str | None:
        """The Origin of a request by a page of another origin that was named with --origin."""
        origin = Headers(scope=scope).get("origin")
        return origin if origin is not None and normal_origin(origin) in self.origins else None

    def _check_token(self, path: str, headers: Headers) -> None:
        """Of an HTTP request; a WebSocket may come with a ticket instead (see `live_socket`)."""
        if path not in OPEN_PATHS and not path.startswith("/page/") and not has_token(headers, self.settings.token):
            raise ApiError(401, "wrong_token" if "authorization" in headers else "no_token",
                           "this service needs its token in the header `Authorization: Bearer TOKEN`",
                           headers={"www-authenticate": "Bearer"})

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store" if scope["path"].startswith("/v1") else "no-cache")
                if (origin := self._foreign(scope)) is not None:
                    headers["access-control-allow-origin"] = origin
                    headers["access-control-expose-headers"] = "*"
                if self.origins:
                    headers.add_vary_header("origin")
                message = {**message, "headers": headers.raw}
            await send(message)

        return sending


class _Body:
    """The body of one request, counted while it is read; the answer is 413 or 408 whatever the handler makes of the end.

    An answer to a request whose body was not read ends the connection, but first some of the body is read and thrown away: a
    client that still sends would otherwise see a broken connection and not the answer.
    """

    def __init__(self, limit: int, headers: Headers, receive: Receive, send: Send) -> None:
        self.limit, self.receive, self.send = limit, receive, send
        length = headers.get("content-length", "0")
        self.length = int(length[:20]) if length.isascii() and length.isdecimal() else 0
        self.read = 0
        self.ended = self.length == 0 and "transfer-encoding" not in headers  # all of it has come, or the client has gone
        self.refusal: ApiError | None = None
        self.replied = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            if self.length > self.limit:
                raise self._too_large()
            await app(scope, self._receive, self._send)
        except ApiError as error:
            if self.refusal is not error:
                raise
        if self.refusal is not None and not self.replied:
            refusal, self.refusal = self.refusal, None
            await error_response(refusal)(scope, self.receive, self._send)

    async def _receive(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        try:
            message = await (self.receive() if self.ended else asyncio.wait_for(self.receive(), BODY_SECONDS))
        except TimeoutError:
            self.refusal = ApiError(408, "body_timeout", f"nothing more of the request's body came for {BODY_SECONDS:.0f} s")
            raise self.refusal from None
        self._count(message)
        if self.read > self.limit:
            raise self._too_large()
        return message

    def _count(self, message: Message) -> None:
        self.read += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)

    def _too_large(self) -> ApiError:
        self.refusal = ApiError(413, "too_large", f"the request's body is larger than {self.limit} bytes")
        return self.refusal

    async def _send(self, message: Message) -> None:
        if self.refusal is not None and not self.replied:
            return  # what the handler makes of the refusal
        if message["type"] == "http.response.start":
            self.replied = True
            if not self.ended:
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        elif not self.ended and not message.get("more_body", False):
            await self.send({**message, "more_body": True})
            await self._discard()
            message = {"type": "http.response.body", "body": b""}
        await self.send(message)

    async def _discard(self) -> None:
        end = self.read + DISCARDED
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self.ended and self.read < end:
                    self._count(await self.receive())
        except TimeoutError:
            pass


def error_response(error: ApiError) -> JSONResponse:
    """The answer to a request that `error` ends."""
    return JSONResponse(error_body(error.status, error.code, str(error), error.param), error.status, error.headers)


def has_token(headers: Headers, token: str | None) -> bool:
    """Whether a request carries the service's token, compared in constant time; any does where there is none."""
    if token is None:
        return True
    given = headers.getlist("authorization")
    scheme, _, value = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    digests = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (value.strip(), token)]
    return hmac.compare_digest(*digests) and scheme.lower() == "bearer"


def check_settings(settings: ServeSettings) -> None:
    """Raise TalkheadError for an address that needs a token, a token that is none, an origin that is none, half of TLS."""
    if settings.token is None and not is_loopback(settings.host):
        raise TalkheadError(f"--host {settings.host} can be reached from other machines; give a token with --token or "
                            "TALKHEAD_TOKEN (`openssl rand -hex 16` makes one), or leave --host away")
    if settings.token is not None and not re.fullmatch(f"[!-~]{{{SHORTEST_TOKEN},256}}", settings.token):
        raise TalkheadError(f"the token should be {SHORTEST_TOKEN} to 256 letters, digits and signs without spaces, found "
                            f"{len(settings.token)} characters; `openssl rand -hex 16` makes one")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise TalkheadError("--tls-cert and --tls-key go together; name both or neither")
    for origin in settings.origins:
        normal_origin(origin, strict=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_address(name: str) -> bool:
    """Whether `name` is an IP address, which nobody can make lead elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_names(settings: ServeSettings) -> set[str]:
    """Names, in small letters, under which the service answers, besides all addresses."""
    names = {"localhost", settings.host.lower()}
    if not is_loopback(settings.host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return names | {(urlsplit(origin).hostname or "").lower() for origin in settings.origins} - {""}


def host_name(host: str) -> str | None:
    """The name or address in a Host header, in small letters and without brackets and port; None if it is none."""
    found = re.fullmatch(r"(?:([A-Za-z0-9._-]{1,253})|\[([0-9A-Fa-f:.]{2,45})\])(?::[0-9]{1,5})?", host)
    return (found[1] or found[2]).lower().rstrip(".") if found else None


def normal_origin(origin: str, strict: bool = False) -> str:
    """scheme://host:port in small letters, the port always named; what is no origin stays as it is, or raises TalkheadError."""
    found = re.fullmatch(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", origin.lower())
    if found is None:
        if strict:
            raise TalkheadError(f"--origin should be as https://avatars.example.org or http://name:8000, found {origin!r}")
        return origin
    return f"{found[1]}://{found[2]}:{found[3] or DEFAULT_PORTS[found[1]]}"


def _scheme(scope: Scope) -> str:
    return "https" if scope["scheme"] in ("https", "wss") else "http"


def _only(headers: Headers, name: str) -> str:
    """The value of a header that should stand there once."""
    found = headers.getlist(name)
    if len(found) != 1:
        raise ApiError(400, "bad_request", f"a request should have one {name.title()} header, found {len(found)}")
    return found[0]
