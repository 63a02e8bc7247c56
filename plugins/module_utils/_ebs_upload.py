# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""A raw disk becomes an EBS snapshot through the EBS direct APIs: only the blocks that hold data, several at a time.

A state file keeps the snapshot and the blocks that it has, so that an interrupted upload goes on where it was.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import threading
import time
import typing as t
import uuid
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._disk import next_data

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GIB = 1024**3
#: Bytes of a block; the EBS direct APIs know no other size.
BLOCK = 512 * 1024
#: Minutes after the last block until EBS gives up a snapshot: an interrupted upload can go on for so long.
PENDING_MINUTES = 4320
#: Seconds between attempts to send a block to a snapshot that EBS does not know (yet).
UNKNOWN_SNAPSHOT_WAITS = (1, 2, 4, 8, 16)


def data_blocks(disk: Path) -> list[int]:
    """The numbers of the blocks that are not all zero, ascending: a new snapshot reads as zeros everywhere else."""
    found: list[int] = []
    with disk.open("rb", buffering=0) as file:
        end = 0
        while (start := next_data(file, end)) is not None:
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            for number in range(start // BLOCK, -(-end // BLOCK)):
                if number not in found[-1:] and read_block(file.fileno(), number).strip(b"\0"):
                    found.append(number)
    return found


def read_block(descriptor: int, number: int) -> bytes:
    """A block, filled up with zeros where the disk ends within it."""
    return os.pread(descriptor, BLOCK, number * BLOCK).ljust(BLOCK, b"\0")


def volume_gibibytes(disk: Path) -> int:
    """The size of the volume that the disk fits on; EBS counts in GiB."""
    return -(-disk.stat().st_size // GIB)


@dataclasses.dataclass
class State:
    """Which blocks a snapshot has already, kept in a file of JSON lines: first the snapshot, then each block."""

    path: Path
    #: What the snapshot is made of and for; a file that says something else counts as none.
    identity: dict[str, t.Any]
    snapshot_id: str = ""
    #: Makes StartSnapshot return the same snapshot again.
    token: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    digests: dict[int, bytes] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, identity: dict[str, t.Any]) -> State:
        """Read the state of an interrupted upload, as far as it can be read; what is missing is sent again."""
        state = cls(path, identity)
        # The last line of a machine that went down may be half a line.
        with contextlib.suppress(FileNotFoundError, IndexError, KeyError, TypeError, ValueError):
            head, *blocks = path.read_text(encoding="utf-8").splitlines()
            if json.loads(head)["identity"] == identity:
                state.snapshot_id, state.token = json.loads(head)["snapshot_id"], json.loads(head)["token"]
                for line in blocks:
                    number, digest = json.loads(line)
                    state.digests[number] = bytes.fromhex(digest)
        return state

    def forget(self) -> None:
        """Begin anew: the snapshot is no more."""
        self.snapshot_id, self.token, self.digests = "", uuid.uuid4().hex, {}

    def save(self) -> None:
        """Write the file anew."""
        head = {"identity": self.identity, "snapshot_id": self.snapshot_id, "token": self.token}
        lines = [json.dumps(head)]
        lines += [self.line(number) for number in self.digests]
        new = self.path.with_name(f"{self.path.name}.new")
        with new.open("w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def line(self, number: int) -> str:
        """The line of a block."""
        return json.dumps([number, self.digests[number].hex()])

    def checksum(self) -> str:
        """What CompleteSnapshot compares: SHA-256 over the SHA-256 digests of the blocks in ascending order."""
        return encode(hashlib.sha256(b"".join(self.digests[number] for number in sorted(self.digests))).digest())


def encode(digest: bytes) -> str:
    """A digest as the EBS direct APIs write it."""
    return base64.b64encode(digest).decode("ascii")


def upload(
    client: t.Any,
    disk: Path,
    blocks: Iterable[int],
    state: State,
    parallel: int,
    progress: Callable[[int], None] = lambda sent: None,
) -> int:
    """Send the blocks that the snapshot does not have yet; returns how many bytes were sent.

    `client` is a boto3 client of `ebs`; the first block that it cannot send ends the upload with its exception.
    `progress` is told the bytes sent so far, by one thread at a time.
    """
    missing = iter([number for number in blocks if number not in state.digests])
    lock = threading.Lock()
    failed = threading.Event()
    sent = 0

    def work(descriptor: int, record: t.IO[str]) -> None:
        nonlocal sent
        while not failed.is_set():
            with lock:
                number = next(missing, None)
            if number is None:
                return
            try:
                digest = put(client, state.snapshot_id, number, read_block(descriptor, number))
                with lock:
                    state.digests[number] = digest
                    record.write(f"{state.line(number)}\n")
                    sent += BLOCK
                    progress(sent)
            except BaseException:
                failed.set()
                raise

    state.save()
    with disk.open("rb") as file, state.path.open("a", encoding="utf-8", buffering=1) as record:
        with ThreadPoolExecutor(parallel) as pool:
            workers = [pool.submit(work, file.fileno(), record) for _number in range(parallel)]
            try:
                wait(workers, return_when=FIRST_EXCEPTION)
            finally:
                failed.set()
        for worker in workers:
            worker.result()
    return sent


def put(client: t.Any, snapshot_id: str, number: int, data: bytes) -> bytes:
    """Send one block; returns its SHA-256 digest. A snapshot that was just started may not be known everywhere yet."""
    digest = hashlib.sha256(data).digest()
    for wait_seconds in (*UNKNOWN_SNAPSHOT_WAITS, None):
        try:
            client.put_snapshot_block(
                SnapshotId=snapshot_id, BlockIndex=number, BlockData=data, DataLength=BLOCK,
                Checksum=encode(digest), ChecksumAlgorithm="SHA256",
            )  # fmt: skip
            break
        except client.exceptions.ResourceNotFoundException:
            if wait_seconds is None:
                raise
            time.sleep(wait_seconds)
    return digest
