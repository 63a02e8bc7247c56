# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone code.

"""What Packer's command line accepts: versions, capabilities, arguments, variables, environment."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import tempfile
import typing as t
from dataclasses import dataclass, field

Version = tuple[int, int, int]

# First version that has an option or a subcommand; what is not listed is in 1.6 and all later ones.
INIT_SINCE: Version = (1, 7, 0)
REQUIRED_PLUGINS_SINCE: Version = (1, 7, 0)


class Flag(t.NamedTuple):
    """An option that not every supported version has."""

    text: str
    since: Version
    commands: tuple[str, ...]


FLAGS = {
    "warn_on_undeclared_variables": Flag("-warn-on-undeclared-var", (1, 9, 0), ("build",)),
    "ignore_prerelease_plugins": Flag("-ignore-prerelease-plugins", (1, 11, 0), ("build", "validate")),
    "use_sequential_evaluation": Flag("-use-sequential-evaluation", (1, 12, 0), ("build", "validate", "inspect")),
}

# The plugins' unix sockets live in TMPDIR; a socket path above 107 bytes makes Packer crash (80 is fine, 85 is not).
MAX_TMPDIR = 80


class PackerError(Exception):
    """Everything that makes packer_build fail. details become return values of the module."""

    def __init__(self, message: str, **details: t.Any) -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class Request:
    """What the user asks for, paths made absolute."""

    template: str
    kind: str
    """C(hcl) or C(json), the language of the template."""
    chdir: str
    variables: dict[str, t.Any] = field(default_factory=dict)
    sensitive: dict[str, t.Any] = field(default_factory=dict)
    var_files: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    force: bool = False
    on_error: str = "cleanup"
    parallel_builds: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    cache_dir: str = ""
    plugin_path: str = ""
    packer_log: bool = False
    flags: tuple[str, ...] = ()
    """Names out of FLAGS."""


def parse_version(output: str) -> Version:
    """The version out of the output of C(packer version)."""
    match = re.match(r"^Packer v(\d+)\.(\d+)\.(\d+)", output)
    if not match:
        raise PackerError(
            "the program is not HashiCorp Packer: 'packer version' printed "
            + (repr(output.strip().splitlines()[0][:100]) if output.strip() else "nothing")
            + ". Some distributions have other programs of that name; give the right one with 'executable'."
        )
    return (int(match.group(1)), int(match.group(2)), int(match.group(3)))


def check_flags(request: Request, version: Version) -> None:
    for name in request.flags:
        since = FLAGS[name].since
        if version < since:
            raise PackerError(
                f"{name} needs Packer {since[0]}.{since[1]} or later, found {'.'.join(map(str, version))}"
            )


def find_executable(name: str, environment: t.Mapping[str, str]) -> str:
    path = shutil.which(os.path.expanduser(name), path=environment.get("PATH"))
    if path is None:
        raise PackerError(
            f"packer not found: no executable {name!r} on {environment.get('PATH', '')!r}."
            " Debian 12 and Ubuntu: apt-get install packer; others: https://developer.hashicorp.com/packer/install"
        )
    return os.path.abspath(path)


def template_kind(path: str) -> str:
    """Language of a template file or directory; fails for what Packer could not load."""
    if os.path.isdir(path):
        if not glob.glob(os.path.join(glob.escape(path), "*.pkr.hcl")) and not glob.glob(
            os.path.join(glob.escape(path), "*.pkr.json")
        ):
            raise PackerError(f"template: the directory {path} has no *.pkr.hcl or *.pkr.json file")
        return "hcl"
    if not os.path.isfile(path):
        raise PackerError(f"template: {path} does not exist")
    if not os.access(path, os.R_OK):
        raise PackerError(f"template: {path} is not readable")
    return "hcl" if path.endswith((".pkr.hcl", ".pkr.json")) else "json"


def check_var_file(path: str, kind: str) -> None:
    if not os.path.isfile(path):
        raise PackerError(f"var_files: {path} does not exist or is not a file")
    if not os.access(path, os.R_OK):
        raise PackerError(f"var_files: {path} is not readable")
    if kind == "hcl" and not path.endswith((".hcl", ".json")):
        raise PackerError(f"var_files: {path} must end in .pkrvars.hcl or .json for an HCL template")
    if kind == "json" and path.endswith(".hcl"):
        raise PackerError(f"var_files: {path} is HCL, but the template is JSON and takes only JSON files")


def _plain_text(name: str, value: t.Any) -> str:
    """A variable as legacy JSON templates take it: text only."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        raise PackerError(
            f"variables: {name} is a {'dictionary' if isinstance(value, dict) else 'list'}, but JSON templates only"
            " know strings. Convert the template with 'packer hcl2_upgrade' to use structured values."
        )
    return "" if value is None else str(value)


def var_file_content(request: Request) -> str:
    """All variables as one JSON var-file: typed, literal, and not visible in the process list."""
    both = sorted(set(request.variables) & set(request.sensitive))
    if both:
        raise PackerError(f"variables and sensitive_variables both have {', '.join(both)}")
    values = {**request.variables, **request.sensitive}
    if request.kind == "json":
        values = {name: _plain_text(name, value) for name, value in values.items()}
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def _flags(request: Request, command: str) -> list[str]:
    return [FLAGS[name].text for name in request.flags if command in FLAGS[name].commands]


def _selection(request: Request, only: t.Sequence[str] | None = None) -> list[str]:
    names = tuple(only) if only else request.only
    if names:
        return ["-only=" + ",".join(names)]
    return ["-except=" + ",".join(request.exclude)] if request.exclude else []


