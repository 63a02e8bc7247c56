# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""The largest packet that a path carries: connections open with small packets and hang with large ones."""

from __future__ import annotations

import fcntl
import socket
import struct
import time

from ansible_collections.goldsmith.images.plugins.module_utils._net_icmp import echo
from ansible_collections.goldsmith.images.plugins.module_utils._net_link import ip
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    Deadline,
    Finding,
    Problem,
    milliseconds,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_socket import (
    SocketAddress,
    connect,
    problem_of,
    resolve,
    send,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_targets import Endpoint

#: What real links have: jumbo frames of EC2 and of Ethernet, PPPoE, GRE, VXLAN, WireGuard, IPv6's and IPv4's minimum.
COMMON = (9001, 9000, 8951, 1500, 1492, 1480, 1476, 1460, 1450, 1440, 1420, 1400, 1380, 1360, 1320, 1280)
SMALLEST = {socket.AF_INET: 576, socket.AF_INET6: 1280}
IP_MTU, IPV6_MTU = 14, 24
PROTOCOL_OF = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
SIOCOUTQ = 0x5411  # bytes in the send queue that the other side has not acknowledged
WAIT = 2.0


def local_mtu(family: int, target: SocketAddress, deadline: Deadline) -> int:
    """The MTU of the interface that leads there. Nothing is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((target[0], 9, *target[2:]))
        try:
            # Not the socket's own: that is what the kernel remembers of the path, and hides what is to be found.
            route = ip(deadline, "route", "get", target[0])[0]
            return int(ip(deadline, "link", "show", "dev", route["dev"])[0]["mtu"])
        except Problem:
            option = IP_MTU if family == socket.AF_INET else IPV6_MTU
            return sock.getsockopt(PROTOCOL_OF[socket.AddressFamily(family)], option)


def check_mtu(where: Endpoint, by_tcp: bool, wanted: int | None, family: int, deadline: Deadline) -> Finding:
    """Whether the path carries packets of the wanted size, or else as large as this machine will send."""
    kind, target = resolve(where.host, where.port, deadline, family)[0]
    try:
        local = local_mtu(kind, target, deadline)
    except OSError as exc:
        raise problem_of(exc, target[0], "mtu") from exc
    # The loopback interface's 65536 is more than an IP packet can have.
    size = min(wanted or local, 65535)
    if size > local:
        raise Problem("mtu_small", f"this machine's own MTU towards {target[0]} is {local}, wanted {size}", method="ip")
    start = time.monotonic()
    smallest = SMALLEST[socket.AddressFamily(kind)]
    sizes = sorted({smallest, size, *(each for each in COMMON if smallest < each < size)})
    answers = echo(kind, target, sizes, min(WAIT, deadline.left() / 2))
    if answers is None or not answers.rtt_ms:
        if by_tcp:
            return by_payload(where, size, family, deadline)
        if answers is not None and answers.refusal:
            raise Problem(answers.refusal, f"{target[0]} is not reachable", method=answers.method)
        why = "ICMP is not permitted here" if answers is None else "no answer to ICMP"
        raise Problem("mtu_unknown", f"{target[0]}: {why}", status="warn", method=answers.method if answers else None)
    best = max(answers.rtt_ms)
    detail = f"{target[0]}: packets of {best} bytes arrive"
    if best >= size:
        return Finding(detail, answers.method, milliseconds(start))
    detail += f", of {min(each for each in sizes if each > best)} not (this machine sends up to {local})"
    if not answers.too_big:
        raise Problem("mtu_black_hole", detail + ", and nobody says so", method=answers.method)
    raise Problem("mtu_small", detail, status="fail" if wanted else "warn", method=answers.method)


def by_payload(where: Endpoint, size: int, family: int, deadline: Deadline) -> Finding:
    """Send three full segments over TCP and see whether the other side's kernel acknowledges them."""
    start = time.monotonic()
    with connect(where, deadline, family) as sock:
        small = f"HEAD / HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n".encode()
        send(sock, small + b"X-Padding: " + b"." * (3 * size) + b"\r\n\r\n", deadline)
        segment = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        while struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, b"\0" * 4))[0] > 0:
            if deadline.remaining() < 0.05:
                raise Problem(
                    "mtu_black_hole",
                    f"{where}: the connection opens, but full segments ({segment} bytes) are not acknowledged",
                    method="tcp_payload",
                )
            time.sleep(0.02)
    return Finding(f"{where}: full segments ({segment} bytes) are acknowledged", "tcp_payload", milliseconds(start))
