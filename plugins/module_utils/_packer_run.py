# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone code.

"""One run of packer_build: look, decide, validate, build, record."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import time
import typing as t
from dataclasses import dataclass, replace

from ansible_collections.goldsmith.images.plugins.module_utils import _packer_cli as cli
from ansible_collections.goldsmith.images.plugins.module_utils import _packer_state as state
from ansible_collections.goldsmith.images.plugins.module_utils import _packer_stream as stream
from ansible_collections.goldsmith.images.plugins.module_utils._packer_aside import Aside, recorded_files
from ansible_collections.goldsmith.images.plugins.module_utils._packer_cli import PackerError, Request
from ansible_collections.goldsmith.images.plugins.module_utils._packer_log import Log, Progress, console_tail
from ansible_collections.goldsmith.images.plugins.module_utils._process import (
    Outcome,
    Supervisor,
    command_of,
    remove_path,
)
from ansible_collections.goldsmith.images.plugins.module_utils._redact import Redactor

# Files that are written while a build runs.
LOGS = ("log_path", "progress_path")
OUTER_SECRET_LENGTH = 8
# Values of such environment variables are treated as secrets too.
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|(ACCESS|API|PRIVATE|ACCOUNT)_?KEY", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what to build (Request)."""

    executable: str = "packer"
    init: str = "auto"
    validate_first: bool = True
    strict_variables: bool = True
    inputs: tuple[str, ...] = ()
    fingerprint_extra: t.Any = None
    state_path: str = ""
    verify: str = "checksum"
    rebuild: str = "if_changed"
    timeout: float = 0.0
    cancel_grace: float = 60.0
    log_path: str = ""
    progress_path: str = ""
    progress_keep: bool = True
    console_log: str = ""
    swap: bool = True


def prepare(params: t.Mapping[str, t.Any]) -> tuple[Request, Options]:
    """Module parameters with every path absolute; fails for what cannot work, before anything is touched."""
    chdir = os.path.abspath(os.path.expanduser(params["chdir"])) if params["chdir"] else ""
    if chdir and not os.path.isdir(chdir):
        raise PackerError(f"chdir: {chdir} is not a directory")
    template = os.path.abspath(os.path.join(chdir or os.getcwd(), os.path.expanduser(params["template"])))
    kind = cli.template_kind(template)
    if params["only_builds"] and params["except_builds"]:
        raise PackerError("only_builds and except_builds are mutually exclusive")
    chdir = chdir or (template if os.path.isdir(template) else os.path.dirname(template))

    def absolute(path: str | None) -> str:
        return os.path.abspath(os.path.join(chdir, os.path.expanduser(path))) if path else ""

    for name in ("timeout", "cancel_grace", "parallel_builds"):
        if params[name] < 0:
            raise PackerError(f"{name}: must not be negative, got {params[name]}")
    request = Request(
        template=template,
        kind=kind,
        chdir=chdir,
        variables=params["variables"] or {},
        sensitive=params["sensitive_variables"] or {},
        var_files=tuple(absolute(path) for path in params["var_files"] or []),
        only=tuple(params["only_builds"] or []),
        exclude=tuple(params["except_builds"] or []),
        force=params["force"],
        on_error=params["on_error"],
        parallel_builds=params["parallel_builds"],
        environment={name: str(value) for name, value in (params["environment"] or {}).items()},
        cache_dir=absolute(params["cache_dir"]),
        plugin_path=absolute(params["plugin_path"]),
        packer_log=params["packer_log"],
        flags=tuple(name for name in cli.FLAGS if params[name]),
    )
    for path in request.var_files:
        cli.check_var_file(path, kind)
    state_path = absolute(params["state_path"]) or state.default_state_path(request)
    for name, path in {**{name: absolute(params[name]) for name in LOGS}, "state_path": state_path}.items():
        if path:
            _check_file(name, path)
    if request.cache_dir:
        _check_directory("cache_dir", request.cache_dir)
    cli.var_file_content(request)  # refuses what the template's language cannot take
    options = Options(
        executable=params["executable"],
        init=params["init"],
        validate_first=params["validate_first"],
        strict_variables=params["strict_variables"],
        inputs=tuple(absolute(path) for path in params["inputs"] or []),
        fingerprint_extra=params["fingerprint_extra"],
        state_path=state_path,
        verify=params["verify"],
        rebuild=params["rebuild"],
        timeout=params["timeout"],
        cancel_grace=params["cancel_grace"],
        log_path=absolute(params["log_path"]),
        progress_path=absolute(params["progress_path"]),
        progress_keep=params["progress_keep"],
        console_log=absolute(params["console_log"]),
        swap=params["replace"] == "swap",
    )
    return request, options


