# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""ICMP echo, by whatever way this process may use, and what the answers say about the path's MTU."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    Deadline,
    Finding,
    Problem,
    milliseconds,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_socket import (
    SocketAddress,
    check_tcp,
    error_class,
    resolve,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_targets import Endpoint

# From linux/in.h and linux/in6.h: the module socket does not name them all.
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
IP_RECVERR, IPV6_RECVERR = 11, 25
PMTUDISC_PROBE = 3  # never fragment, and do not believe what is remembered of the path

ECHO = {socket.AF_INET: (8, 0), socket.AF_INET6: (128, 129)}  # request, reply
PROTOCOL = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
#: Bytes of IP and ICMP headers around the payload of an echo.
OVERHEAD = {socket.AF_INET: 28, socket.AF_INET6: 48}
#: An unanswered request is sent again: one lost packet is no finding.
RESEND = 0.5


@dataclass
class Answers:
    """What came back of a round of echo requests."""

    method: str
    rtt_ms: dict[int, float]
    """By the size of the whole packet."""
    too_big: bool = False
    """Somebody said that a packet was too big for the path."""
    refusal: str | None = None
    """Error class of another answer than an echo reply."""


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def request(family: int, payload: bytes) -> bytes:
    kind = ECHO[socket.AddressFamily(family)][0]
    # The identifier is only for others on a raw socket: the payload tells ours.
    head = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, 1)
    return head[:2] + struct.pack("!H", checksum(head + payload)) + head[4:] + payload


def open_socket(family: int) -> tuple[socket.socket, str] | None:
    """An unprivileged ICMP socket if ping_group_range allows it, else a raw one, else None."""
    for kind, method in ((socket.SOCK_DGRAM, "icmp_dgram"), (socket.SOCK_RAW, "icmp_raw")):
        try:
            return socket.socket(family, kind, PROTOCOL[socket.AddressFamily(family)]), method
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EACCES, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
                raise
    return None


def echo(family: int, target: SocketAddress, sizes: t.Sequence[int], wait: float) -> Answers | None:
    """Send unfragmented echo requests of all sizes at once and collect the answers; None if no way is permitted."""
    opened = open_socket(family)
    if opened is None:
        program = shutil.which("ping", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
        return None if program is None else _echo_by_program(program, family, target, sizes, wait)
    sock, method = opened
    answers = Answers(method, {})
    with sock:
        level, discover, errors = (
            (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_RECVERR)
            if family == socket.AF_INET
            else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_RECVERR)
        )
        sock.setsockopt(level, discover, PMTUDISC_PROBE)
        try:
            sock.connect(target)
        except OSError as exc:
            answers.refusal = error_class(exc.errno)
            return answers
        # Not before: a raw socket without a peer is told of everybody's errors.
        sock.setsockopt(level, errors, 1)
        tokens = {os.urandom(12): size for size in sizes}
        sent: dict[int, float] = {}
        end = Deadline(wait)
        while len(answers.rtt_ms) < len(sizes) and not answers.refusal and end.remaining() > 0:
            _send_missing(sock, family, tokens, sent, answers)
            again = Deadline(min(RESEND, end.remaining()))
            while len(answers.rtt_ms) < len(sizes) and not answers.refusal and again.remaining() > 0:
                if select.select([sock], [], [], again.remaining())[0]:
                    _take_answer(sock, family, method, tokens, sent, answers)
    return answers


def _send_missing(
    sock: socket.socket, family: int, tokens: t.Mapping[bytes, int], sent: dict[int, float], answers: Answers
) -> None:
    for token, size in sorted(tokens.items(), key=lambda item: item[1]):
        if size in answers.rtt_ms:
            continue
        sent[size] = time.monotonic()
        payload = token.ljust(size - OVERHEAD[socket.AddressFamily(family)], b".")
        try:
            sock.send(request(family, payload))
        except OSError as exc:
            _take_error(exc.errno, answers)


