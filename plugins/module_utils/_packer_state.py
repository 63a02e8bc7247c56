# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone code.

"""The stamp of a Packer build: what went in, what came out, and whether a new build is needed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._packer_cli import PackerError, Request, Version
from ansible_collections.goldsmith.images.plugins.module_utils._process import (
    end_members,
    members,
    remove_path,
    restore_path,
)

SCHEMA = 1
# Files of the module itself, which may lie inside a directory that is an input.
OWN_DIRECTORY = ".packer_build"


def hash_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def canonical(value: t.Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def default_state_path(request: Request) -> str:
    """One stamp for each template and selection of builds."""
    digest = hashlib.sha256(canonical([request.template, request.only, request.exclude]).encode()).hexdigest()
    name = os.path.basename(request.template.rstrip("/")).split(".")[0] or "template"
    return os.path.join(request.chdir, OWN_DIRECTORY, f"{name}-{digest[:12]}.json")


def template_files(request: Request) -> list[str]:
    if not os.path.isdir(request.template):
        return [request.template]
    patterns = ("*.pkr.hcl", "*.pkr.json", "*.auto.pkrvars.hcl", "*.auto.pkrvars.json")
    return [path for pattern in patterns for path in glob.glob(os.path.join(glob.escape(request.template), pattern))]


def _tree(root: str) -> t.Iterator[str]:
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in (OWN_DIRECTORY, ".git")]
        yield from (os.path.join(directory, name) for name in files)


def input_files(patterns: t.Iterable[str], ignore: t.Container[str] = ()) -> list[str]:
    """The files behind a list of files, directories and globs; a pattern without any is an error."""
    files: list[str] = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise PackerError(f"inputs: nothing matches {pattern}")
        for path in found:
            files.extend(_tree(path) if os.path.isdir(path) else [path])
    # Sockets, pipes and dangling links have no content that a build could depend on.
    return sorted({path for path in files if os.path.isfile(path) and path not in ignore})


def components(
    request: Request, version: Version, inputs: t.Sequence[str], extra: t.Any, salt: str
) -> dict[str, t.Any]:
    """Everything the result depends on. Values of variables appear only as keyed digests."""

    def keyed(value: t.Any) -> str:
        # The canonical JSON keeps the type: 1, "1" and true differ.
        return hmac.new(bytes.fromhex(salt), canonical(value).encode(), hashlib.sha256).hexdigest()

    files = sorted({*template_files(request), *request.var_files, *inputs})
    try:
        hashes = {os.path.relpath(path, request.chdir): hash_file(path) for path in files}
    except OSError as exc:
        raise PackerError(f"cannot read {exc.filename}: {exc.strerror}") from exc
    variables = {**request.variables, **request.sensitive}
    variables.update({k: v for k, v in request.environment.items() if k.startswith("PKR_VAR_")})
    return {
        "schema": SCHEMA,
        "packer": f"{version[0]}.{version[1]}",
        "files": hashes,
        "variables": {name: keyed(value) for name, value in variables.items()},
        "only": sorted(request.only),
        "except": sorted(request.exclude),
        "extra": keyed(extra),
    }


def key_of(parts: t.Mapping[str, t.Any]) -> str:
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def load(path: str) -> tuple[dict[str, t.Any] | None, str]:
    """The stamp, or None and why there is none that can be used."""
    try:
        with open(path, encoding="utf-8") as stream:
            stamp = json.load(stream)
    except FileNotFoundError:
        return None, f"no earlier build is recorded in {path}"
    except (OSError, ValueError) as exc:
        return None, f"the record of the earlier build, {path}, cannot be read ({type(exc).__name__})"
    shape: dict[str, type] = {"key": str, "salt": str, "components": dict, "artifacts": list, "builds": list}
    if not isinstance(stamp, dict) or stamp.get("schema") != SCHEMA:
        return None, f"the record of the earlier build, {path}, is of another version of this module"
    if any(not isinstance(stamp.get(name), kind) for name, kind in shape.items()):
        return None, f"the record of the earlier build, {path}, is incomplete"
    return stamp, ""


def write_private(path: str, text: str) -> None:
    """Replace a file by one that only its owner can read, in one step."""
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        remove_path(temporary)
        raise


def new_salt() -> str:
    return secrets.token_hex(16)


def _changes(label: str, old: t.Mapping[str, str], new: t.Mapping[str, str]) -> list[str]:
    kinds = (
        ("changed", sorted(name for name in new if name in old and new[name] != old[name])),
        ("added", sorted(set(new) - set(old))),
        ("removed", sorted(set(old) - set(new))),
    )
    return [f"{label} {kind}: {', '.join(names)}" for kind, names in kinds if names]


def differences(old: t.Mapping[str, t.Any], new: t.Mapping[str, t.Any]) -> list[str]:
    """What differs between the components of two builds: names, never values."""
    found = _changes("files", old.get("files", {}), new["files"])
    found += _changes("variables", old.get("variables", {}), new["variables"])
    if old.get("packer") != new["packer"]:
        found.append(f"Packer's version changed from {old.get('packer')} to {new['packer']}")
    if any(old.get(name) != new[name] for name in ("only", "except")):
        found.append("the selection of builds changed")
    if old.get("extra") != new["extra"]:
        found.append("fingerprint_extra changed")
    return found


def artifact_problems(artifacts: t.Iterable[t.Mapping[str, t.Any]], verify: str) -> list[str]:
    """What is wrong with the recorded local files; empty when all are as they were made."""
    problems = []
    for file in [item for artifact in artifacts for item in artifact.get("files", [])]:
        path = file["path"]
        if not os.path.exists(path):
            problems.append(f"artifact is missing: {path}")
        elif os.path.isdir(path) or verify == "exists":
            continue
        elif os.path.getsize(path) != file.get("size"):
            problems.append(f"size of the artifact changed: {path}")
        elif verify == "checksum" and file.get("sha256") and hash_file(path) != file["sha256"]:
            problems.append(f"content of the artifact changed: {path}")
    return problems


def describe_file(path: str, checksum: bool) -> dict[str, t.Any]:
    if os.path.isdir(path):
        return {"path": path, "size": None, "sha256": None}
    return {"path": path, "size": os.path.getsize(path), "sha256": hash_file(path) if checksum else None}


def reasons_to_build(
    stamp: t.Mapping[str, t.Any] | None, why_none: str, parts: t.Mapping[str, t.Any], rebuild: str, verify: str
) -> list[str]:
    """Why a build is needed; empty when the recorded one still stands."""
    if rebuild == "always":
        return ["rebuild is 'always'"]
    if stamp is None:
        return [why_none]
    reasons = [] if rebuild == "never" else differences(stamp["components"], parts)
    unfinished = [build["name"] for build in stamp["builds"] if build.get("status") != "success"]
    if unfinished:
        reasons.append(f"not successful last time: {', '.join(unfinished)}")
    return reasons + artifact_problems(stamp["artifacts"], verify)


def only_unfinished(
    stamp: t.Mapping[str, t.Any] | None, parts: t.Mapping[str, t.Any], request: Request, rebuild: str, verify: str
) -> list[str]:
    """The builds to repeat when the last run made some of them and nothing has changed since; empty means all."""
    # -except also drops post-processors by name, which a list of builds cannot express.
    if stamp is None or rebuild == "always" or request.exclude or differences(stamp["components"], parts):
        return []
    done = [build["name"] for build in stamp["builds"] if build.get("status") == "success"]
    unfinished = [build["name"] for build in stamp["builds"] if build.get("status") != "success"]
    if not done or artifact_problems(stamp["artifacts"], verify):
        return []
    return unfinished


class Lock:
    """An exclusive lock beside the stamp. Its file names the run that holds it, so that the next can clean up."""

    def __init__(self, state_path: str) -> None:
        self.path = state_path + ".lock"
        self.fd = -1
        self.interrupted_clean = False
        """An earlier run was interrupted that had begun to build where no output was."""

    def acquire(self, patience: float) -> None:
        """Take the lock. Waits only when its holder is dead and its guard still cleans up after it."""
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise PackerError(f"state_path: cannot write beside {self.path}: {exc.strerror}") from exc
        give_up_at = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.EACCES):
                    raise PackerError(f"cannot lock {self.path}: {exc.strerror}") from exc
            pid, alive = self._holder()
            if alive or time.monotonic() > give_up_at:
                os.close(self.fd)
                self.fd = -1
                raise self._held_by(pid)
            time.sleep(0.2)

    def check(self) -> None:
        """Refuse what ``acquire`` would refuse; makes and changes nothing."""
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise PackerError(f"state_path: cannot read {self.path}: {exc.strerror}") from exc
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self.interrupted_clean = bool(self._record().get("clean"))
        except OSError:
            pid, alive = self._holder()
            if alive:
                raise self._held_by(pid) from None
        finally:
            os.close(self.fd)
            self.fd = -1

    def recover(self) -> bool:
        """End the processes and remove the files of an earlier run that could not do so itself."""
        record = self._record()
        token, tmpdir, moved = str(record.get("token", "")), str(record.get("tmpdir", "")), record.get("moved", [])
        self.interrupted_clean = bool(record.get("clean"))
        found = bool(token) and bool(members(token))
        if found:
            end_members(token, 5.0)
        # The file may have been edited: remove nothing but a directory of the kind that we make.
        if (
            os.path.basename(tmpdir).startswith("gp-")
            and os.path.isdir(tmpdir)
            and os.stat(tmpdir).st_uid == os.getuid()
        ):
            found = True
            remove_path(tmpdir)
        for path, backup in moved:
            if str(backup).startswith(f"{path}.previous-"):
                found = found or os.path.lexists(backup)
                restore_path(path, backup)
                remove_path(f"{backup}.done")
        return found

    def record(self, token: str, tmpdir: str, moved: t.Sequence[tuple[str, str]] = (), clean: bool = False) -> None:
        """Say in the file who builds. *clean*: the outputs that are there later were not there before."""
        pid = os.getpid()
        run = {"token": token, "tmpdir": tmpdir, "moved": moved, "clean": clean}
        text = canonical({"pid": pid, "start": _start_time(pid), **run})
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text.encode(), 0)

    def release(self) -> None:
        if self.fd >= 0:
            os.ftruncate(self.fd, 0)
            # The guard shares this lock through its copy of the descriptor: closing ours would not be enough.
            fcntl.flock(self.fd, fcntl.LOCK_UN)
            os.close(self.fd)
            self.fd = -1

    def _holder(self) -> tuple[int, bool]:
        """The process that the file names, and whether it still runs."""
        record = self._record()
        pid = record.get("pid", 0)
        return pid, bool(pid) and _start_time(pid) == record.get("start")

    def _held_by(self, pid: int) -> PackerError:
        return PackerError(f"another run (process {pid}) is building with the same state file; lock: {self.path}")

    def _record(self) -> dict[str, t.Any]:
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(os.pread(self.fd, 1 << 20, 0) or b"{}")
            if isinstance(record, dict):
                return record
        return {}


def _start_time(pid: int) -> int:
    """Start time of a process in clock ticks since boot; tells a process from a later one with the same PID."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as stream:
        return int(stream.read().rpartition(b")")[2].split()[19])
    return 0
