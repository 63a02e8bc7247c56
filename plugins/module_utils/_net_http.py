# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""HTTP and HTTPS, directly or through a proxy, with limits on time and memory that no server can exceed."""

from __future__ import annotations

import base64
import re
import socket
import ssl
import subprocess
import sys
import time
import typing as t
import urllib.request
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse, IncompleteRead

from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    Deadline,
    Finding,
    Problem,
    milliseconds,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_socket import (
    Incoming,
    connect,
    problem_of,
    receive,
    send,
    start_tls,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_targets import Endpoint, Url, url

BODY_LIMIT = 256 * 1024
HEAD_LIMIT = 64 * 1024
REDIRECTS = (301, 302, 303, 307, 308)
#: Expression and body in, "match" out.
MATCH = "import re, sys; re.search(sys.argv[1], sys.stdin.buffer.read().decode('utf-8', 'replace')) and print('match')"


@dataclass(frozen=True)
class Proxy:
    endpoint: Endpoint
    authorization: str = ""  # value of the header Proxy-Authorization

    @property
    def method(self) -> str:
        return f"proxy {self.endpoint}"


@dataclass(frozen=True)
class Response:
    status: int
    reason: str
    headers: Message
    body: bytes
    peer: str
    issuer: str
    complete: bool
    """Whether the body ended before our limit was reached."""


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def proxy_of_environment(target: Url, environment: t.Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy that http_proxy, https_proxy and no_proxy mean for a URL."""
    proxies = (
        urllib.request.getproxies_environment()
        if environment is None
        else {name[:-6].lower(): value for name, value in environment.items() if name.lower().endswith("_proxy")}
    )
    found = proxies.get(target.scheme) or proxies.get("all")
    if not found or urllib.request.proxy_bypass_environment(target.endpoint.host, proxies):
        return None
    text = found if "://" in found else f"http://{found}"
    credentials = re.match(r"(http://)(?:([^@/]*)@)", text)
    where = url(text.replace(f"{credentials[2]}@", "", 1) if credentials else text, "http_proxy", ("http",))
    if not credentials:
        return Proxy(where.endpoint)
    user, _colon, password = (urllib.request.unquote(part) for part in credentials[2].partition(":"))
    return Proxy(where.endpoint, basic(user, password))


def tls_context(ca_path: str | None, verify: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_path)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def fetch(
    target: Url,
    deadline: Deadline,
    *,
    method: str = "GET",
    headers: t.Mapping[str, str] | None = None,
    proxy: Proxy | None = None,
    context: ssl.SSLContext | None = None,
    family: int = 0,
    limit: int = BODY_LIMIT,
) -> Response:
    """One request and its answer. Redirects are not followed: nothing is sent where the caller did not say."""
    sock = _open(target, deadline, proxy, family)
    way = proxy.method if proxy else "direct"
    issuer = ""
    try:
        if target.scheme == "https":
            if proxy:
                _tunnel(sock, target, proxy, deadline)
            sock = start_tls(sock, target.endpoint.host, context or tls_context(None), deadline)
            issuer = issuer_of(sock)
        deadline.waiting_for = ("timeout", f"{target.endpoint} has not sent its whole answer")
        path = target.text if proxy and target.scheme == "http" else target.path
        fields = {"Host": target.authority, "User-Agent": "goldsmith.images", "Accept": "*/*", "Connection": "close"}
        if proxy and target.scheme == "http" and proxy.authorization:
            fields["Proxy-Authorization"] = proxy.authorization
        fields.update(headers or {})
        if method == "PUT":
            fields["Content-Length"] = "0"
        send(sock, _head(f"{method} {path} HTTP/1.1", fields), deadline)
        peer = sock.getpeername()[0]
        return _response(sock, method, deadline, limit, peer, issuer)
    except (OSError, HTTPException) as exc:
        if isinstance(exc, OSError):
            raise problem_of(exc, deadline.waiting_for[1], way) from exc
        raise Problem("http_malformed", f"{target.endpoint}: {type(exc).__name__} {exc}"[:300], method=way) from exc
    finally:
        sock.close()


def _open(target: Url, deadline: Deadline, proxy: Proxy | None, family: int) -> socket.socket:
    try:
        return connect(proxy.endpoint if proxy else target.endpoint, deadline, 0 if proxy else family)
    except Problem as exc:
        if proxy is None:
            exc.method = "direct"
            raise
        raise Problem("proxy_unreachable", exc.detail, method=proxy.method) from exc


def _head(line: str, fields: t.Mapping[str, str]) -> bytes:
    return (line + "\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n").encode(
        "latin-1"
    )


def _tunnel(sock: socket.socket, target: Url, proxy: Proxy, deadline: Deadline) -> None:
    deadline.waiting_for = ("timeout", f"the proxy {proxy.endpoint} has not opened the tunnel")
    fields = {"Host": str(target.endpoint)}
    if proxy.authorization:
        fields["Proxy-Authorization"] = proxy.authorization
    send(sock, _head(f"CONNECT {target.endpoint} HTTP/1.1", fields), deadline)
    # Byte by byte, because what follows the head belongs to TLS.
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = receive(sock, deadline, 1)
        if not byte or len(head) > HEAD_LIMIT:
            raise Problem("proxy_refused", f"the proxy {proxy.endpoint} sends no HTTP answer", method=proxy.method)
        head += byte
    status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if status is None or status[1] != b"200":
        first = head.split(b"\r\n")[0].decode("latin-1")[:200]
        kind = "proxy_auth" if status is not None and status[1] == b"407" else "proxy_refused"
        raise Problem(kind, f"the proxy {proxy.endpoint} answers: {first}", method=proxy.method)


def _response(sock: socket.socket, method: str, deadline: Deadline, limit: int, peer: str, issuer: str) -> Response:
    # The class asks of a socket only that it can make a file.
    response = HTTPResponse(t.cast(socket.socket, Incoming(sock, deadline)), method=method)
    response.begin()
    try:
        body = response.read(limit + 1)
        complete = not response.length and len(body) <= limit
    except IncompleteRead as exc:
        body, complete = exc.partial, False
    return Response(response.status, response.reason, response.headers, body[:limit], peer, issuer, complete)


def issuer_of(sock: ssl.SSLSocket) -> str:
    """Organisation and common name of who issued the certificate; empty if it was not verified."""
    names = {key: value for rdn in (sock.getpeercert() or {}).get("issuer", ()) for key, value in rdn}
    return " ".join(filter(None, (names.get("organizationName"), names.get("commonName"))))


@dataclass(frozen=True)
class Expectation:
    status: t.Sequence[int] = (200,)
    body: str | None = None
    issuer: str | None = None


def check_http(
    target: Url,
    expected: Expectation,
    proxy: Proxy | None,
    context: ssl.SSLContext | None,
    family: int,
    deadline: Deadline,
) -> Finding:
    start = time.monotonic()
    way = proxy.method if proxy else "direct"
    answer = fetch(target, deadline, proxy=proxy, context=context, family=family)
    took = milliseconds(start)
    judge(answer, expected, target, way, deadline)
    issuer = f", certificate of {answer.issuer}" if answer.issuer else ""
    return Finding(f"status {answer.status} from {answer.peer}{issuer}", way, took)


def judge(answer: Response, expected: Expectation, target: Url, way: str, deadline: Deadline) -> None:
    """Problem if the answer is not the expected one."""
    location = answer.headers.get("Location", "")
    said = f"status {answer.status}" + (f" to {location[:200]}" if location else "")
    if expected.issuer is not None and expected.issuer not in answer.issuer:
        raise Problem("tls_issuer", f"issued by {answer.issuer or 'nobody known'}, not {expected.issuer}", method=way)
    if answer.status not in expected.status:
        if answer.status == 407:
            raise Problem("proxy_auth", said, method=way)
        wanted = " or ".join(map(str, expected.status))
        detail = f"{said}, expected {wanted}"
        kind = "captive_portal" if _looks_like_portal(answer, expected, target, location) else "http_status"
        raise Problem(kind, detail, method=way)
    if expected.body is not None:
        deadline.waiting_for = ("http_body", f"{said}, but {expected.body!r} is not done with the body: simplify it")
        if not _matches(expected.body, answer.body, deadline):
            text = answer.body.decode("utf-8", "replace")
            html = "html" in answer.headers.get("Content-Type", "")
            limit = "" if answer.complete else f" in its first {len(answer.body)} bytes"
            detail = f"{said}, but the body does not match {expected.body!r}{limit}: {' '.join(text[:80].split())!r}"
            raise Problem("captive_portal" if html else "http_body", detail, method=way)


def _matches(expression: str, body: bytes, deadline: Deadline) -> bool:
    """In a process of its own: an expression may go on for ever, and in a thread it would hold up all others."""
    command = [sys.executable, "-IS", "-c", MATCH, expression]
    return bool(subprocess.run(command, input=body, capture_output=True, timeout=deadline.left(), check=True).stdout)


def _looks_like_portal(answer: Response, expected: Expectation, target: Url, location: str) -> bool:
    """A log-in page in place of the server (RFC 6585, and what network managers look for)."""
    if answer.status == 511:
        return True
    if answer.status in REDIRECTS:
        host = re.match(r"https?://(?:[^/@]*@)?(\[[^\]]*\]|[^/:?#]+)", location)
        return host is not None and host[1].strip("[]").lower() != target.endpoint.host.lower()
    return answer.status == 200 and 204 in expected.status
