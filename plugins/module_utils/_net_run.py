# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Run checks side by side under one deadline."""

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import threading
import time
import typing as t
from dataclasses import asdict

from ansible_collections.goldsmith.images.plugins.module_utils._net_hints import HINTS
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    STATUSES,
    Check,
    Deadline,
    Finding,
    Problem,
    Result,
    milliseconds,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_socket import problem_of


def run(checks: t.Sequence[Check], timeout: float, retries: int = 0, parallel: int = 64) -> list[Result]:
    """The results in the order of the checks, after *timeout* seconds at the latest.

    The threads are daemons: one that hangs in the C library's resolver is left behind and keeps nobody waiting.
    """
    whole = Deadline(timeout)
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()
    waits = [Deadline(timeout) for _check in checks]
    for number, wait in enumerate(waits):
        wait.waiting_for = ("timeout", "not begun: there are more checks than may run at the same time (parallel)")
        todo.put(number)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while whole.remaining() > 0:
                number = todo.get_nowait()
                done.put((number, _run_one(number, checks[number], retries, whole, timeout / (retries + 1), waits)))

    for _worker in range(min(parallel, len(checks))):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, Result] = {}
    while len(results) < len(checks):
        try:
            # A tenth of a second for those that end exactly at the deadline.
            number, result = done.get(timeout=whole.remaining() + 0.1)
        except queue.Empty:
            break
        results[number] = result
    return [
        results.get(number) or _result(check, Problem(*waits[number].waiting_for), timeout * 1000, 1)
        for number, check in enumerate(checks)
    ]


def _run_one(number: int, check: Check, retries: int, whole: Deadline, share: float, waits: list[Deadline]) -> Result:
    """As many attempts as there may be, spread evenly: one that fails at once is not repeated at once."""
    attempt = 0
    while True:
        attempt += 1
        start = time.monotonic()
        waits[number] = Deadline(min(share, whole.remaining()))
        result = _result(check, _attempt(check, waits[number]), milliseconds(start), attempt)
        if result.status in ("pass", "skip") or attempt > retries:
            return result
        time.sleep(waits[number].remaining())
        if whole.remaining() <= 0:
            return result


def run_here(check: Check, timeout: float) -> Result:
    """One check in this thread, which trusts it to keep the deadline."""
    start = time.monotonic()
    return _result(check, _attempt(check, Deadline(timeout)), milliseconds(start), 1)


def _attempt(check: Check, deadline: Deadline) -> Finding | Problem:
    try:
        return check.look(deadline)
    except Problem as exc:
        return exc
    except (TimeoutError, socket.timeout, subprocess.TimeoutExpired):
        return Problem(*deadline.waiting_for)
    except OSError as exc:
        return problem_of(exc, check.target, "")
    except Exception as exc:  # one broken check must not take the results of the others away
        return Problem("internal", f"{type(exc).__name__}: {exc}")


def _result(check: Check, outcome: Finding | Problem, elapsed_ms: float, attempts: int) -> Result:
    if isinstance(outcome, Finding):
        latency = elapsed_ms if outcome.latency_ms is None else outcome.latency_ms
        return Result(check.name, check.target, "pass", outcome.method, latency, None, outcome.detail, "", attempts)
    status = "warn" if outcome.status == "fail" and not check.required else outcome.status
    return Result(
        check.name,
        check.target,
        status,
        outcome.method or None,
        elapsed_ms,
        outcome.error_class,
        outcome.detail,
        outcome.hint or HINTS[outcome.error_class],
        attempts,
    )


def report(results: t.Sequence[Result]) -> dict[str, t.Any]:
    """The return values of the module."""
    summary = {status: sum(result.status == status for result in results) for status in STATUSES}
    return {
        "ok": summary["fail"] == 0,
        "degraded": summary["warn"] > 0,
        "checks": [asdict(result) for result in results],
        "summary": summary,
    }


def line(result: t.Mapping[str, t.Any]) -> str:
    """One result for people: a line, and what to look at on a second one."""
    took = "" if result["latency_ms"] is None else f" ({result['latency_ms']:.0f} ms)"
    kind = f" {result['error_class']}:" if result["error_class"] else ""
    text = f"{result['status'].upper():4} {result['name']} {result['target']}{took}{kind} {result['detail']}".rstrip()
    return f"{text}\n     -> {result['hint']}" if result["hint"] else text
