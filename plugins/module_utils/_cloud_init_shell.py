# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Scripts under the shell that will run them, judged by several checkers: none of them finds everything."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils import _cloud_init_dash as dash
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import Finding, finding

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_config import Script

CHECKERS = ("syntax", "shellcheck", "checkbashisms")
_DIALECTS = {"sh": "dash", "dash": "dash", "ash": "dash", "bash": "bash"}
_LEVELS = {"error": "error", "warning": "warning", "info": "info", "style": "info"}
#: Sourced files are not here, and are not what is judged.
_EXCLUDED = "SC1090,SC1091"
_MAX_OUTPUT = 4 << 20
#: shellcheck and checkbashisms take minutes, and the first gigabytes, for what is much longer.
_MAX_CHARACTERS = 64 << 10
_SYNTAX = re.compile(r"^.*?: (?:line )?(\d+): (.*)$", re.MULTILINE)
_BASHISM = re.compile(r"^possible bashism in (.*) line (\d+) \((.*)\):$")


class NoAnswer(Exception):
    """A program gave no answer that can be used, mostly because the time limit was over."""


@dataclasses.dataclass
class Tools:
    """Runs programs until a deadline, and knows which were asked for and are not there."""

    deadline: float
    missing: set[str] = dataclasses.field(default_factory=set)
    search: Callable[[str], str | None] = shutil.which

    def find(self, name: str) -> str | None:
        path = self.search(name)
        if path is None:
            self.missing.add(name)
        return path

    def run(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program; what it leaves running cannot keep us waiting, because its output goes to files."""
        name = os.path.basename(argv[0])
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
            try:
                process.wait(max(self.deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise NoAnswer(f"{name} did not end within the time limit") from error
            said = [_text(stream, name) for stream in (out, err)]
        return subprocess.CompletedProcess(argv, process.returncode, *said)


def _text(stream: t.IO[bytes], name: str) -> str:
    stream.seek(0)
    data = stream.read(_MAX_OUTPUT + 1)
    if len(data) > _MAX_OUTPUT:
        raise NoAnswer(f"{name} printed more than {_MAX_OUTPUT} bytes, which were not read")
    return data.decode("utf-8", "replace")


@dataclasses.dataclass
class Judged:
    """What the checkers said of all scripts."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    not_evaluated: list[str] = dataclasses.field(default_factory=list)
    scripts: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Copy:
    script: Script
    path: str
    dialect: str


def judge(scripts: Sequence[Script], checkers: Sequence[str], sh: str, folder: str, tools: Tools) -> Judged:
    """Every script through each checker; `sh` is what /bin/sh is where they will run."""
    result = Judged()
    copies = []
    for number, script in enumerate(scripts):
        dialect = sh if script.interpreter == "sh" else _DIALECTS.get(script.interpreter, "")
        result.findings += _first_line(script)
        place = script.text.position(0)
        result.scripts.append(
            {
                "file": script.text.source.file,
                "origin": script.origin,
                "line": place[0] if place else None,
                "shebang": script.shebang,
                "shell": dialect,
                "checkers": [],
            }
        )
        if dialect:
            path = os.path.join(folder, f"script-{number}")
            with open(path, "w", encoding="utf-8", newline="") as stream:
                # A carriage return at the end of a line has been found already; every line would be reported again.
                stream.write(script.text.value.replace("\r\n", "\n"))
            copies.append((_Copy(script, path, dialect), result.scripts[-1]))
        elif script.interpreter:
            result.not_evaluated.append(
                f"{script.text.source.file}: {script.origin}: {script.interpreter} is no shell that is checked"
            )
    for name in checkers:
        _with_checker(name, copies, tools, result)
    return result


def _with_checker(name: str, copies: Sequence[tuple[_Copy, dict[str, t.Any]]], tools: Tools, result: Judged) -> None:
    for dialect in ("dash", "bash"):
        group = [(copy, entry) for copy, entry in copies if copy.dialect == dialect]
        if name != "syntax":
            long = [copy.script for copy, _unused in group if len(copy.script.text.value) > _MAX_CHARACTERS]
            result.not_evaluated += [
                f"{script.text.source.file}: {script.origin}: too long for {name} (over {_MAX_CHARACTERS} characters)"
                for script in long
            ]
            group = [(copy, entry) for copy, entry in group if copy.script not in long]
        if not group or (name == "checkbashisms" and dialect == "bash"):
            continue
        program = tools.find(dialect if name == "syntax" else name)
        if program is None:
            continue
        try:
            result.findings += _RUN[name](program, dialect, [copy for copy, _unused in group], tools)
        except NoAnswer as error:
            result.not_evaluated.append(str(error))
            continue
        for _unused, entry in group:
            entry["checkers"].append(os.path.basename(program))


def _first_line(script: Script) -> Iterator[Finding]:
    text = script.text
    if not script.interpreter:
        yield finding(
            text,
            script.origin,
            text.position(0),
            "error",
            "content",
            "no-shebang",
            "The first line does not say what runs this: cloud-init fails with 'Exec format error'.",
            "Begin with #!/bin/sh.",
        )
    if "\r\n" in text.value:
        yield finding(
            text,
            script.origin,
            text.position(text.value.index("\r\n")),
            "error",
            "content",
            "crlf",
            "Lines end with carriage return and line feed: no program has the name that the first line gives then.",
            "Convert the file: sed -i 's/\\r$//'.",
        )


def _syntax(program: str, dialect: str, copies: Sequence[_Copy], tools: Tools) -> Iterator[Finding]:
    """The shell's own parser, whose verdict is certain: what it cannot read will not run."""
    for copy in copies:
        done = tools.run([program, "-n", copy.path])
        match = _SYNTAX.search(done.stderr)
        if done.returncode == 0 or not match:
            continue
        line = int(match[1])
        known = dash.recognise(copy.script.text.line(line)) if dialect == "dash" else None
        column, suggestion = known or (None, "")
        yield _finding(
            copy,
            line,
            column,
            "error",
            dialect,
            "syntax",
            f"{match[2]}. {os.path.basename(program)} runs what stands before, then ends.",
            suggestion,
        )


def _shellcheck(program: str, dialect: str, copies: Sequence[_Copy], tools: Tools) -> Iterator[Finding]:
    """As dash and as POSIX sh: `set -o pipefail` is reported only by the second."""
    by_path = {copy.path: copy for copy in copies}
    seen = set()
    for shell in ("dash", "sh") if dialect == "dash" else (dialect,):
        done = tools.run([program, "--norc", "-f", "json1", "-s", shell, "-e", _EXCLUDED, *by_path])
        try:
            comments = json.loads(done.stdout)["comments"]
        except ValueError:
            raise NoAnswer(f"shellcheck failed: {done.stderr.strip()[:200] or done.returncode}") from None
        for comment in comments:
            code = f"SC{comment['code']}"
            place = (comment["file"], comment["line"], comment["column"])
            # SC3xxx is what a shell lacks; the second pass may say only that, and not again.
            if place in seen or (shell == "sh" and not code.startswith("SC3")):
                continue
            seen.add(place)
            severity = _LEVELS.get(comment["level"], "info")
            if shell == "sh":
                severity = "info"
            if dialect == "dash" and code in dash.FATAL_IN_DASH:
                severity = "error"
            yield _finding(
                by_path[comment["file"]],
                comment["line"],
                comment["column"],
                severity,
                "shellcheck",
                code,
                comment["message"],
                dash.suggestion(code),
            )


def _checkbashisms(program: str, dialect: str, copies: Sequence[_Copy], tools: Tools) -> Iterator[Finding]:
    """A second opinion, by patterns: a warning at most."""
    by_path = {copy.path: copy for copy in copies}
    done = tools.run([program, "--force", *by_path])
    for line in done.stderr.splitlines():
        match = _BASHISM.match(line)
        if match and match[1] in by_path:
            yield _finding(
                by_path[match[1]], int(match[2]), None, "warning", "checkbashisms", "bashism", f"{match[3]}.", ""
            )


_RUN: dict[str, Callable[..., Iterator[Finding]]] = {
    "syntax": _syntax,
    "shellcheck": _shellcheck,
    "checkbashisms": _checkbashisms,
}


def _finding(
    copy: _Copy, line: int, column: int | None, severity: str, checker: str, code: str, message: str, suggestion: str
) -> Finding:
    place = copy.script.text.at(line, column)
    return finding(copy.script.text, copy.script.origin, place, severity, checker, code, message, suggestion)
