# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real processes under supervision: nothing of a run survives it, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _process
from ansible_collections.goldsmith.images.plugins.module_utils._process import Outcome, Supervisor, command_of, members

# Ignores SIGTERM, and has a child that has left the group and lost its parent.
STUBBORN = "trap '' TERM; setsid sleep 300 & echo ready; while :; do sleep 0.1; done"


def run(script: str, seconds: float | None = None, grace: float = 0.5) -> tuple[Outcome, list[tuple[str, str]], str]:
    lines: list[tuple[str, str]] = []
    with Supervisor(grace, watch_controller=False) as supervisor:
        outcome = supervisor.run(
            ["/bin/sh", "-c", script],
            cwd="/",
            env=dict(os.environ),
            on_line=lambda name, line: lines.append((name, line)),
            deadline=time.monotonic() + seconds if seconds else None,
        )
    return outcome, lines, supervisor.token


def test_lines_of_both_streams_and_exit_code() -> None:
    outcome, lines, unused = run("echo one; echo two >&2; printf 'no newline'; exit 7")
    assert outcome.rc == 7
    assert not outcome.cancelled and not outcome.timed_out and not outcome.killed and not outcome.leftovers
    assert [line for name, line in lines if name == "stdout"] == ["one", "no newline"]
    assert ("stderr", "two") in lines


def test_line_without_a_limit() -> None:
    _outcome, lines, _argv = run("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end")
    assert [len(line) for name, line in lines] == [3000000, 3]


def test_lines_arrive_while_the_program_runs() -> None:
    times: list[float] = []
    with Supervisor(1, watch_controller=False) as supervisor:
        supervisor.run(
            ["/bin/sh", "-c", "echo a; sleep 0.6; echo b"],
            cwd="/",
            env=dict(os.environ),
            on_line=lambda name, line: times.append(time.monotonic()),
        )
    assert times[1] - times[0] > 0.4


def test_command_of_the_machine_and_not_of_a_tool_beside_it() -> None:
    found: list[list[str]] = []

    def look(_name: str, _line: str) -> None:
        deadline = time.monotonic() + 5
        while not found or (not found[0] and time.monotonic() < deadline):
            found[:] = [command_of(supervisor.token, "qemu-system")]

    script = "(exec -a /bin/qemu-img sleep 5 6 7 8) & echo ready; exec -a /bin/qemu-system-x sleep 5 6"
    with Supervisor(0.1, watch_controller=False) as supervisor:
        command = ["/bin/bash", "-c", script]
        supervisor.run(command, cwd="/", env=dict(os.environ), on_line=look, deadline=time.monotonic() + 1)
    assert found == [["/bin/qemu-system-x", "5", "6"]]


def test_timeout_ends_even_what_has_left_the_group() -> None:
    outcome, unused, token = run(STUBBORN, seconds=0.5, grace=0.5)
    assert outcome.timed_out
    assert outcome.killed
    assert outcome.rc == -signal.SIGKILL
    assert members(token) == []


def test_cooperative_program_is_not_killed() -> None:
    outcome, lines, unused = run("trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done", seconds=0.5, grace=5)
    assert (outcome.rc, outcome.timed_out, outcome.killed) == (3, True, False)
    assert ("stdout", "bye") in lines


def test_daemon_that_outlives_the_program_is_ended() -> None:
    outcome, unused, token = run("setsid sleep 300 & sleep 0.2")
    assert (outcome.rc, outcome.leftovers) == (0, 1)
    assert members(token) == []


def test_other_processes_are_left_alone() -> None:
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as bystander:
        run(STUBBORN, seconds=0.3, grace=0.2)
        assert bystander.poll() is None
        bystander.kill()


def test_failing_callback_leaves_no_process() -> None:
    def fail(name: str, line: str) -> None:
        raise ZeroDivisionError

    with Supervisor(1, watch_controller=False) as supervisor, pytest.raises(ZeroDivisionError):
        supervisor.run(["/bin/sh", "-c", STUBBORN], cwd="/", env=dict(os.environ), on_line=fail)
    assert members(supervisor.token) == []


def test_program_that_does_not_exist() -> None:
    with Supervisor(1, watch_controller=False) as supervisor, pytest.raises(FileNotFoundError):
        supervisor.run(["/nonexistent"], cwd="/", env={}, on_line=lambda name, line: None)


def test_signal_handlers_and_descriptors_are_given_back() -> None:
    before = (signal.getsignal(signal.SIGTERM), len(os.listdir("/proc/self/fd")))
    for _unused in range(3):
        run("true")
    assert (signal.getsignal(signal.SIGTERM), len(os.listdir("/proc/self/fd"))) == before


SUPERVISED = f"""
import os, sys
sys.path.insert(0, {str(Path(_process.__file__).parents[5])!r})
from ansible_collections.goldsmith.images.plugins.module_utils import _process
with _process.Supervisor(1.0) as supervisor:
    supervisor.remove_at_exit(sys.argv[1])
    print(supervisor.token, flush=True)
    outcome = supervisor.run(["/bin/sh", "-c", sys.argv[2], sys.argv[1]], cwd="/", env=dict(os.environ),
                             on_line=lambda name, line: None)
sys.stderr.write(repr(outcome))
"""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL", "reader gone", "parent gone"])
def test_nothing_survives_the_end_of_the_supervisor(tmp_path: Path, how: str) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret").touch()
    script = tmp_path / "supervised.py"
    script.write_text(textwrap.dedent(SUPERVISED))
    command = [sys.executable, str(script), str(private), STUBBORN]
    if how == "parent gone":
        command = ["/bin/sh", "-c", '"$@"; exit $?', "sh", *command]
    errors = tmp_path / "errors"
    with errors.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process:
        assert process.stdout
        token = process.stdout.readline().decode().strip()
        deadline = time.monotonic() + 10
        while len(members(token)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(members(token)) >= 2
        if how == "reader gone":
            process.stdout.close()
        else:
            process.send_signal(signal.SIGKILL if how == "parent gone" else signal.Signals[how])
        while (members(token) or private.exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert members(token) == []
    assert not private.exists()
    reasons = {"reader gone": "controller connection lost", "parent gone": "parent process ended", "SIGKILL": ""}
    # Its own last words come after the clean-up, and with its parent gone nobody can wait for its end.
    while reasons.get(how, how) not in errors.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert reasons.get(how, how) in errors.read_text()


# As Packer does: it says that it has been told to end, and then removes its machine.
TALKATIVE = """trap 'echo cancelled; echo cleaning up >&2; touch "$0.cleaned"; exit' TERM
while :; do sleep 0.1; done"""


def test_program_of_a_killed_supervisor_can_still_speak_and_clean_up(tmp_path: Path) -> None:
    script = tmp_path / "supervised.py"
    script.write_text(textwrap.dedent(SUPERVISED))
    command = [sys.executable, str(script), str(tmp_path / "private"), TALKATIVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        token = process.stdout.readline().decode().strip()
        deadline = time.monotonic() + 10
        while len(members(token)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        while members(token) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert (tmp_path / "private.cleaned").exists()
