# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""The clock: what the kernel says of it, and what time servers say."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time

from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    Deadline,
    Finding,
    Problem,
    milliseconds,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_socket import problem_of, receive, resolve
from ansible_collections.goldsmith.images.plugins.module_utils._net_targets import Endpoint

NTP_EPOCH = 2208988800  # seconds from 1900 to 1970
TIME_ERROR = 5  # adjtimex: the clock is not synchronised
TIMESYNCD = "/run/systemd/timesync/synchronized"
RESEND = 1.0


def kernel_state() -> tuple[int, int]:
    """adjtimex(2): the clock's state, and the largest error it may have, in microseconds."""
    timex = (ctypes.c_long * 64)()  # struct timex; all zero asks and sets nothing
    state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    if state < 0:
        raise OSError(ctypes.get_errno(), "adjtimex failed")
    return state, timex[3]


def judge_kernel(state: int, max_error_us: int, timesyncd_was_synchronised: bool) -> str:
    """Every time daemon tells the kernel; systemd-timesyncd also leaves a file when it first was."""
    if state == TIME_ERROR:
        before = ", although systemd-timesyncd was once" if timesyncd_was_synchronised else ""
        raise Problem("unsynchronised", f"the kernel's clock is not synchronised{before}", method="adjtimex")
    return f"synchronised, to {max_error_us / 1e6:.3f} s at the worst"


def check_synchronised(_deadline: Deadline) -> Finding:
    return Finding(judge_kernel(*kernel_state(), os.path.exists(TIMESYNCD)), "adjtimex")


def _ntp(seconds: float) -> bytes:
    return struct.pack("!II", (int(seconds) + NTP_EPOCH) & 0xFFFFFFFF, int(seconds % 1 * 2**32))


def _unix(data: bytes) -> float:
    whole, fraction = struct.unpack("!II", data)
    # Era 1 begins in 2036: what would be before 1968 belongs there.
    return whole - NTP_EPOCH + (2**32 if whole < 2**31 else 0) + fraction / 2**32


def offset_of(data: bytes, sent: float, received: float, request: bytes) -> float:
    """Seconds that this machine's clock is behind the server's (RFC 5905)."""
    if len(data) < 48 or data[0] & 7 != 4 or data[24:32] != request[40:48]:
        raise ValueError("no answer to this request")
    if data[0] >> 6 == 3 or not 1 <= data[1] <= 15:
        code = data[12:16].decode("ascii", "replace").strip("\0") if data[1] == 0 else f"stratum {data[1]}"
        raise Problem("time_source", f"the server does not know the time itself ({code})", method="sntp")
    return ((_unix(data[32:40]) - sent) + (_unix(data[40:48]) - received)) / 2


def check_server(server: Endpoint, max_offset: float, family: int, deadline: Deadline) -> Finding:
    start = time.monotonic()
    kind, target = resolve(server.host, server.port, deadline, family)[0]
    deadline.waiting_for = ("timeout", f"the time server {server} has not answered")
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as sock:
            sock.connect(target)
            offset = _ask(sock, deadline)
    except OSError as exc:
        raise problem_of(exc, f"the time server {server}", "sntp") from exc
    text = f"this clock is {abs(offset):.3f} s {'behind' if offset > 0 else 'ahead of'} {server}"
    if abs(offset) > max_offset:
        raise Problem("clock_skew", f"{text}, allowed are {max_offset:g} s", method="sntp")
    return Finding(text, "sntp", milliseconds(start))


def _ask(sock: socket.socket, deadline: Deadline) -> float:
    while True:
        sent = time.time()
        request = bytes([0x23]) + bytes(39) + _ntp(sent)
        sock.send(request)
        again = Deadline(min(RESEND, deadline.left()))
        while again.remaining() > 0:
            try:
                data = receive(sock, again, 1024)
                return offset_of(data, sent, time.time(), request)
            except ValueError:
                continue
            except (TimeoutError, socket.timeout):
                break
