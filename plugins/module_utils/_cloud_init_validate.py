# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Is this user-data right? All that can be said of it before a machine boots with it, and of a machine that has."""

from __future__ import annotations

import gzip
import os
import tempfile
import time
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils import (
    _cloud_init_config,
    _cloud_init_files,
    _cloud_init_masked,
    _cloud_init_parts,
    _cloud_init_schema,
    _cloud_init_shell,
    _cloud_init_status,
    _cloud_init_yaml,
)
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_report import Report, Request
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import Finding, Text, finding

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_config import Script
    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_parts import Part, Parts
    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_shell import Tools


def validate(request: Request, folder: str | None = None) -> Report:
    """Check everything that was asked for, within the time limit."""
    report = Report()
    missing: set[str] = set()
    if request.system:
        deadline = time.monotonic() + request.status_wait + request.timeout
        _live(request, _cloud_init_shell.Tools(deadline, missing), report)
    tools = _cloud_init_shell.Tools(time.monotonic() + request.timeout, missing)
    with tempfile.TemporaryDirectory(prefix="cloud-init-validate-", dir=folder) as private:
        _Static(request, private, tools, report).check()
    ignored = set(request.ignore)
    report.findings = [found for found in report.findings if found.code not in ignored]
    report.not_evaluated = sorted(set(report.not_evaluated))
    report.tools_missing = sorted(missing)
    return report


def _live(request: Request, tools: Tools, report: Report) -> None:
    report.status = _cloud_init_status.ask(tools, request.status_wait)
    if report.status.state in ("unknown", "missing"):
        report.not_evaluated.append(f"cloud-init status: {report.status.detail or 'cloud-init is not installed'}")
    for severity, code, message, suggestion in report.status.problems:
        report.findings.append(
            Finding("cloud-init status", "system", None, None, severity, "status", code, message, suggestion)
        )


#: Of the parts of one file, which aliases can make a thousand times what stands in it.
MAX_EXPANDED = 4 * _cloud_init_parts.MAX_BYTES


