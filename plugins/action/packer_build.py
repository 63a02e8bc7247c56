# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run the module and show on the controller how far the build is."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shlex
import signal
import threading
import time
import typing as t
import uuid

from ansible import constants as C
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader
from ansible.utils.display import Display

display = Display()

LOCAL_INTERVAL = 0.5
REMOTE_INTERVAL = 2.0

Reader = t.Callable[[], t.Optional[str]]


def status_line(host: str, state: dict[str, t.Any], elapsed: float) -> str:
    """One line about a running build: host, elapsed time, phase, build, last message."""
    minutes, seconds = divmod(int(elapsed), 60)
    build = f" {state['build']}" if state.get("build") else ""
    last = f": {state['last']}" if state.get("last") else ""
    text = f"[{host}] {minutes}:{seconds:02d} {state.get('phase') or 'start'}{build}{last}"
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


def open_terminal() -> int | None:
    """The terminal that ansible-playbook writes to; None when there is none.

    A worker process is detached from it, so the parent's descriptor tells which it is.
    """
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/{os.getppid()}/fd/1")
        if re.match(r"/dev/(pts/\d+|tty\w*|console)$", path):
            # Without O_NOCTTY it would become the controlling terminal of this worker's session.
            return os.open(path, os.O_WRONLY | os.O_NOCTTY)
    return None


class Follower(threading.Thread):
    """Reads the module's progress file again and again, and shows what is new."""

    def __init__(self, host: str, read: Reader, interval: float, terminal: int | None) -> None:
        super().__init__(name="packer_build progress", daemon=True)
        self._host, self._read, self._interval, self._terminal = host, read, interval, terminal
        self._ended = threading.Event()
        self._shown = 0
        self._height = 0

    def __enter__(self) -> Follower:
        self.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._ended.set()
        # A poll over a dead connection must not keep the task from ending.
        self.join(timeout=10.0)
        if self._terminal is not None:
            self._write_terminal([])
            os.close(self._terminal)

    def run(self) -> None:
        # A signal that arrives in this thread would not wake the main one, and Ctrl-C would wait for the module's end.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        started = time.monotonic()
        state: dict[str, t.Any] = {}
        while not self._ended.wait(self._interval):
            with contextlib.suppress(Exception):
                state = json.loads(self._read() or "{}") or state
            if state:
                self._show(state, time.monotonic() - started)

    def _show(self, state: dict[str, t.Any], elapsed: float) -> None:
        if self._terminal is not None:
            builds = state.get("builds") or []
            self._write_terminal(
                [status_line(self._host, x, elapsed) for x in (builds if len(builds) > 1 else [state])]
            )
            return
        self.show_phases(state.get("phases", []), state.get("last", ""))

    def show_phases(self, phases: list[dict[str, t.Any]], last: str = "") -> None:
        """A plain line for each phase that was not shown yet."""
        if self._terminal is not None:
            return
        for phase in phases[self._shown :]:
            newest = phase is phases[-1]
            line = status_line(self._host, {**phase, "last": last if newest else ""}, phase["at"])
            # A callback that prints JSON owns the standard output.
            display.display(line, stderr="json" in str(C.DEFAULT_STDOUT_CALLBACK))
        self._shown = len(phases)

    def _write_terminal(self, lines: list[str]) -> None:
        """Put these lines in the place of those before; the cursor stays in the last one."""
        with contextlib.suppress(OSError):
            terminal = t.cast(int, self._terminal)
            size = os.get_terminal_size(terminal)
            width, height = (size.columns or 80) - 1, (size.lines or 24) - 1
            up = f"\x1b[{self._height - 1}A" if self._height > 1 else ""
            text = "\r\n".join(line[:width] for line in lines[-height:])
            os.write(terminal, f"{up}\r\x1b[J{text}".encode(errors="replace"))
            self._height = len(lines[-height:])


class ActionModule(ActionBase):
    """The module, with its progress shown while it runs."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        del tmp
        task_vars = task_vars or {}
        args = dict(self._task.args)
        wrap_async = bool(self._task.async_val) and not self._connection.has_native_async
        try:
            quiet = boolean(args.get("no_progress", False))
        except TypeError:
            quiet = True  # the module explains what is wrong with the value
        follower = None
        with contextlib.ExitStack() as stack:
            if not (quiet or wrap_async or self._task.check_mode):
                if not args.get("progress_path"):
                    args.update(progress_path=f"/tmp/.packer_build-{uuid.uuid4().hex}.json", progress_keep=False)
                if os.path.isabs(str(args["progress_path"])):
                    follower = stack.enter_context(self._follower(str(args["progress_path"]), task_vars))
            result.update(self._execute_module(module_args=args, task_vars=task_vars, wrap_async=wrap_async))
        if follower:
            # The last ones may have come and gone between two looks.
            follower.show_phases(result.get("phases") or [])
        if not wrap_async:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _is_pipelining_enabled(self, module_style: str, wrap_async: bool = False) -> bool:
        """Send the module through a pipe where that is possible: written to disk, it would carry the secrets.

        A worker that is killed by Ctrl-C does not remove its temporary directory.
        """
        possible = (
            module_style == "new"
            and not wrap_async
            and self._connection.has_pipelining
            and not self._connection.become
            and not C.DEFAULT_KEEP_REMOTE_FILES
        )
        return possible or super()._is_pipelining_enabled(module_style, wrap_async)

    def _follower(self, path: str, task_vars: dict[str, t.Any]) -> Follower:
        host = str(task_vars.get("inventory_hostname", ""))
        # Several hosts at once would overwrite each other's line.
        alone = len(task_vars.get("ansible_play_batch") or [host]) == 1
        terminal = open_terminal() if alone else None
        if self._connection.transport == "local" and not self._connection.become:

            def read() -> str | None:
                with open(path, encoding="utf-8") as stream:
                    return stream.read()

            return Follower(host, read, LOCAL_INTERVAL, terminal)
        return Follower(host, self._remote_reader(path), REMOTE_INTERVAL, terminal)

    def _remote_reader(self, path: str) -> Reader:
        """Reads through a connection of its own: the task's connection is busy running the module."""
        twin = copy.copy(self)
        connection = connection_loader.get(self._connection.ansible_name, self._play_context)
        connection.set_options(direct=self._connection.get_options())
        if self._connection.become:
            connection.set_become_plugin(self._connection.become)
        twin._connection = connection

        def read() -> str | None:
            done = twin._low_level_execute_command(f"cat {shlex.quote(path)}", sudoable=True)
            return done["stdout"] if done["rc"] == 0 else None

        return read
