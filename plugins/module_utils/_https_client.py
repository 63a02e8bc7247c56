# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""HTTP requests to one server that end in time, whatever it sends, and say what is wrong with its certificate."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
import typing as t
import urllib.parse

from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline
from ansible_collections.goldsmith.images.plugins.module_utils._net_socket import Incoming

AGENT = "goldsmith.images"
#: Constants of OpenSSL that Python's ssl has no name for, or only since 3.10.
_PARTIAL_CHAIN = 0x80000
_NO_CHECK_TIME = 0x200000
_STRICT = 0x20
_NAME_MISMATCH = (62, 64)

Headers = t.Mapping[str, str]


class HttpError(Exception):
    """No answer came; `kind` is its class, `text` names the place and the reason."""

    def __init__(self, kind: str, text: str, certificate: Certificate | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.certificate = certificate


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What the server showed. Only the fingerprint is known of one that Python cannot parse."""

    fingerprint: str
    verified: bool
    problems: list[str]
    subject: str | None = None
    issuer: str | None = None
    names: list[str] = dataclasses.field(default_factory=list)
    not_before: str | None = None
    not_after: str | None = None
    days_left: int | None = None


@dataclasses.dataclass(frozen=True)
class Trust:
    """How the server proves who it is."""

    validate: bool = True
    ca_path: str | None = None
    fingerprint: str | None = None

    def context(self) -> ssl.SSLContext:
        if not self.validate or self.fingerprint:
            return _unverified()
        folder = self.ca_path is not None and os.path.isdir(self.ca_path)
        context = ssl.create_default_context(
            cafile=None if folder else self.ca_path, capath=self.ca_path if folder else None
        )
        # From 3.13 on Python refuses certificates that lack extensions which self-made ones rarely have.
        _set_flags(context, context.verify_flags & ~_STRICT)
        return context


@dataclasses.dataclass(frozen=True)
class Place:
    """Scheme, host and port: where requests go."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{host}" + ("" if self.port == default else f":{self.port}")

    @property
    def is_loopback(self) -> bool:
        """By its name: what the resolver says is no reason to send a password in the clear."""
        if self.host.lower() in ("localhost", "ip6-localhost", "localhost.localdomain"):
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False


@dataclasses.dataclass(frozen=True)
class Answer:
    place: Place
    path: str
    status: int
    content_type: str
    location: str | None
    body: bytes
    #: Whether the server had more to send than was asked for.
    truncated: bool
    certificate: Certificate | None

    def json(self) -> t.Any:
        """The parsed body; ValueError if it is not JSON."""
        try:
            return json.loads(self.body.decode("utf-8"))
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def printable(text: str, limit: int = 200) -> str:
    """What a server sent, so that it can be shown: short, without control characters and halves of characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:limit])


def parse_place(text: str, port: int | None = None) -> Place:
    """`host`, `host:port`, `https://host` and `http://host:port/`; ValueError says what is wrong with others."""
    text = text.strip()
    try:
        # A bare IPv6 address has colons that are no port's.
        literal = f"[{text}]" if ipaddress.ip_address(text).version == 6 else text
    except ValueError:
        literal = text
    parts = urllib.parse.urlsplit(literal if "://" in literal else f"https://{literal}")
    if "@" in parts.netloc:
        raise ValueError("the address contains a user name: give username and password as options of their own")
    try:
        given = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ValueError(f"not a server's address: {text!r} (give a host name, or https://HOST:PORT)")
    if any(character.isspace() or not character.isprintable() for character in parts.hostname):
        raise ValueError(f"not a host name: {parts.hostname!r}")
    if port is not None and given is not None and port != given:
        raise ValueError(f"the address {text!r} and port {port} contradict each other: give the port once")
    number = given if given is not None else port
    if number is None:
        number = {"http": 80, "https": 443}[parts.scheme]
    if not 0 < number < 65536:
        raise ValueError(f"not a port: {number} (1 to 65535)")
    return Place(parts.scheme, parts.hostname, number)


# --- connections ----------------------------------------------------------------------------------------------------


def connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """A connection to the first address that accepts one; each address has its share of the time."""
    where = f"{host} port {port}"
    addresses = _resolve(host, port, deadline)
    failure = HttpError("no_route", f"{where}: no address")
    for number, (family, address) in enumerate(addresses):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(deadline.left() / (len(addresses) - number))
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            found = HttpError(_kind(error), f"{where}: {_words(error)}")
            # A refusal says more than an address without a route.
            failure = failure if failure.kind == "refused" else found
    raise failure


def _resolve(host: str, port: int, deadline: Deadline) -> list[tuple[int, t.Any]]:
    """The C library's resolver knows no deadline of ours, so it runs in a thread that can be left behind."""
    found: list[t.Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(deadline.left())
    if not found:
        raise HttpError("dns", f"{host}: no answer to the question for its address")
    if isinstance(found[0], Exception):
        reason = found[0].strerror if isinstance(found[0], OSError) else "not a possible name"
        raise HttpError("dns", f"{host}: its address is not known ({reason})")
    return [(family, address) for family, _type, _protocol, _name, address in found[0]]


def _kind(error: OSError) -> str:
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "closed"
    return "no_route"


def _words(error: OSError) -> str:
    if _kind(error) == "timeout":
        return "no answer in time"
    return os.strerror(error.errno) if error.errno else str(error)


# --- TLS ------------------------------------------------------------------------------------------------------------


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _set_flags(context: ssl.SSLContext, flags: int) -> None:
    context.verify_flags = flags  # type: ignore[assignment]  # no enumeration has all of OpenSSL's


def _handshake(place: Place, context: ssl.SSLContext, deadline: Deadline) -> ssl.SSLSocket:
    """TLS on a new connection. What is wrong with a certificate comes out as SSLCertVerificationError."""
    plain = connect(place.host, place.port, deadline)
    try:
        plain.settimeout(deadline.left())
        return context.wrap_socket(plain, server_hostname=place.host)
    except ssl.SSLCertVerificationError:
        plain.close()
        raise
    except (OSError, ValueError) as error:
        plain.close()
        if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            raise HttpError("not_tls", f"{place}: the server does not speak TLS on this port") from error
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            raise HttpError("tls", f"{place}: TLS handshake failed ({error.reason or error})") from error
        if isinstance(error, OSError) and _kind(error) == "timeout":
            raise HttpError("timeout", f"{place}: no answer to the TLS handshake in time") from error
        raise HttpError("closed", f"{place}: the server closed the connection in the TLS handshake") from error


def open_tls(place: Place, trust: Trust, deadline: Deadline) -> tuple[ssl.SSLSocket, Certificate]:
    """A connection to a server that has proved who it is, in the way the caller wants."""
    try:
        connection = _handshake(place, trust.context(), deadline)
    except ssl.SSLCertVerificationError as error:
        certificate = examine(place, trust, deadline)
        reason = ", ".join(certificate.problems) or error.verify_message
        raise HttpError("certificate", f"{place}: the certificate is not trusted: {reason}", certificate) from error
    der = connection.getpeercert(binary_form=True) or b""
    fingerprint = hashlib.sha256(der).hexdigest()
    if trust.fingerprint and fingerprint != trust.fingerprint:
        connection.close()
        text = f"{place}: the certificate is another one than the pinned: its SHA-256 fingerprint is {fingerprint}"
        raise HttpError("certificate", text, examine(place, trust, deadline))
    if trust.fingerprint or not trust.validate:
        try:
            found = examine(place, trust, deadline)
        except BaseException:
            connection.close()
            raise
        return connection, dataclasses.replace(found, verified=bool(trust.fingerprint))
    return connection, _describe(fingerprint, connection.getpeercert() or {}, verified=True, problems=[])


def examine(place: Place, trust: Trust, deadline: Deadline) -> Certificate:
    """Everything that is wrong with a server's certificate, where a handshake would name only the first.

    Python parses a certificate only if it is verified. So it is fetched without, and then verified against itself.
    """
    with _handshake(place, _unverified(), deadline) as connection:
        der = connection.getpeercert(binary_form=True) or b""
    fingerprint = hashlib.sha256(der).hexdigest()
    problems = []
    try:
        _handshake(place, Trust(ca_path=trust.ca_path).context(), deadline).close()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == 18:
            problems.append("self-signed")
        elif error.verify_code in (2, 19, 20, 21):
            problems.append("issuer unknown")
        elif error.verify_code not in (9, 10, *_NAME_MISMATCH):
            problems.append(error.verify_message)
    anchored = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anchored.load_verify_locations(cadata=der)
    _set_flags(anchored, _PARTIAL_CHAIN | _NO_CHECK_TIME)
    found: dict[str, t.Any] = {}
    for check_hostname in (True, False):
        anchored.check_hostname = check_hostname
        try:
            with _handshake(place, anchored, deadline) as connection:
                found = t.cast("dict[str, t.Any]", connection.getpeercert() or {})
            break
        except ssl.SSLCertVerificationError as error:
            if error.verify_code not in _NAME_MISMATCH:
                break
            problems.append(f"made for another name than {place.host}")
    now = time.time()
    if found and ssl.cert_time_to_seconds(found["notAfter"]) < now:
        problems.append(f"expired on {_date(found['notAfter'])}")
    if found and ssl.cert_time_to_seconds(found["notBefore"]) > now:
        problems.append(f"not valid before {_date(found['notBefore'])}")
    return _describe(fingerprint, found, verified=False, problems=problems)


def _describe(fingerprint: str, found: t.Mapping[str, t.Any], verified: bool, problems: list[str]) -> Certificate:
    if not found:
        return Certificate(fingerprint, verified, problems)
    return Certificate(
        fingerprint=fingerprint,
        verified=verified,
        problems=problems,
        subject=_name(found.get("subject", ())),
        issuer=_name(found.get("issuer", ())),
        names=[value for _kind_of_name, value in found.get("subjectAltName", ())],
        not_before=_date(found["notBefore"]),
        not_after=_date(found["notAfter"]),
        days_left=int((ssl.cert_time_to_seconds(found["notAfter"]) - time.time()) // 86400),
    )


def _name(parts: t.Iterable[t.Iterable[tuple[str, str]]]) -> str:
    return ", ".join(f"{key}={value}" for part in parts for key, value in part)


def _date(text: str) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ssl.cert_time_to_seconds(text)))


# --- HTTP -----------------------------------------------------------------------------------------------------------


def request(
    place: Place,
    path: str,
    trust: Trust,
    deadline: Deadline,
    limit: int,
    headers: Headers | None = None,
    data: t.Any = None,
) -> Answer:
    """One request: POST with `data` as JSON, or GET. Redirects are the caller's business."""
    certificate = None
    connection: socket.socket
    if place.scheme == "https":
        connection, certificate = open_tls(place, trust, deadline)
    else:
        connection = connect(place.host, place.port, deadline)
    body = b"" if data is None else json.dumps(data).encode()
    lines = {"Host": str(place).split("://", 1)[1], "User-Agent": AGENT, "Accept": "*/*", "Connection": "close"}
    if data is not None:
        lines.update({"Content-Type": "application/json", "Content-Length": str(len(body))})
    lines.update(headers or {})
    head = f"{'GET' if data is None else 'POST'} {path} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    with connection:
        try:
            connection.settimeout(deadline.left())
            connection.sendall(head.encode("latin-1") + body)
            # The class asks of a socket only that it can make a file.
            response = http.client.HTTPResponse(t.cast(socket.socket, Incoming(connection, deadline)))
            response.begin()
            received = response.read(limit + 1)
        except http.client.HTTPException as error:
            reason = f"{place}: not an HTTP answer ({type(error).__name__})"
            raise HttpError("not_http", reason, certificate) from error
        except OSError as error:
            if _kind(error) == "timeout":
                raise HttpError(
                    "timeout", f"{place}{path}: the answer was not complete in time", certificate
                ) from error
            closed = isinstance(error, ssl.SSLError) or error.errno in (errno.ECONNRESET, errno.EPIPE)
            reason = "the server closed the connection" if closed else _words(error)
            raise HttpError("closed", f"{place}{path}: {reason}", certificate) from error
    return Answer(
        place=place,
        path=path,
        status=response.status,
        content_type=(response.headers.get("Content-Type") or "").split(";")[0].strip().lower(),
        location=response.headers.get("Location"),
        body=received[:limit],
        truncated=len(received) > limit,
        certificate=certificate,
    )
