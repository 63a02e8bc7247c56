# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that misbehave in ways that no real program can be configured to, and EC2's metadata service.

``python network_servers.py KIND ADDRESS PORT [VALUE]`` serves until it is ended.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import struct
import sys
import threading
import time


def udp(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


def sntp(address: str, port: int, ahead: str) -> None:
    """A time server whose clock is ahead of ours by some seconds."""
    sock = udp(address, port)
    while True:
        data, peer = sock.recvfrom(1024)
        now = time.time() + float(ahead) + 2208988800
        stamp = struct.pack("!II", int(now), int(now % 1 * 2**32))
        sock.sendto(bytes([0x24, 2, 6, 0xEC]) + bytes(12) + stamp + data[40:48] + stamp + stamp, peer)


def dns(address: str, port: int, behaviour: str) -> None:
    """servfail: always that code. garbage: bytes that are no DNS. silent: no answer."""
    sock = udp(address, port)
    while True:
        data, peer = sock.recvfrom(4096)
        if behaviour == "servfail":
            sock.sendto(data[:2] + b"\x81\x82" + data[4:], peer)
        elif behaviour == "garbage":
            sock.sendto(data[:2] + b"\x81\x80" + b"\xff" * 20, peer)


class Threads(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def tcp(address: str, port: int, behaviour: str) -> None:
    """Servers of TCP that do not end: see `behave`."""
    gate = threading.Barrier(int(behaviour.partition(":")[2] or 1))

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError, threading.BrokenBarrierError):
                behave(self.request, behaviour.partition(":")[0], gate)

    with Threads((address, port), Handler) as server:
        server.serve_forever()


def behave(sock: socket.socket, behaviour: str, gate: threading.Barrier) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    if behaviour == "silent":
        sock.recv(65536)
        time.sleep(60)
    elif behaviour == "endless_head":
        while True:
            sock.sendall(b"X-Field: " + b"x" * 65536 + b"\r\n")
    elif behaviour == "endless_body":
        sock.sendall(head + b"\r\n")
        while True:
            sock.sendall(b"x" * 65536)
    elif behaviour == "endless_chunks":
        sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            sock.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    elif behaviour == "drip":
        for byte in head + b"X-Slow: " + b"x" * 1000:
            sock.sendall(bytes([byte]))
            time.sleep(0.2)
    elif behaviour == "gate":
        # Answers nobody before as many clients as the gate is wide are here at the same time.
        sock.recv(65536)
        gate.wait(20)
        sock.sendall(head + b"Content-Length: 2\r\n\r\nok")
    elif behaviour == "not_http":
        sock.sendall(b"SSH-2.0-server\r\n")
        time.sleep(60)


def imds(address: str, port: int, behaviour: str) -> None:
    """v2: a token is needed. v1: it is not. disabled: 403."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            fine = self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            self.answer(403 if behaviour == "disabled" else 200 if fine else 400, "AQAEAToken==")

        def do_GET(self) -> None:
            token = self.headers.get("X-aws-ec2-metadata-token")
            if behaviour == "disabled":
                self.answer(403, "")
            elif token != "AQAEAToken==" and (behaviour == "v2" or token):
                self.answer(401, "")
            else:
                self.answer(200, "i-0123456789abcdef0" if self.path.endswith("/instance-id") else "instance-id\n")

        def answer(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

    with http.server.ThreadingHTTPServer((address, port), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    kind, where, number, value = sys.argv[1:]
    {"sntp": sntp, "dns": dns, "tcp": tcp, "imds": imds}[kind](where, int(number), value)