def _var_files(request: Request, private_var_file: str) -> list[str]:
    # Ours comes last: the later file wins over the earlier one.
    files = [*request.var_files, *([private_var_file] if private_var_file else [])]
    return ["-var-file=" + path for path in files]


def validate_command(
    packer: str, request: Request, private_var_file: str, only: t.Sequence[str] | None = None
) -> list[str]:
    # Flags first: Packer stops reading them at the template. Only this spelling of -machine-readable is understood.
    return [
        packer,
        "validate",
        "-machine-readable",
        *_flags(request, "validate"),
        *_selection(request, only),
        *_var_files(request, private_var_file),
        request.template,
    ]


def build_command(
    packer: str, request: Request, private_var_file: str, only: t.Sequence[str] | None = None
) -> list[str]:
    command = [packer, "build", "-machine-readable", *_flags(request, "build"), *_selection(request, only)]
    if request.force:
        command.append("-force")
    if request.on_error != "cleanup":
        command.append("-on-error=" + request.on_error)
    if request.parallel_builds:
        command.append(f"-parallel-builds={request.parallel_builds}")
    return [*command, *_var_files(request, private_var_file), request.template]


def init_command(packer: str, request: Request, version: Version, init: str) -> list[str]:
    """The command that fetches the template's plugins; empty when there is nothing to fetch them with or for."""
    if init == "never" or version < INIT_SINCE or request.kind != "hcl":
        return []
    return [packer, "init", "-machine-readable", *(["-upgrade"] if init == "upgrade" else []), request.template]


def inspect_command(packer: str, request: Request) -> list[str]:
    # Human output on purpose: for HCL templates the machine-readable one is the same prose with escapes.
    return [packer, "inspect", *_flags(request, "inspect"), request.template]


def private_base(environment: t.Mapping[str, str], candidates: t.Sequence[str] = ("/tmp", "/var/tmp")) -> str:
    """A directory for Packer's TMPDIR: short, writable, and one that programs may be started from."""
    wanted = [environment["TMPDIR"]] if environment.get("TMPDIR") else []
    seen = []
    for path in [*wanted, *candidates]:
        if len(os.path.join(path, "gp-12345678")) > MAX_TMPDIR:
            seen.append(f"{path} (path too long)")
        elif not os.access(path, os.W_OK | os.X_OK):
            seen.append(f"{path} (not writable)")
        elif os.statvfs(path).f_flag & os.ST_NOEXEC:
            # shell and shell-local run their scripts from there
            seen.append(f"{path} (mounted noexec)")
        else:
            return path
    raise PackerError("no usable directory for temporary files: " + ", ".join(seen))


def make_private_dir(environment: t.Mapping[str, str]) -> str:
    return tempfile.mkdtemp(prefix="gp-", dir=private_base(environment))


def base_environment(outer: t.Mapping[str, str], request_environment: t.Mapping[str, str]) -> dict[str, str]:
    """Environment of every Packer call."""
    environment = dict(outer)
    # Set by an outer Packer (we may run inside its ansible-local provisioner): they would switch off the wrapper
    # process of ours, and with it the handling of signals.
    for name in ("PACKER_WRAP_COOKIE", "PACKER_RUN_UUID"):
        environment.pop(name, None)
    for name in ("PACKER_LOG", "PACKER_LOG_PATH"):
        # The log would bypass our redaction; packer_log switches it on in a way that does not.
        environment.pop(name, None)
    environment["CHECKPOINT_DISABLE"] = "1"
    environment.update(request_environment)
    return environment


def packer_environment(outer: t.Mapping[str, str], request: Request, tmpdir: str) -> dict[str, str]:
    environment = base_environment(outer, request.environment)
    environment["TMPDIR"] = tmpdir
    if request.packer_log:
        environment["PACKER_LOG"] = "1"
    environment.pop("PACKER_LOG_PATH", None)
    if request.cache_dir:
        environment["PACKER_CACHE_DIR"] = request.cache_dir
    if request.plugin_path:
        environment["PACKER_PLUGIN_PATH"] = request.plugin_path
    return environment


def template_builds(content: str) -> dict[str, str]:
    """Name and type of each builder of a legacy JSON template."""
    try:
        builders = json.loads(content).get("builders") or []
        return {str(item.get("name") or item["type"]): str(item["type"]) for item in builders}
    except (ValueError, KeyError, AttributeError, TypeError):
        # Packer's own validation explains better what is wrong with it.
        return {}


def template_variables(content: str) -> list[str] | None:
    """Names of the declared variables of a legacy JSON template; None when it cannot be read."""
    try:
        return sorted(json.loads(content).get("variables") or {})
    except (ValueError, AttributeError, TypeError):
        return None


def inspected_builds(output: str) -> list[str]:
    """Names of all builds, out of what C(packer inspect) prints for an HCL template."""
    builds: list[str] = []
    in_builds = in_sources = False
    prefix = ""
    for line in output.splitlines():
        text = line.strip()
        if line.startswith("> "):
            in_builds = text == "> builds:"
        elif in_builds and line.startswith("  > "):
            name = text[2:].rstrip(":")
            prefix = "" if name.startswith("<") else name + "."
            in_sources = False
        elif in_builds and re.match(r"^ {4}\S", line):
            in_sources = text == "sources:"
        elif in_builds and in_sources and re.match(r"^ {6}\S", line):
            builds.append(prefix + text)
    return builds


def inspected_variables(output: str) -> list[str]:
    return sorted(set(re.findall(r"^var\.([^\s:]+):", output, flags=re.MULTILINE)))
