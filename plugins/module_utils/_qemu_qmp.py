# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Talk to a running QEMU through its monitor (QMP), with a deadline on everything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import traceback
import typing as t
from pathlib import Path

try:
    from qemu.qmp import ExecuteError, QMPClient, QMPError
except ImportError:
    HAS_QMP = False
    QMP_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    HAS_QMP = True
    QMP_IMPORT_ERROR = None

from ansible_collections.goldsmith.images.plugins.module_utils._qemu_command import (
    DISK_NODE,
    QMP_SOCKET,
    SCREENSHOT,
    Forward,
)

ANSWER_TIMEOUT = 15.0
REFUSED_TIMEOUT = 1.0
MIGRATING = ("setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug")

Result = t.TypeVar("Result")


class MonitorError(Exception):
    """QEMU refused a command, or does not answer."""


class Monitor:
    """An open connection; only valid inside the coroutine that ``session`` runs."""

    def __init__(self, client: t.Any) -> None:
        self._client = client

    async def execute(self, command: str, **arguments: t.Any) -> t.Any:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return await asyncio.wait_for(self._client.execute(command, named or None), ANSWER_TIMEOUT)
        except ExecuteError as exc:
            raise MonitorError(f"{command}: {exc}") from exc
        except (QMPError, asyncio.TimeoutError) as exc:  # QEMU has ended, is about to, or hangs
            raise MonitorError(f"{command}: QEMU did not answer") from exc

    async def quit(self) -> None:
        # QEMU may hang up before its answer has arrived.
        with contextlib.suppress(MonitorError, QMPError, OSError, EOFError):
            await self.execute("quit")

    async def qemu_version(self) -> str:
        version = (await self.execute("query-version"))["qemu"]
        return f"{version['major']}.{version['minor']}.{version['micro']}"

    async def forwards(self) -> list[Forward]:
        """The ports that QEMU's user-mode network listens on."""
        return parse_forwards(await self.execute("human-monitor-command", command_line="info usernet"))

    async def screenshot(self) -> None:
        await self.execute("screendump", filename=SCREENSHOT, format="png")

    async def snapshots(self) -> list[str]:
        """Names of the snapshots in the first disk."""
        for node, image in (await self._disks()).items():
            if node == DISK_NODE:
                return [found["name"] for found in image.get("snapshots", [])]
        return []

    async def _disks(self) -> dict[str, t.Any]:
        """The disks that hold a part of a snapshot: name of the node -> what QEMU knows of the image."""
        blocks = [block["inserted"] for block in await self.execute("query-block") if "inserted" in block]
        return {
            block["node-name"]: block["image"]
            for block in blocks
            if re.fullmatch(rf"{DISK_NODE}\d?", block["node-name"])
        }

    async def save(self, name: str, deadline: float) -> None:
        """Save the state of a paused VM, replacing an older snapshot of the same name."""
        await self.settle_jobs(deadline)
        if name in await self.snapshots():
            await self._job("snapshot-delete", deadline, tag=name, devices=list(await self._disks()))
        await self._job("snapshot-save", deadline, tag=name, vmstate=DISK_NODE, devices=list(await self._disks()))

    async def load(self, name: str, deadline: float) -> None:
        """Restore the state of a VM that was started paused."""
        await self._job("snapshot-load", deadline, tag=name, vmstate=DISK_NODE, devices=list(await self._disks()))

    async def save_template(self, path: str, deadline: float) -> None:
        """Save what a paused VM has beside disks and memory; its memory is a file already."""
        await self.settle_jobs(deadline)
        await self._ignore_shared_memory(True)
        await self.execute("migrate", uri=f"exec:cat > {shlex.quote(path)}")
        await self._wait_for_migration(deadline)

    async def load_template(self, path: str, deadline: float) -> None:
        """Restore what ``save_template`` saved into a VM that was started for it and has that memory."""
        await self._ignore_shared_memory(True)
        await self.execute("migrate-incoming", uri=f"exec:cat {shlex.quote(path)}")
        await self._wait_for_migration(deadline)
        await self._ignore_shared_memory(False)

    async def _ignore_shared_memory(self, state: bool) -> None:
        capability = {"capability": "x-ignore-shared", "state": state}
        await self.execute("migrate-set-capabilities", capabilities=[capability])

    async def _wait_for_migration(self, deadline: float, begun: bool = True) -> None:
        """Wait for its end. Of one that comes in QEMU says nothing before the first bytes are there."""
        underway = (*MIGRATING, "none") if begun else MIGRATING
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        while True:
            found = await self.execute("query-migrate")
            if found.get("status", "none") not in underway:
                break
            if loop.time() > end:
                raise MonitorError(f"the VM's state is not transferred after {deadline:.0f} s")
            await asyncio.sleep(0.01)
        if found.get("status") in ("failed", "cancelled"):
            raise MonitorError(f"the VM's state was not transferred: {found.get('error-desc', found['status'])}")

    async def settle_jobs(self, deadline: float) -> None:
        """Wait for jobs that an interrupted run left behind."""
        with contextlib.suppress(MonitorError):
            await self._wait_for_migration(deadline, begun=False)
        for job in await self.execute("query-jobs"):
            with contextlib.suppress(MonitorError):
                await self._wait_for_job(job["id"], deadline)

    async def _job(self, command: str, deadline: float, **arguments: t.Any) -> None:
        await self.execute(command, job_id=command, **arguments)
        await self._wait_for_job(command, deadline)

    async def _wait_for_job(self, job_id: str, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        while True:
            job = next(job for job in await self.execute("query-jobs") if job["id"] == job_id)
            if job["status"] == "concluded":
                break
            if loop.time() > end:
                raise MonitorError(f"{job_id} has not ended after {deadline:.0f} s")
            await asyncio.sleep(0.02)
        await self.execute("job-dismiss", id=job_id)
        if job.get("error"):
            raise MonitorError(f"{job_id}: {job['error']}")


def session(directory: Path, work: t.Callable[[Monitor], t.Awaitable[Result]]) -> Result:
    """Connect, do the work, disconnect."""
    return asyncio.run(_session(directory, work))


async def _session(directory: Path, work: t.Callable[[Monitor], t.Awaitable[Result]]) -> Result:
    client = QMPClient("goldsmith.images")
    client.logger.disabled = True
    # The address of a UNIX socket is limited to 107 bytes; this one is short wherever the directory lies.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            await asyncio.wait_for(_connect(client, f"/proc/self/fd/{descriptor}/{QMP_SOCKET}"), ANSWER_TIMEOUT)
        except asyncio.TimeoutError as exc:
            raise MonitorError(f"QEMU's monitor {directory / QMP_SOCKET} does not answer") from exc
        except (QMPError, OSError) as exc:
            raise MonitorError(f"cannot connect to QEMU's monitor {directory / QMP_SOCKET}: {exc}") from exc
        try:
            return await work(Monitor(client))
        finally:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
    finally:
        os.close(descriptor)


async def _connect(client: t.Any, address: str) -> None:
    # Between QEMU's bind() and its listen() the socket is there and refuses: seen once in twenty starts.
    loop = asyncio.get_running_loop()
    end = loop.time() + REFUSED_TIMEOUT
    while True:
        try:
            return await client.connect(address)
        except QMPError as exc:
            if not isinstance(exc.__cause__, ConnectionRefusedError) or loop.time() > end:
                raise
        await asyncio.sleep(0.01)


def parse_forwards(text: str) -> list[Forward]:
    """From ``info usernet``: protocol[state], descriptor, source address and port, destination address and port."""
    found = re.findall(r"(TCP|UDP)\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+(\d+)\b", text)
    return [Forward(int(guest), int(host), protocol.lower()) for protocol, host, guest in found]