def _take_answer(
    sock: socket.socket,
    family: int,
    method: str,
    tokens: t.Mapping[bytes, int],
    sent: t.Mapping[int, float],
    answers: Answers,
) -> None:
    try:
        data = sock.recv(65535, socket.MSG_DONTWAIT)
    except BlockingIOError:
        _take_queued_errors(sock, answers)
        return
    except OSError as exc:
        _take_error(exc.errno, answers)
        return
    if method == "icmp_raw" and family == socket.AF_INET:
        data = data[(data[0] & 0xF) * 4 :]
    size = tokens.get(data[8:20])
    if size is not None and data[0] == ECHO[socket.AddressFamily(family)][1] and size not in answers.rtt_ms:
        answers.rtt_ms[size] = milliseconds(sent[size])


def _take_queued_errors(sock: socket.socket, answers: Answers) -> None:
    """What routers and hosts said (struct sock_extended_err); the socket stays readable until it is taken."""
    try:
        _data, messages, _flags, _address = sock.recvmsg(65535, 1024, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    for _level, _kind, content in messages:
        _take_error(struct.unpack_from("I", content)[0], answers)


def _take_error(code: int | None, answers: Answers) -> None:
    if code == errno.EMSGSIZE:
        answers.too_big = True
    elif code:
        answers.refusal = error_class(code)


def _echo_by_program(program: str, family: int, target: SocketAddress, sizes: t.Sequence[int], wait: float) -> Answers:
    """By iputils' ping, which has the capability that this process lacks."""
    answers = Answers("ping", {})
    host = target[0]
    started = []
    for size in sizes:
        payload = str(size - OVERHEAD[socket.AddressFamily(family)])
        command = [program, "-n", "-c", "3", "-i", "0.3", "-W", "1", "-M", "do", "-s", payload, host]
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "LC_ALL": "C"}
            )
        except PermissionError:  # it has a capability that this process may not get
            return None
        started.append((size, process))
    end = Deadline(max(wait, 0.1))
    for size, process in started:
        try:
            text = process.communicate(timeout=end.remaining())[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            process.kill()
            text = process.communicate()[0].decode(errors="replace")
        found = re.search(r"time=([\d.]+) ms", text)
        if found:
            answers.rtt_ms[size] = float(found[1])
        answers.too_big = answers.too_big or re.search(r"Frag needed|too (big|long|large)", text, re.I) is not None
        if re.search("not permitted|Permission denied|missing cap_net_raw", text):
            return None
        if re.search("unreachable", text, re.I):
            answers.refusal = "host_unreachable"
    return answers


def check_icmp(host: str, tcp_port: int, family: int, deadline: Deadline) -> Finding:
    """Whether a host answers an echo; where ICMP is not permitted or not answered, whether it answers TCP."""
    kind, target = resolve(host, 0, deadline, family)[0]
    # Half of the time is for TCP, in case nothing comes back.
    answers = echo(kind, target, [OVERHEAD[socket.AddressFamily(kind)] + 32], deadline.left() / 2)
    if answers is not None and answers.rtt_ms:
        took = next(iter(answers.rtt_ms.values()))
        return Finding(f"{target[0]} answers", answers.method, took)
    refused = answers.refusal if answers is not None else None
    if refused in ("no_route", "host_unreachable", "local_firewall"):
        raise Problem(refused, f"{target[0]} is not reachable", method=answers.method if answers else None)
    why = "ICMP is not permitted here" if answers is None else f"no answer to ICMP ({answers.method})"
    start = time.monotonic()
    try:
        check_tcp(Endpoint(target[0], tcp_port), deadline)
        said = "accepts a connection"
    except Problem as exc:
        if exc.error_class != "refused":
            error = "icmp_not_permitted" if answers is None else "icmp_no_answer"
            raise Problem(error, f"{why}, and TCP port {tcp_port}: {exc.detail}", method="tcp") from exc
        said = "refuses a connection, so it is up"
    found = Finding(f"{why}; {target[0]} {said} on TCP port {tcp_port}", "tcp", milliseconds(start))
    if answers is None:
        return found
    raise Problem("icmp_no_answer", found.detail, status="warn", method="tcp")