def _check_file(name: str, path: str) -> None:
    """Refuse a path that no file could be written to."""
    directory = os.path.dirname(path)
    if name in LOGS and not os.path.isdir(directory):
        raise PackerError(f"{name}: the directory {directory} does not exist")
    # What is there is replaced; a device such as /dev/null would be, too.
    if os.path.exists(path) and not os.path.isfile(path):
        raise PackerError(f"{name}: {path} is not a file")
    _check_directory(name, directory)


def _check_directory(name: str, path: str) -> None:
    """Refuse a directory that could neither be made nor written to."""
    parent = path
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise PackerError(f"{name}: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PackerError(f"{name}: {path} is not writable")


def secrets_of(request: Request, outer_environment: t.Mapping[str, str]) -> list[t.Any]:
    # What somebody else has put into the environment may be a word of everyday use, such as a mode.
    outer = {name: value for name, value in outer_environment.items() if len(value) >= OUTER_SECRET_LENGTH}
    named = {**outer, **request.environment}.items()
    return [
        *request.sensitive.values(),
        *(value for name, value in named if SECRET_NAME.search(name) and not os.path.exists(value)),
    ]


def amis_of(artifact_id: str) -> dict[str, str]:
    pairs = [part.split(":") for part in artifact_id.split(",")]
    if any(len(pair) != 2 or not pair[1].startswith("ami-") for pair in pairs):
        return {}
    return {pair[0]: pair[1] for pair in pairs}


def empty_result() -> dict[str, t.Any]:
    """All keys of a result, as they are before anything was done."""
    return {
        "changed": False,
        "builds": [],
        "artifacts": [],
        "errors": [],
        "warnings": [],
        "packer_version": "",
        "fingerprint": "",
        "reason": "",
        "reasons": [],
        "cmd": [],
        # Not null: Ansible takes every value but 0 for a failure.
        "rc": 0,
        "phase": "",
        "phases": [],
        "log_path": "",
        "state_path": "",
        "timed_out": False,
        "cancelled": False,
        "stdout_tail": [],
        "console": [],
        "qemu_command": [],
        "duration": 0.0,
    }


class Run:
    """State of one call of the module. The result always has the same keys, however far the run came."""

    def __init__(
        self, request: Request, options: Options, check_mode: bool, outer_environment: t.Mapping[str, str]
    ) -> None:
        # Variables that come with the task's environment count as those that the module is given.
        variables = {name: value for name, value in outer_environment.items() if name.startswith("PKR_VAR_")}
        self.request = replace(request, environment={**variables, **request.environment})
        self.options, self.check_mode = options, check_mode
        self.environment = cli.base_environment(outer_environment, request.environment)
        self.outer_environment = outer_environment
        self.redactor = Redactor(secrets_of(request, outer_environment))
        self.deadline = time.monotonic() + options.timeout if options.timeout else None
        self.packer = cli.find_executable(options.executable, self.environment)
        self.private_var_file = ""
        self.json_builds: dict[str, str] = {}
        self.existing_outputs: list[str] = []
        self.lock = state.Lock(options.state_path)
        self.log = Log("")
        self.progress = Progress("")
        self.result = {**empty_result(), "log_path": options.log_path, "state_path": options.state_path}

    def execute(self) -> dict[str, t.Any]:
        """Do it; the redacted result. Raises PackerError with the same keys as details."""
        started = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                self._execute(stack)
        except (PackerError, OSError) as exc:
            self.result.update(getattr(exc, "details", {}), duration=round(time.monotonic() - started, 1))
            message = f"{exc.strerror}: {exc.filename}" if isinstance(exc, OSError) else str(exc)
            raise PackerError(self.redactor.text(message), **self.redactor.data(self.result)) from None
        self.result["duration"] = round(time.monotonic() - started, 1)
        return self.redactor.data(self.result)

    def _execute(self, stack: contextlib.ExitStack) -> None:
        if self.check_mode:
            self.lock.check()
        else:
            os.makedirs(os.path.dirname(self.options.state_path), mode=0o700, exist_ok=True)
            self.lock.acquire(patience=self.options.cancel_grace + 10.0)
            stack.callback(self.lock.release)
            if self.lock.recover():
                self.result["warnings"].append("ended what an earlier, interrupted run had left behind")
        # The guard must keep the lock: after our death the next run waits until it has cleaned up.
        supervisor = Supervisor(self.options.cancel_grace, keep_fds=[] if self.check_mode else [self.lock.fd])
        self.supervisor = stack.enter_context(supervisor)
        tmpdir = cli.make_private_dir(self.environment)
        supervisor.remove_at_exit(tmpdir)
        if not self.check_mode:
            self.lock.record(supervisor.token, tmpdir)
        self.process_environment = cli.packer_environment(self.outer_environment, self.request, tmpdir)

        self.version = self._version()
        self.result["packer_version"] = ".".join(map(str, self.version))
        cli.check_flags(self.request, self.version)
        stamp, why_none = state.load(self.options.state_path)
        salt = stamp["salt"] if stamp else state.new_salt()
        own = {self.options.state_path, self.options.log_path, self.options.progress_path, self.options.console_log}
        inputs = state.input_files(self.options.inputs, ignore=own)
        parts = state.components(self.request, self.version, inputs, self.options.fingerprint_extra, salt)
        judge = (parts, self.options.rebuild, self.options.verify)
        reasons = state.reasons_to_build(stamp, why_none, *judge)
        self.result.update(fingerprint=state.key_of(parts), reasons=reasons)
        self.result["reason"] = "; ".join(reasons) or "nothing has changed since the last build"
        self.result["diff"] = {"before": "", "after": "".join(reason + "\n" for reason in reasons)}
        if not reasons and stamp:
            self.result.update(builds=stamp["builds"], artifacts=stamp["artifacts"])
            return

        if self.request.variables or self.request.sensitive:
            self.private_var_file = os.path.join(tmpdir, "variables.json")
            state.write_private(self.private_var_file, cli.var_file_content(self.request))
        if not self.check_mode:
            self._open_logs()
        only = state.only_unfinished(stamp, parts, self.request, self.options.rebuild, self.options.verify)
        try:
            if not self.check_mode:
                self._init()
            self._validate(only)
            if self.check_mode:
                self.result["changed"] = True
                return
            clean = self.options.validate_first and not self.existing_outputs
            aside = Aside(supervisor, lambda moved: self.lock.record(supervisor.token, tmpdir, moved, clean))
            aside.move([])
            if self.options.swap:
                aside.move([*self.existing_outputs, *(recorded_files(stamp, only) if stamp else [])])
            self._build(only, stamp if only else None, {"salt": salt, "components": parts}, aside)
        finally:
            self.progress.finish()
            self.log.close()

    def _open_logs(self) -> None:
        self.log = Log(self.options.log_path)
        self.progress = Progress(self.options.progress_path)
        if self.options.progress_path and not self.options.progress_keep:
            self.supervisor.remove_at_exit(self.options.progress_path)

    def _call(self, argv: list[str], on_line: t.Callable[[str, str], None]) -> Outcome:
        return self.supervisor.run(
            argv, cwd=self.request.chdir, env=self.process_environment, on_line=on_line, deadline=self.deadline
        )

    def _capture(self, argv: list[str]) -> tuple[Outcome, str]:
        lines: list[str] = []
        outcome = self._call(argv, lambda name, line: lines.append(line) if name == "stdout" else None)
        self._stop_if_ended(outcome, "")
        return outcome, "\n".join(lines)

    def _stop_if_ended(self, outcome: Outcome, last: str) -> None:
        """Fail when the time was up or somebody cancelled."""
        where = f" in phase {self.result['phase']}" if self.result["phase"] else ""
        last = f"; last message: {last}" if last else ""
        if outcome.timed_out:
            self.result.update(timed_out=True, cancelled=True)
            raise PackerError(f"timed out after {self.options.timeout:g} s{where}{last}")
        if outcome.cancelled:
            self.result["cancelled"] = True
            raise PackerError(f"cancelled ({outcome.cancelled}){where}{last}")

    def _version(self) -> cli.Version:
        return cli.parse_version(self._capture([self.packer, "version"])[1])

    def _follow(self, report: stream.Report, phase: str, log: Log) -> t.Callable[[str, str], None]:
        """A line callback that redacts first and then feeds report, log and progress."""
        looked_in = ""

        def on_line(name: str, raw: str) -> None:
            nonlocal looked_in
            line = self.redactor.text(raw)
            if name == "stderr":
                log.write(line)
                if "PACKER CRASH" in line or line.startswith("panic: "):
                    report.crashed = True
                return
            # A second time: only the unescaped text shows what was split or escaped in the raw line.
            text = self.redactor.text(report.feed(line, time.monotonic()))
            log.write(text)
            # Packer says nothing when the machine has started; looking is too dear to do it at each line.
            if not self.result["qemu_command"] and (report.phase == "boot" or report.phase != looked_in):
                looked_in = report.phase
                self.result["qemu_command"] = command_of(self.supervisor.token, "qemu-system", "qemu-kvm")
            build = report.current.name if report.current else ""
            self.progress.update(phase or report.phase or "build", build, self.redactor.text(report.last))

        return on_line

    def _init(self) -> None:
        argv = cli.init_command(self.packer, self.request, self.version, self.options.init)
        if not argv:
            return
        self.result["phase"] = "init"
        self.progress.update("init")
        report = stream.Report()
        outcome = self._call(argv, self._follow(report, "init", self.log))
        self._stop_if_ended(outcome, report.last)
        if outcome.rc:
            self.result.update(rc=outcome.rc, stdout_tail=report.tail)
            raise PackerError(f"packer init failed: {stream.main_error(report)}")

    def _validate(self, only: list[str]) -> None:
        self._check_selection()
        if not self.options.validate_first and not self.check_mode:
            return
        self.result["phase"] = "validate"
        self.progress.update("validate")
        report = stream.Report()
        argv = cli.validate_command(self.packer, self.request, self.private_var_file, only)
        self.result["cmd"] = argv
        outcome = self._call(argv, self._follow(report, "validate", Log("")))
        self._stop_if_ended(outcome, report.last)
        self.result["warnings"] += report.warnings
        blocks = [block for unused, text in report.ui_errors for block in stream.diagnostics(text)]
        errors = [block for block in blocks if block.severity == "Error"]
        # validate knows no -force: that the output exists is an error only for a build that will not replace it.
        outputs = [stream.existing_outputs(block) for block in errors]
        existing = bool(outputs) and all(outputs)
        found = [os.path.join(self.request.chdir, path) for paths in outputs for path in paths]
        if existing and self.request.force:
            self.existing_outputs = found
        elif existing and self.lock.interrupted_clean:
            # What a killed run has left half-made must not stand in the way of the next one.
            for path in [] if self.check_mode else found:
                remove_path(f"{path}.failed")
                os.rename(path, f"{path}.failed")
                self.result["warnings"].append(f"an interrupted run had left {path}: it is {path}.failed now")
        elif self.check_mode and self.options.init != "never" and errors and all(map(stream.missing_plugins, errors)):
            self.result["warnings"].append("not validated: the real run would first install the template's plugins")
        elif outcome.rc:
            self.result.update(rc=outcome.rc, stdout_tail=report.tail)
            self.log.write("\n".join(report.tail))
            raise PackerError(self._explain(stream.main_error(report), existing))
        if self.options.strict_variables:
            self._check_variables(blocks, report)

    def _explain(self, error: str, existing: bool) -> str:
        found = self.result["packer_version"]
        if existing:
            return f"{error}\nSet force=true to let Packer replace it."
        if 'Blocks of type "required_plugins"' in error and self.version < cli.REQUIRED_PLUGINS_SINCE:
            return f"the template needs Packer 1.7 or later (it has required_plugins), found {found}"
        if "issing plugins" in error and self.options.init == "never":
            return f"{error}\nSet init=auto, or install them with 'packer plugins install --path'."
        return f"the template is not valid: {error}"

    def _read_template(self) -> str:
        with open(self.request.template, encoding="utf-8", errors="replace") as file:
            return file.read()

    def _check_selection(self) -> None:
        """A selection of nothing is a success to Packer 1.6; name the builds there are instead."""
        if self.request.kind == "json":
            self.json_builds = cli.template_builds(self._read_template())
        if not self.request.only and not self.request.exclude:
            return
        known = list(self.json_builds)
        if self.request.kind == "hcl":
            known = cli.inspected_builds(self._capture(cli.inspect_command(self.packer, self.request))[1])
        # In JSON templates Packer takes names only.
        matches = fnmatch.fnmatchcase if self.request.kind == "hcl" else str.__eq__
        if not known:
            return
        for pattern in self.request.only:
            if not any(matches(name, pattern) for name in known):
                raise PackerError(f"only_builds: {pattern} matches no build; there are: {', '.join(known)}")
        if all(any(matches(name, pattern) for pattern in self.request.exclude) for name in known):
            raise PackerError(f"except_builds: no build is left; there are: {', '.join(known)}")

    def _check_variables(self, blocks: list[stream.Diagnostic], report: stream.Report) -> None:
        given = {*self.request.variables, *self.request.sensitive}
        if self.request.kind == "json":
            declared = cli.template_variables(self._read_template())
            unknown = sorted(given - set(declared)) if declared is not None else []
        else:
            warnings = [block for text in report.tail for block in stream.diagnostics(text)]
            unknown = stream.undefined_variables([*blocks, *warnings])
            declared = None
            if unknown:
                output = self._capture(cli.inspect_command(self.packer, self.request))[1]
                declared = cli.inspected_variables(output)
        if unknown:
            raise PackerError(
                f"the template does not declare the variable(s) {', '.join(unknown)};"
                f" it declares: {', '.join(declared or []) or 'none'}"
            )

    def _build(
        self, only: list[str], earlier: t.Mapping[str, t.Any] | None, stamp: dict[str, t.Any], aside: Aside
    ) -> None:
        report = stream.Report()
        argv = cli.build_command(self.packer, self.request, self.private_var_file, only)
        self.result.update(cmd=argv, phase="build")
        outcome = self._call(argv, self._follow(report, "", self.log))
        if outcome.cancelled or outcome.timed_out:
            report.cancel()
        problems = self._collect(report, earlier)
        self.result.update(
            rc=outcome.rc,
            # The last build that spoke may be a good one; the phase of a failure is that of the failed build.
            phase=next((b.phase for b in report.builds.values() if b.status == "failed" and b.phase), "")
            or report.phase
            or "build",
            phases=self.progress.phases,
            stdout_tail=report.tail,
        )
        self.result["warnings"] += [text for text in report.warnings if text not in self.result["warnings"]]
        if outcome.leftovers and not (outcome.cancelled or outcome.timed_out):
            self.result["warnings"].append(f"ended {outcome.leftovers} process(es) that the build had left running")
        succeeded = [build for build in report.builds.values() if build.status == "success"]
        self.result["changed"] = bool(report.artifacts)
        failed = bool(outcome.rc or problems or not succeeded)
        made = [] if problems else [file["path"] for item in self.result["artifacts"] for file in item["files"]]
        aside.settle(made, complete=not failed, keep_failed=self.request.on_error != "cleanup")
        if succeeded and not problems:
            self._record(stamp)
        if failed:
            self.result["console"] = console_tail(self.options.console_log) if self.options.console_log else []
        self._stop_if_ended(outcome, report.last)
        where = f" in phase {self.result['phase']}" if self.result["phase"] else ""
        if outcome.rc:
            raise PackerError(f"packer build failed{where}: {stream.main_error(report)}")
        if problems:
            raise PackerError(problems[0])
        if not succeeded:
            raise PackerError("packer ended without an error, but no build was run")

    def _collect(self, report: stream.Report, earlier: t.Mapping[str, t.Any] | None) -> list[str]:
        """Put builds, artifacts and errors into the result; what is wrong with the files that Packer names."""
        problems: list[str] = []
        artifacts = []
        for artifact in report.artifacts:
            paths = [os.path.abspath(os.path.join(self.request.chdir, path)) for path in artifact.files]
            missing = [path for path in paths if not os.path.exists(path)]
            problems += [f"packer reported the artifact {path}, but it does not exist" for path in missing]
            checksum = self.options.verify == "checksum"
            artifacts.append(
                {
                    "build": artifact.build,
                    "builder_id": artifact.builder_id,
                    "id": artifact.id,
                    "string": artifact.string,
                    "files": [state.describe_file(path, checksum) for path in paths if path not in missing],
                    "amis": amis_of(artifact.id),
                }
            )
        builds = [
            {
                "name": build.name,
                "builder_type": stream.builder_type(build.name, self.json_builds),
                "status": build.status,
                "duration": None if build.seconds is None else round(build.seconds, 1),
                "error": build.error,
                "artifacts": [item for item in artifacts if item["build"] == build.name],
            }
            for build in report.builds.values()
        ]
        if earlier:
            kept = [build for build in earlier["builds"] if build["name"] not in report.builds]
            names = [build["name"] for build in kept]
            builds = kept + builds
            artifacts = [item for item in earlier["artifacts"] if item["build"] in names] + artifacts
        errors = [{"build": name, "message": message} for name, message in report.errors]
        self.result.update(builds=builds, artifacts=artifacts, errors=errors)
        return problems

    def _recordable(self, value: t.Any) -> t.Any:
        """Redacted, except for digests, in which a short secret may occur by chance."""
        if isinstance(value, dict):
            return {k: item if k == "sha256" else self._recordable(item) for k, item in value.items()}
        if isinstance(value, list):
            return [self._recordable(item) for item in value]
        return self.redactor.data(value)

    def _record(self, stamp: dict[str, t.Any]) -> None:
        content = {
            "schema": state.SCHEMA,
            "key": self.result["fingerprint"],
            **stamp,
            "packer_version": self.result["packer_version"],
            "created": int(time.time()),
            "builds": self._recordable(self.result["builds"]),
            "artifacts": self._recordable(self.result["artifacts"]),
        }
        state.write_private(self.options.state_path, state.canonical(content) + "\n")
