# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Names to addresses, addresses to connections, and the system's errors in the words of the checks."""

from __future__ import annotations

import errno
import io
import os
import selectors
import socket
import ssl
import time
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline, Problem
from ansible_collections.goldsmith.images.plugins.module_utils._net_targets import Endpoint, address

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}

_ERRORS = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "filtered",
    errno.EHOSTUNREACH: "host_unreachable",
    errno.EHOSTDOWN: "host_unreachable",
    errno.ENETUNREACH: "no_route",
    errno.ENETDOWN: "no_route",
    errno.EADDRNOTAVAIL: "no_route",
    errno.EAFNOSUPPORT: "no_route",
    errno.EINVAL: "no_route",  # a route of the type blackhole
    errno.EPERM: "local_firewall",
    errno.EACCES: "local_firewall",
    errno.ECONNRESET: "closed",
    errno.EPIPE: "closed",
}
# Of a host with several addresses, the failure that tells most.
_TELLING = ("refused", "closed", "local_firewall", "filtered", "host_unreachable", "no_route")

_GAI_ERRORS = {
    socket.EAI_NONAME: "dns_nxdomain",
    socket.EAI_NODATA: "dns_no_data",
    socket.EAI_ADDRFAMILY: "dns_no_data",
    socket.EAI_AGAIN: "dns_timeout",
    socket.EAI_FAIL: "dns_server_failure",
}

_TLS_ERRORS = {
    9: "tls_not_yet_valid",
    10: "tls_expired",
    18: "tls_untrusted",
    19: "tls_untrusted",
    20: "tls_untrusted",
    21: "tls_untrusted",
    62: "tls_name",
    64: "tls_name",
}

SocketAddress = tuple[t.Any, ...]


def error_class(code: int | None) -> str:
    return _ERRORS.get(code or 0, "timeout" if code is None else "closed")


def resolve(host: str, port: int, deadline: Deadline, family: int = 0) -> list[tuple[int, SocketAddress]]:
    """Family and socket address of every address of a host, as this machine's resolver sees it."""
    literal = address(host)
    deadline.waiting_for = ("dns_timeout", f"the resolver has not answered for {host}")
    try:
        found = socket.getaddrinfo(
            host,
            port,
            family,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            socket.AI_NUMERICHOST if literal is not None else socket.AI_ADDRCONFIG,
        )
    except socket.gaierror as exc:
        if literal is not None:
            raise Problem("no_route", f"{host} is not an address of the wanted family") from exc
        kind = _GAI_ERRORS.get(exc.errno or 0, "dns_server_failure")
        raise Problem(kind, f"{host}: {exc.strerror}", method="getaddrinfo") from exc
    except UnicodeError as exc:
        raise Problem("dns_nxdomain", f"{host} is no possible name: {exc}", method="getaddrinfo") from exc
    deadline.waiting_for = ("timeout", f"{host} has not answered")
    return [(entry[0], entry[4]) for entry in found]


def connect(where: Endpoint, deadline: Deadline, family: int = 0) -> socket.socket:
    """A connection to the first address that accepts one: all are tried at once."""
    failures: list[tuple[str, str]] = []
    pending: dict[socket.socket, str] = {}
    with selectors.DefaultSelector() as selector:
        try:
            for kind, target in resolve(where.host, where.port, deadline, family):
                sock = socket.socket(kind, socket.SOCK_STREAM)
                sock.setblocking(False)
                code = sock.connect_ex(target)
                if code in (0, errno.EINPROGRESS):
                    pending[sock] = target[0]
                    selector.register(sock, selectors.EVENT_WRITE)
                else:
                    sock.close()
                    failures.append((error_class(code), f"{target[0]}: {os.strerror(code)}"))
            while pending and deadline.remaining() > 0:
                for key, _events in selector.select(deadline.remaining()):
                    sock = t.cast(socket.socket, key.fileobj)
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    name = pending.pop(sock)
                    if code == 0:
                        return sock
                    selector.unregister(sock)
                    sock.close()
                    failures.append((error_class(code), f"{name}: {os.strerror(code)}"))
            failures += [("filtered", f"{name}: no answer") for name in pending.values()]
        finally:
            for sock in pending:
                sock.close()
    kinds = [kind for kind, _text in failures]
    kind = next((each for each in _TELLING if each in kinds), "timeout")
    raise Problem(kind, f"port {where.port}: " + ", ".join(text for _kind, text in failures), method="tcp")


def start_tls(sock: socket.socket, name: str, context: ssl.SSLContext, deadline: Deadline) -> ssl.SSLSocket:
    deadline.waiting_for = ("timeout", f"{name} has not finished the TLS handshake")
    sock.settimeout(deadline.left())
    try:
        return context.wrap_socket(sock, server_hostname=name)
    except ssl.SSLCertVerificationError as exc:
        kind = _TLS_ERRORS.get(exc.verify_code, "tls_error")
        raise Problem(kind, f"{name}: {exc.verify_message}", method="tls") from exc
    except socket.timeout as exc:
        raise Problem("timeout", f"{name} has not finished the TLS handshake", method="tls") from exc
    except OSError as exc:  # SSLError is one
        reason = getattr(exc, "reason", None) or exc.strerror or str(exc)
        raise Problem("tls_error", f"{name}: {reason}", method="tls") from exc


def send(sock: socket.socket, data: bytes, deadline: Deadline) -> None:
    sock.settimeout(deadline.left())
    sock.sendall(data)


def receive(sock: socket.socket, deadline: Deadline, size: int = 16384) -> bytes:
    sock.settimeout(deadline.left())
    return sock.recv(size)


class Incoming(io.RawIOBase):
    """What a connection brings, each piece within what is left of the time. A slow sender gets no extra time."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        self._connection.settimeout(self._deadline.left())
        return self._connection.recv_into(buffer)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What http.client wants of a socket."""
        return io.BufferedReader(self)


def problem_of(exc: OSError, what: str, method: str) -> Problem:
    """A system error on an open connection; a time-out has no number, and TLS numbers of its own."""
    timed_out = isinstance(exc, (TimeoutError, socket.timeout))
    text = "no answer in time" if timed_out else exc.strerror or str(exc)
    kind = "timeout" if timed_out else "tls_error" if isinstance(exc, ssl.SSLError) else error_class(exc.errno)
    return Problem(kind, f"{what}: {text}", method=method)


def check_tcp(where: Endpoint, deadline: Deadline, family: int = 0) -> tuple[str, float]:
    """The address that accepted a connection, and how long that took."""
    start = time.monotonic()
    with connect(where, deadline, family) as sock:
        took = (time.monotonic() - start) * 1000
        return sock.getpeername()[0], round(took, 2)
