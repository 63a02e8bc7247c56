# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone code.

"""Read Packer's machine-readable output: what was built, what failed and why, and how far it is."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

# Only these types are events; a comma in a builder's name moves the type to the right.
TYPES = frozenset({"ui", "error-count", "error", "artifact-count", "artifact", "version"})
STDOUT_TAIL = 50

# In the order of a build. The texts are those of the builders bundled with 1.6 and of today's plugins.
PHASE_TEXTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (phase, re.compile(pattern))
    for phase, pattern in (
        ("postprocess", r"^Running post-processor:"),
        ("download", r"^(Retrieving |Trying |Downloading |Creating CD disk|Copying hard drive|Resizing hard drive)"),
        ("boot", r"^(Waiting for (SSH|WinRM) to become available|Using (ssh|winrm) communicator)"),
        ("unpack", r"^(Unpacking the root tree|Restoring the tree)"),
        ("provision", r"^(Connected to (SSH|WinRM)!|Provisioning with |Running local shell script|Uploading )"),
        ("shutdown", r"^(Gracefully halting|Halting the virtual|Waiting for shutdown|Stopping the source instance)"),
        ("disk", r"^Writing the disk"),
        ("convert", r"^(Converting hard drive|Creating (the )?(AMI|image)|Capturing the image|Exporting )"),
        ("boot", r"^(Starting VM|Starting the virtual|Waiting \S+ for boot|Typing the boot command)"),
        ("boot", r"^(Looking for available port|Launching a source)"),
    )
)

_NAMED = re.compile(r"^(?:==>|-->|   ) (\S+?): ?(.*)$", re.DOTALL)
_FINISHED = re.compile(r"^Build '(.+)' (finished|errored)(?: after ([^:]*?))?(?:\.$|: ?(.*)$|$)", re.DOTALL)
_ANSIBLE_HEADING = re.compile(r"^((?:TASK|PLAY|RUNNING HANDLER) \[.*?\]) *\**$")
_ANSIBLE_FAILURE = re.compile(r"^(?:fatal: \[|failed: \[|\[ERROR\]: )")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Event:
    """One line of the stream."""

    target: str
    kind: str
    data: tuple[str, ...]


@dataclass
class Artifact:
    build: str
    builder_id: str = ""
    id: str = ""  # noqa: A003 - the name that Packer gives it
    string: str = ""
    files: list[str] = field(default_factory=list)

    def identity(self) -> tuple[t.Any, ...]:
        return (self.build, self.builder_id, self.id, tuple(self.files))


@dataclass
class Build:
    name: str
    status: str = "not_run"
    started: float | None = None
    seconds: float | None = None
    error: str = ""
    phase: str = ""
    task: str = ""
    """The last heading of the ansible provisioner, such as TASK [name]."""
    detail: str = ""
    """The last line in which the ansible provisioner says what failed."""


def unescape(text: str) -> str:
    return text.replace("%!(PACKER_COMMA)", ",").replace("\\r", "\r").replace("\\n", "\n")


def parse_line(line: str) -> Event | None:
    """The event of a line; None for what is none, such as the text of a crash."""
    fields = line.split(",")
    if len(fields) < 3 or not fields[0].isdigit():
        return None
    for index in range(2, len(fields)):
        if fields[index] in TYPES:
            data = tuple(unescape(item) for item in fields[index + 1 :])
            return Event(",".join(fields[1:index]), fields[index], data)
    return None


def split_name(text: str) -> tuple[str, str]:
    """Build name and bare text of a user-interface message; the name is empty for general messages."""
    first, *rest = text.strip("\n").split("\n")
    match = _NAMED.match(first)
    if not match:
        return "", text.strip("\n")
    name = match.group(1)
    lines = [match.group(2)]
    for line in rest:
        again = _NAMED.match(line)
        lines.append(again.group(2) if again and again.group(1) == name else line)
    return name, "\n".join(lines)


def phase_of(text: str) -> str:
    return next((phase for phase, pattern in PHASE_TEXTS if pattern.search(text)), "")


def builder_type(name: str, known: t.Mapping[str, str]) -> str:
    """Type of the builder: from the JSON template, else from an HCL name, [build.]type.source."""
    if name in known:
        return known[name]
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else ""


class Report:
    """Takes the lines of a build as they come and knows at any time where it stands."""

    def __init__(self) -> None:
        self.builds: dict[str, Build] = {}
        self.artifacts: list[Artifact] = []
        self.errors: list[tuple[str, str]] = []
        self.ui_errors: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.tail: list[str] = []
        self.current: Build | None = None
        self.last = ""
        self.usage = False
        self.crashed = False
        self._open: dict[tuple[str, str], Artifact] = {}

    @property
    def phase(self) -> str:
        return self.current.phase if self.current else ""

    def feed(self, line: str, now: float) -> str:
        """Take one line; returns the human text of it, which is what a log should show."""
        event = parse_line(line)
        if event is None:
            if "PACKER CRASH" in line or line.startswith("panic: "):
                self.crashed = True
            self._remember(line)
            return line
        if event.kind == "ui" and len(event.data) > 1:
            return self._ui(event.data[0], ",".join(event.data[1:]), now)
        if event.kind == "error":
            message = ",".join(event.data)
            self.errors.append((event.target, message))
            build = self._build(event.target)
            build.status, build.error = "failed", build.error or message
        elif event.kind == "artifact":
            self._artifact(event)
        elif event.kind == "artifact-count":
            self._build(event.target).status = "success"
        return ""

    def _remember(self, text: str) -> None:
        self.tail.append(text)
        del self.tail[:-STDOUT_TAIL]

    def _build(self, name: str) -> Build:
        return self.builds.setdefault(name, Build(name))

    def _ui(self, level: str, text: str, now: float) -> str:
        text = _ANSI.sub("", text)
        self._remember(text.strip("\n"))
        if "PACKER CRASH" in text or "Unrecognized remote plugin message" in text:
            self.crashed = True
        if text.startswith("Usage: packer"):
            self.usage = True
            return text
        finished = _FINISHED.match(text)
        if finished:
            self._finished(self._build(finished.group(1)), finished.group(2), finished.group(4) or "", now)
            return text
        name, bare = split_name(text)
        if level == "error":
            self.ui_errors.append((name, bare))
        # "--> name: ..." belongs to the closing list of artifacts and errors, when the builds are over.
        if name and not text.startswith("-->"):
            self._progress(self._build(name), bare, now)
        elif not name:
            self.warnings.extend(block.summary() for block in diagnostics(text) if block.severity == "Warning")
        return text.strip("\n")

    def _progress(self, build: Build, bare: str, now: float) -> None:
        self.current = build
        build.started = now if build.started is None else build.started
        build.phase = phase_of(bare) or build.phase
        line = bare.strip().split("\n")[0]
        heading = _ANSIBLE_HEADING.match(line)
        if heading:
            build.task, build.detail = heading.group(1), ""
            self.last = build.task
        elif _ANSIBLE_FAILURE.match(line):
            build.detail = line
        elif line and not build.task:
            self.last = line
        elif phase_of(bare):
            build.task, self.last = "", line

    def _finished(self, build: Build, how: str, message: str, now: float) -> None:
        build.started = now if build.started is None else build.started
        build.seconds = now - build.started
        if how == "errored":
            cancelled = "cancelled" in message.lower()
            build.status, build.error = ("cancelled" if cancelled else "failed"), message
        elif build.status == "not_run":
            build.status = "success"

    def _artifact(self, event: Event) -> None:
        if len(event.data) < 2:
            return
        index, what, *values = event.data
        artifact = self._open.setdefault((event.target, index), Artifact(event.target))
        value = ",".join(values)
        if what == "builder-id":
            artifact.builder_id = value
        elif what == "id":
            artifact.id = value
        elif what == "string":
            artifact.string = value
        elif what == "file" and len(values) > 1:
            artifact.files.append(",".join(values[1:]))
        elif what == "nil":
            del self._open[event.target, index]
        elif what == "end":
            # manifest and other post-processors hand on the artifact they got: the same one appears twice.
            del self._open[event.target, index]
            if all(artifact.identity() != known.identity() for known in self.artifacts):
                self.artifacts.append(artifact)

    def cancel(self) -> None:
        """The run was cancelled: a build without artifacts did not succeed, whatever Packer said about it."""
        made = {artifact.build for artifact in self.artifacts}
        for build in self.builds.values():
            if build.name not in made and build.status in ("not_run", "success", "failed"):
                build.status = "cancelled"
                build.error = build.error or "cancelled"


@dataclass(frozen=True)
class Diagnostic:
    """One C(Error:) or C(Warning:) block of an HCL diagnosis."""

    severity: str
    text: str

    def summary(self) -> str:
        """The block without the lines that say nothing."""
        lines = [line.rstrip() for line in self.text.split("\n")]
        return re.sub(r"\n{2,}", "\n", "\n".join(x for x in lines if "(source code not available)" not in x)).strip()


def diagnostics(text: str) -> list[Diagnostic]:
    blocks = re.split(r"^(?=(?:Error|Warning): )", text, flags=re.MULTILINE)
    return [
        Diagnostic(*block.split(": ", 1))  # type: ignore[arg-type]
        for block in blocks
        if block.startswith(("Error: ", "Warning: "))
    ]


def existing_outputs(block: Diagnostic) -> list[str]:
    """The output directories that are there already, if that is all an error says; -force would replace them."""
    bullets = [line for line in block.text.split("\n") if line.startswith("* ")]
    found = [re.match(r"^\* Output directory '(.*)' already exists", line) for line in bullets]
    return [match.group(1) for match in found if match] if all(found) else []


def missing_plugins(block: Diagnostic) -> bool:
    """Whether an error says that the plugins have to be installed first."""
    return block.text.startswith("Missing plugins")


def undefined_variables(blocks: t.Iterable[Diagnostic]) -> list[str]:
    names = []
    for block in blocks:
        # Before 1.8.5: A "x" variable was set. Since: The variable "x" was set.
        match = re.search(r'^Undefined variable\n+(?:A|The variable) "([^"]+)" (?:variable )?was set', block.text)
        if match:
            names.append(match.group(1))
    return sorted(set(names))


def main_error(report: Report) -> str:
    """The error that matters when Packer failed, best first; never its usage text or a provisioner's stderr."""
    for name, message in report.errors:
        build = report.builds[name]
        words = f"{name}: {message}" if name else message
        if build.task or build.detail:
            words += f" ({': '.join(part for part in (build.task, build.detail) if part)})"
        return words
    if report.crashed:
        return "Packer crashed"
    general = [text for name, text in report.ui_errors if not name]
    blocks = [block for text in general for block in diagnostics(text) if block.severity == "Error"]
    if blocks:
        return "\n".join(block.summary() for block in blocks)
    if general:
        return general[-1].strip()
    failed = [build for build in report.builds.values() if build.status == "failed" and build.error]
    if failed:
        return f"{failed[0].name}: {failed[0].error}"
    if report.usage:
        return "Packer did not understand its command line and printed its usage"
    named = [f"{name}: {text}" for name, text in report.ui_errors]
    return named[-1] if named else "Packer failed without saying why"
