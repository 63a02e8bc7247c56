# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Name servers asked one by one, and this machine's resolver as programs use it."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import struct
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    Deadline,
    Finding,
    Problem,
    milliseconds,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_socket import (
    FAMILIES,
    connect,
    problem_of,
    receive,
    resolve,
    send,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_targets import Endpoint, address

A, AAAA = 1, 28
TYPES = {"ipv4": (A,), "ipv6": (AAAA,), None: (A, AAAA), "dual": (A, AAAA)}
NAMES = {A: "IPv4", AAAA: "IPv6"}
RCODES = {1: "dns_malformed", 2: "dns_server_failure", 3: "dns_nxdomain", 5: "dns_refused"}
RESEND = 1.0
#: Where systemd-resolved writes the servers that are behind its stub.
RESOLVED = "/run/systemd/resolve/resolv.conf"


@dataclass
class Answer:
    rcode: int
    addresses: list[str] = field(default_factory=list)
    truncated: bool = False


def query(name: str, kind: int, number: int) -> bytes:
    labels = [label.encode("idna" if not label.isascii() else "ascii") for label in name.rstrip(".").split(".")]
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + question + struct.pack("!2H", kind, 1)


def parse(data: bytes, number: int, kind: int) -> Answer | None:
    """The answer to our question; None if it belongs to another one. Problem if it is no answer at all."""
    try:
        got, flags, questions, answers = struct.unpack_from("!4H", data)
        if got != number:
            return None
        if not flags & 0x8000:
            raise ValueError("a question comes back")
        answer = Answer(flags & 0xF, truncated=bool(flags & 0x0200))
        position = 12
        for _each in range(questions):
            position = _skip_name(data, position) + 4
        for _each in range(answers):
            position = _skip_name(data, position)
            found, _class, _ttl, length = struct.unpack_from("!HHIH", data, position)
            position += 10
            if found == kind and length == (4 if kind == A else 16):
                answer.addresses.append(str(ipaddress.ip_address(data[position : position + length])))
            position += length
        if position > len(data) and not answer.truncated:
            raise ValueError("it is cut off")
        return answer
    except (struct.error, IndexError, ValueError) as exc:
        raise Problem("dns_malformed", f"the answer cannot be read: {exc}") from exc


def _skip_name(data: bytes, position: int) -> int:
    while True:
        length = data[position]
        if length >= 0xC0:
            return position + 2
        position += length + 1
        if length == 0:
            return position


def ask(server: Endpoint, name: str, kind: int, deadline: Deadline) -> tuple[Answer, str]:
    """One question over UDP, over TCP if the answer does not fit; the answer and the way it came."""
    number = secrets.randbelow(65536)
    question = query(name, kind, number)
    family, target = resolve(server.host, server.port, deadline)[0]
    deadline.waiting_for = ("dns_timeout", f"{server} has not answered")
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(target)
        answer = None
        while answer is None:
            deadline.left()
            sock.send(question)
            again = Deadline(min(RESEND, deadline.left()))
            while answer is None and again.remaining() > 0:
                try:
                    answer = parse(receive(sock, again, 65535), number, kind)
                except (TimeoutError, socket.timeout):
                    break
    if not answer.truncated:
        return answer, "udp"
    with connect(server, deadline) as stream:
        send(stream, struct.pack("!H", len(question)) + question, deadline)
        data = b""
        while len(data) < 2 or len(data) < 2 + struct.unpack_from("!H", data)[0]:
            part = receive(stream, deadline)
            if not part:
                raise Problem("dns_malformed", f"{server} closed the connection", method="tcp")
            data += part
    answer = parse(data[2:], number, kind)
    if answer is None:
        raise Problem("dns_malformed", f"{server} answered another question", method="tcp")
    return answer, "tcp"


def _ask_or_problem(server: Endpoint, name: str, kind: int, deadline: Deadline) -> tuple[Answer, str]:
    try:
        return ask(server, name, kind, deadline)
    except OSError as exc:
        problem = problem_of(exc, str(server), "udp")
        if problem.error_class == "timeout":
            problem.error_class = "dns_timeout"
        raise problem from exc


def check_server(server: Endpoint, name: str, family: str | None, deadline: Deadline) -> Finding:
    """Whether one server knows the name's addresses."""
    start = time.monotonic()
    found: dict[int, list[str]] = {}
    method = "udp"
    for kind in TYPES[family]:
        answer, way = _ask_or_problem(server, name, kind, deadline)
        method = max(method, way, key=("udp", "tcp").index)
        if answer.rcode:
            error = RCODES.get(answer.rcode, "dns_server_failure")
            raise Problem(error, f"{server} answers {_rcode(answer.rcode)} for {name}", method=method)
        found[kind] = answer.addresses
    missing = [NAMES[kind] for kind, addresses in found.items() if not addresses]
    if missing and (family is not None or len(missing) == 2):
        raise Problem("dns_no_data", f"{server}: {name} has no {' or '.join(missing)} address", method=method)
    return Finding(f"{name} is {', '.join(sum(found.values(), []))}", method, milliseconds(start))


def _rcode(code: int) -> str:
    names = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
    return names.get(code, f"code {code}")


def check_server_hijack(server: Endpoint, domain: str, deadline: Deadline) -> Finding:
    """Whether a server invents an address for a name that cannot exist."""
    name = f"{secrets.token_hex(10)}.{domain}"
    answer, method = _ask_or_problem(server, name, A, deadline)
    if answer.addresses:
        text = f"{server} says that {name} is {', '.join(answer.addresses)}"
        raise Problem("dns_hijack", text, method=method)
    if answer.rcode not in (0, 3):
        error = RCODES.get(answer.rcode, "dns_server_failure")
        raise Problem(error, f"{server} answers {_rcode(answer.rcode)} for {name}", status="warn", method=method)
    return Finding(f"no address for {name}", method)


def check_resolver(name: str, family: str | None, deadline: Deadline) -> Finding:
    """Whether programs on this machine can resolve the name."""
    start = time.monotonic()
    found: list[str] = []
    for each in [None] if family is None else ["ipv4", "ipv6"] if family == "dual" else [family]:
        found += [target[0] for _kind, target in resolve(name, 0, deadline, FAMILIES.get(each or "", 0))]
    text = f"{name} is {', '.join(dict.fromkeys(found))}"
    suffix = _search_suffix(name)
    if suffix:
        raise Problem("dns_search_domain", f"{text}, found as {name}.{suffix}", status="warn", method="getaddrinfo")
    return Finding(text, "getaddrinfo", milliseconds(start))


def _search_suffix(name: str) -> str:
    """The search domain that was appended to a full name before it was found; empty if none was."""
    if name.endswith(".") or "." not in name or address(name) is not None:
        return ""
    try:
        canonical = socket.getaddrinfo(name, 0, 0, socket.SOCK_STREAM, 0, socket.AI_CANONNAME)[0][3]
    except OSError:
        return ""
    return next((each for each in resolv_conf("search") if canonical.lower() == f"{name}.{each}".lower()), "")


def check_resolver_hijack(domain: str, deadline: Deadline) -> Finding:
    name = f"{secrets.token_hex(10)}.{domain}."
    try:
        found = resolve(name, 0, deadline)
    except Problem as exc:
        if exc.error_class in ("dns_nxdomain", "dns_no_data"):
            return Finding(f"no address for {name}", "getaddrinfo")
        raise
    text = f"the resolver says that {name} is {', '.join(target[0] for _kind, target in found)}"
    raise Problem("dns_hijack", text, method="getaddrinfo")


def resolv_conf(keyword: str, path: str = "/etc/resolv.conf") -> list[str]:
    """The values of a keyword (the last line of `search` counts, all of `nameserver`)."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = [words[1:] for words in map(str.split, lines) if len(words) > 1 and words[0] == keyword]
    return found[-1] if found and keyword == "search" else [words[0] for words in found]


def configured_servers() -> list[Endpoint]:
    """The machine's name servers: those of resolv.conf, and those behind systemd-resolved's stub."""
    found = resolv_conf("nameserver")
    if any(each.startswith("127.0.0.5") for each in found) and os.path.exists(RESOLVED):
        found += resolv_conf("nameserver", RESOLVED)
    return [Endpoint(each, 53) for each in dict.fromkeys(found) if address(each) is not None]


def no_server(_deadline: Deadline) -> t.NoReturn:
    raise Problem("dns_no_server", "/etc/resolv.conf names no server")