class _Static:
    """The files: taken apart, then each kind of part shown to those who understand it."""

    def __init__(self, request: Request, folder: str, tools: Tools, report: Report) -> None:
        self.request = request
        self.folder = folder
        self.tools = tools
        self.report = report
        self.scripts: list[Script] = []
        #: Characters of this file's parts, and of what their aliases make of them.
        self.expanded = 0
        #: Parts for the schema, each with its root node.
        self.configs: list[tuple[Part, t.Any]] = []

    def check(self) -> None:
        for label, path, data in _cloud_init_files.files(self.request):
            kind = _cloud_init_files.kind_by_name(path) if self.request.type == "auto" else self.request.type
            if not kind:
                continue
            self.expanded = 0
            system_config = _cloud_init_files.is_system_config(path)
            of_the_user = not (system_config or _cloud_init_files.is_vendor_data(path))
            if kind in ("auto", "cloud-config", "mime") and of_the_user:
                self.measure(label, data)
            parts = _cloud_init_parts.take_apart(label, data, "auto" if kind == "mime" else kind)
            self.collect(parts, system_config)
            if _cloud_init_files.is_run_at_boot(path) and not os.access(path, os.X_OK):
                self.report.findings.append(_not_executable(path))
        if "schema" in self.request.checkers:
            self.schema()
        self.shells()

    def measure(self, label: str, data: bytes) -> None:
        limit = self.request.size_limit
        if limit <= 0:
            return
        packed = len(data) if data.startswith(_cloud_init_parts.GZIP) else len(gzip.compress(data, 9))
        fits = len(data) <= limit
        self.report.size.append({"file": label, "raw": len(data), "gzip": packed, "limit": limit, "fits": fits})
        if not fits:
            hint = f"Packed with gzip it has {packed} bytes"
            hint += ", and cloud-init unpacks it." if packed <= limit else ": fetch a part of it at boot."
            message = f"It has {len(data)} bytes; the limit is {limit}."
            self.report.findings.append(
                Finding(label, "user-data", None, None, "error", "content", "size", message, hint)
            )

    def collect(self, parts: Parts, system_config: bool) -> None:
        """Sort the parts into scripts and configurations."""
        self.report.findings += parts.findings
        self.report.not_evaluated += parts.not_evaluated
        for part in parts.found:
            if part.kind == "script":
                self.scripts.append(_cloud_init_config.Script(part.text, part.origin))
            elif part.kind == "boothook":
                after = part.text.value.find("\n") + 1 or len(part.text.value)
                self.scripts.append(_cloud_init_config.Script(part.text.slice(after), part.origin))
            elif part.kind == "part-handler":
                self.skip(part, "a part-handler is Python and is not checked")
            elif part.kind == "jsonp":
                self.skip(part, "a cloud-config-jsonp changes other parts and is not checked")
            elif part.kind:
                self.collect_yaml(part, system_config)
            else:
                self.report.findings.append(_headerless(part.text, part.origin))

    def collect_yaml(self, part: Part, system_config: bool) -> None:
        headed = part.kind != "cloud-config" or system_config or part.text.value.startswith("#cloud-config")
        if not headed:
            self.report.findings.append(_headerless(part.text, part.origin))
        if not _cloud_init_yaml.HAS_YAML:
            self.skip(part, "this Python has no PyYAML (python3-yaml), so nothing in it was read")
            return
        if self.expanded > MAX_EXPANDED:
            self.report.findings.append(_too_large(part.text, part.origin))
            return
        config = _cloud_init_config.parse(part.text, part.origin, part.kind)
        self.report.findings += config.findings
        self.report.secrets |= config.secrets
        self.scripts += config.scripts
        self.expanded += len(part.text.value) + sum(len(script.text.value) for script in config.scripts)
        for kind, origin, text in config.inner:
            inner = _cloud_init_parts.Parts()
            _cloud_init_parts.expand(inner, text, kind, origin, depth=1)
            self.collect(inner, system_config=False)
        if config.root is None:
            return
        if part.kind == "network-config":
            self.report.findings += _network(part, config.root)
        if headed and not system_config and part.kind in ("cloud-config", "network-config"):
            self.configs.append((part, config.root))

    def skip(self, part: Part, why: str) -> None:
        self.report.not_evaluated.append(f"{part.text.source.file}: {part.origin}: {why}")

    def schema(self) -> None:
        if not self.configs:
            return
        try:
            installed = _cloud_init_schema.version(self.tools)
            for part, root in self.configs:
                self.ask_schema(part, root, installed)
        except _cloud_init_shell.NoAnswer as error:
            self.report.not_evaluated.append(str(error))

    def ask_schema(self, part: Part, root: t.Any, installed: tuple[int, int] | None) -> None:
        verdict = _cloud_init_schema.check(part, root, installed, self.folder, self.request.instance_data, self.tools)
        known = {(found.line, found.column) for found in self.report.findings if found.checker == "yaml"}
        self.report.findings += [found for found in verdict.findings if (found.line, found.column) not in known]
        self.report.deprecated_keys += verdict.deprecations
        if self.request.deprecations == "fail":
            self.report.findings += [
                finding(part.text, part.origin, None, "error", "schema", "deprecated", text)
                for text in verdict.deprecations
            ]
        if not verdict.evaluated:
            self.skip(part, f"schema: {verdict.reason}")
        entry = {"evaluated": verdict.evaluated, "reason": verdict.reason, "rc": verdict.rc, "stdout": verdict.stdout}
        self.report.schema.append({"file": part.text.source.file, "origin": part.origin, **entry})

    def shells(self) -> None:
        judged = _cloud_init_shell.judge(
            self.scripts,
            [name for name in self.request.checkers if name != "schema"],
            self.shell(),
            self.folder,
            self.tools,
        )
        self.report.findings += judged.findings
        self.report.scripts += judged.scripts
        self.report.not_evaluated += judged.not_evaluated
        for script, entry in zip(self.scripts, judged.scripts):
            if entry["shell"]:
                self.report.findings += _cloud_init_masked.look(script)

    def shell(self) -> str:
        """What /bin/sh is where it will run."""
        if self.request.shell != "auto":
            return self.request.shell
        here = os.path.basename(os.path.realpath("/bin/sh"))
        return "bash" if self.request.system and here == "bash" else "dash"


def _not_executable(path: str) -> Finding:
    message = "cloud-init runs only what may be executed, and leaves this out."
    return Finding(path, "user-data", None, None, "error", "content", "not-executable", message, f"chmod 0755 {path}")


def _too_large(text: Text, origin: str) -> Finding:
    message = f"With all its aliases it is more than {MAX_EXPANDED} characters: from here on it was not read."
    return finding(text, origin, None, "error", "content", "too-large", message)


def _headerless(text: Text, origin: str) -> Finding:
    first = text.value.lstrip("\n").split("\n", 1)[0].lower()
    near = "cloud" in first and "config" in first
    return finding(
        text,
        origin,
        text.position(0) if text.value else None,
        "error",
        "content",
        "header",
        "The first line does not say what this is, so cloud-init ignores all of it.",
        "It must be exactly `#cloud-config`." if near else "Begin with `#cloud-config` or, for a script, `#!/bin/sh`.",
    )


def _network(part: Part, root: t.Any) -> Iterator[Finding]:
    inner = _cloud_init_yaml.get(root, "network") or root
    version = _cloud_init_yaml.string(inner, "version") or _cloud_init_yaml.string(inner, "config")
    if version not in ("1", "2", "disabled"):
        yield finding(
            part.text,
            part.origin,
            _cloud_init_yaml.position(part.text, inner),
            "error",
            "yaml",
            "network-version",
            "A network-config says `version: 1` or `version: 2`; without it cloud-init ignores all of it.",
        )
