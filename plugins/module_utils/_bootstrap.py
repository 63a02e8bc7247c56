# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""A root tree of Debian from its packages: which mirrors, which packages, which first configuration."""

from __future__ import annotations

import dataclasses
import email.utils
import hashlib
import re
import shlex
import subprocess
import tempfile
import time
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._command import CommandError, find_program
from ansible_collections.goldsmith.images.plugins.module_utils._disk import files_archive

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ansible_collections.goldsmith.images.plugins.module_utils._command import Runner

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_HELPER = Path("/usr/lib/apt/apt-helper")

#: What a machine needs to boot, to configure itself with cloud-init, to be reached by SSH and Ansible and to update
#: its own kernel and boot loader. What a node of something needs comes with roles.
MINIMAL_PACKAGES = (
    "apt",
    "ca-certificates",
    "cloud-guest-utils",  # growpart
    "cloud-init",
    "dbus",
    "dosfstools",  # the ESP is checked and grub-install writes to it
    "e2fsprogs",
    "grub-cloud-amd64",  # BIOS and UEFI (signed), reinstalled to disk and ESP on upgrades
    "initramfs-tools",
    "iproute2",
    "kmod",
    "less",
    "libnss-myhostname",  # sudo and kubeadm want to resolve the own host name
    "libnss-resolve",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "netbase",
    "openssh-server",
    "openssh-sftp-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "tzdata",
    "udev",
    "zstd",
)

PATH_EXCLUDES = """\
# Translations and documentation that nobody reads on a server; copyright files stay, their licences ask for it.
# Remove this file to get them back with the next installation of a package.
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/man/??/*
path-exclude=/usr/share/man/??_*/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/info/*
path-exclude=/usr/share/lintian/*
"""

FILES: dict[str, tuple[str, int]] = {
    "etc/cloud/cloud.cfg.d/90-datasources.cfg": (
        "# Local sources first: each one that has to ask the network costs boot time. Must stay on one line.\n"
        "datasource_list: [NoCloud, ConfigDrive, VMware, OVF, Azure, Ec2, GCE, OpenStack, DigitalOcean, Hetzner, "
        "Vultr, Scaleway, Oracle, None]\n",
        0o644,
    ),
    "etc/cloud/cloud.cfg.d/91-system.cfg": (
        "system_info:\n"
        "  network:\n"
        "    renderers: [networkd]\n"
        "    activators: [networkd]\n"
        "# No RSA host key: every SSH client since 2014 knows these, and an RSA key takes seconds to find.\n"
        "ssh_genkeytypes: [ed25519, ecdsa]\n"
        "locale: C.UTF-8\n",
        0o644,
    ),
    "etc/ssh/sshd_config.d/60-key-only.conf": (
        "# cloud-init's ssh_pwauth writes 50-cloud-init.conf, which comes first and wins.\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n",
        0o644,
    ),
    "etc/systemd/system/systemd-networkd-wait-online.service.d/50-any.conf": (
        "# One configured link is online: an unplugged second one must not hold up the boot for two minutes.\n"
        "[Service]\nExecStart=\nExecStart=/usr/lib/systemd/systemd-networkd-wait-online --any\n",
        0o644,
    ),
    "etc/systemd/resolved.conf.d/50-no-llmnr.conf": (
        "# Names come from DNS; nobody on the network may answer for it.\n[Resolve]\nLLMNR=no\nMulticastDNS=no\n",
        0o644,
    ),
    "etc/hostname": ("localhost\n", 0o644),
    "etc/hosts": (
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
        0o644,
    ),
}

# Runs with the tree as $1 before mmdebstrap cleans up. It sees what mmdebstrap wrote, so the mirrors in the image are
# the ones it used, also where mmdebstrap chose them.
FINISH = """\
#!/bin/sh
set -eu
umask 022
root=$1
sources=$root/etc/apt/sources.list.d/debian.sources
sed 's/\\[[^]]*\\] *//' "$root/etc/apt/sources.list" | awk -v keyring=@KEYRING@ '
    $1 == "deb" {
        components = ""
        for (i = 4; i <= NF; i++) components = components " " $i
        id = $2 SUBSEP components
        if (!(id in suites)) { order[++count] = id; uri[id] = $2; component[id] = components }
        suites[id] = suites[id] " " $3
    }
    END {
        for (i = 1; i <= count; i++) {
            id = order[i]
            if (i > 1) print ""
            printf "Types: deb\\nURIs: %s\\nSuites:%s\\nComponents:%s\\nSigned-By: %s\\n", \\
                uri[id], suites[id], component[id], keyring
        }
    }' > "$sources"
test -s "$sources"
rm -f "$root/etc/apt/sources.list" "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
tar --extract --file @FILES@ --directory "$root" --numeric-owner --no-overwrite-dir --same-permissions
chroot "$root" systemctl --quiet enable systemd-networkd.service systemd-resolved.service ssh.service
# It looks for snapshots of LVM, which is not installed.
chroot "$root" systemctl --quiet disable e2scrub_reap.service e2scrub_all.timer
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
# The packages have built the linker cache, hardware database and message catalogue: not again at the first boot.
touch -r "$root/usr" "$root/etc/.updated" "$root/var/.updated"
"""

_RELEASE = re.compile(r"^[a-z][a-z0-9.-]*$")
_PACKAGE = re.compile(r"^[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?$")
ROLLING = ("sid", "unstable", "experimental")


class BootstrapError(Exception):
    """The tree cannot be made; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Mirrors:
    """Where the packages come from; both empty: mmdebstrap's own defaults."""

    archive: str | None = None
    security: str | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what is in the tree."""

    release: str
    packages: tuple[str, ...]
    components: tuple[str, ...]
    mirrors: Mirrors
    path_excludes: str = PATH_EXCLUDES
    keyring: Path = KEYRING

    def sources(self) -> list[str]:
        """The apt sources, one line each; none: mmdebstrap knows better."""
        if self.mirrors.archive is None:
            return []
        components = " ".join(self.components)
        lines = [f"deb {self.mirrors.archive} {self.release} {components}"]
        if self.release not in ROLLING:
            lines.append(f"deb {self.mirrors.archive} {self.release}-updates {components}")
            if self.mirrors.security is not None:
                lines.append(f"deb {self.mirrors.security} {self.release}-security {components}")
        return lines

    def release_files(self) -> list[str]:
        """The URLs of the signed files that say what the mirrors have."""
        return [
            f"{uri.rstrip('/')}/dists/{suite}/InRelease"
            for _deb, uri, suite, *_components in map(str.split, self.sources())
        ]

    def inputs(self) -> dict[str, t.Any]:
        """What the key of the cache is made of."""
        text = FINISH + repr(sorted(FILES.items())) + self.path_excludes
        return {
            "release": self.release,
            "packages": sorted(self.packages),
            "components": list(self.components),
            "sources": self.sources(),
            "configuration": hashlib.sha256(text.encode()).hexdigest(),
        }


def make_recipe(
    distribution: str,
    release: str,
    packages: Iterable[str],
    components: Iterable[str],
    mirrors: Mirrors,
    path_excludes: bool = True,
) -> Recipe:
    """Check the caller's wishes and add the minimal bootable set to them."""
    if distribution != "debian":
        raise BootstrapError(
            f"method 'bootstrap' makes Debian systems only, not {distribution!r}: take method 'download' with a disk "
            "image of that distribution"
        )
    if not _RELEASE.match(release):
        raise BootstrapError(f"{release!r} is not the name of a release (such as trixie)")
    wanted = set(packages)
    for package in wanted:
        if not _PACKAGE.match(package):
            raise BootstrapError(f"{package!r} is not the name of a package, or name=version")
    names = {package.partition("=")[0] for package in wanted}
    everything = wanted | {package for package in MINIMAL_PACKAGES if package not in names}
    excludes = PATH_EXCLUDES if path_excludes else ""
    return Recipe(release, tuple(sorted(everything)), tuple(components), mirrors, excludes)


# --- mirrors --------------------------------------------------------------------------------------------------------


def parse_index_targets(text: str) -> Mirrors:
    """The host's own mirrors from lines `REPO_URI|RELEASE|ORIGIN` of `apt-get indextargets`.

    Origin is known only after an `apt-get update`; before that, a name without a dash can be Debian's archive only if
    there is a `-security` suite of the same name.
    """
    rows = [row for row in (line.split("|") for line in text.splitlines()) if len(row) == 3]
    rows = [(uri, suite, origin) for uri, suite, origin in rows if re.match(r"https?://", uri)]
    debian = [(uri, suite) for uri, suite, origin in rows if origin == "Debian"]
    if not debian:
        names = {suite[: -len("-security")] for _uri, suite, origin in rows if suite.endswith("-security")}
        debian = [
            (uri, suite)
            for uri, suite, origin in rows
            if not origin and (suite in names or suite.endswith("-security")) and "ubuntu" not in uri
        ]
    archive = next((uri for uri, suite in debian if "-" not in suite), None)
    security = next((uri for uri, suite in debian if suite.endswith("-security")), None)
    return Mirrors(archive and archive.rstrip("/"), security and security.rstrip("/")) if archive else Mirrors()


def choose_mirrors(mirror: str | None, security_mirror: str | None) -> Mirrors:
    """What the caller says, else what the host uses, else nothing: then mmdebstrap takes its defaults."""
    if mirror is not None:
        mirror = mirror.rstrip("/")
        return Mirrors(mirror, (security_mirror or f"{mirror}-security").rstrip("/"))
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(ORIGIN)"]
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return Mirrors(None, security_mirror)
    # A variable without a value is printed by its name.
    found = parse_index_targets(result.stdout.replace("$(ORIGIN)", ""))
    return Mirrors(found.archive, security_mirror or found.security) if found.archive else found


@dataclasses.dataclass(frozen=True)
class ArchiveState:
    """What the mirrors have: the same digests mean the same packages."""

    #: URL and sha256 of the release file of each suite.
    digests: tuple[str, ...]
    #: When the youngest of them was signed, in seconds since 1970: no file of an image is younger than its packages.
    epoch: int


def archive_state(recipe: Recipe, timeout: int = 15) -> ArchiveState:
    """Ask every mirror for its signed release file, by apt itself, so that its proxies and certificates count."""
    if not APT_HELPER.exists():
        raise BootstrapError(f"{APT_HELPER} is missing: method 'bootstrap' needs a host with apt")
    state, epoch = [], 0
    with tempfile.TemporaryDirectory(prefix="goldsmith-release-") as folder:
        for number, url in enumerate(recipe.release_files()):
            target = Path(folder, str(number))
            command = [
                str(APT_HELPER), "-o", "Acquire::Retries=0", "-o", f"Acquire::http::Timeout={timeout}",
                "-o", f"Acquire::https::Timeout={timeout}", "-o", "APT::Sandbox::User=root",
                "download-file", url, str(target),
            ]  # fmt: skip
            result = subprocess.run(command, check=False, capture_output=True, text=True)
            if result.returncode != 0 or not target.exists():
                raise BootstrapError(_mirror_message(recipe, url, result.stderr + result.stdout))
            content = target.read_bytes()
            state.append(f"{url} sha256:{hashlib.sha256(content).hexdigest()}")
            epoch = max(epoch, release_date(content.decode("utf-8", "replace")))
    if not state:
        # Mirrors that mmdebstrap chooses cannot be asked beforehand: then a day is what "the same state" means.
        epoch = int(time.time()) // 86400 * 86400
        state.append(time.strftime("%Y-%m-%d", time.gmtime(epoch)))
    return ArchiveState(tuple(state), epoch)


def release_date(text: str) -> int:
    """The `Date:` of a release file in seconds since 1970; 0 if it has none."""
    match = re.search(r"^Date: *(.+)$", text, re.MULTILINE)
    if match is None:
        return 0
    return int(email.utils.parsedate_to_datetime(match[1].strip()).timestamp())


def _mirror_message(recipe: Recipe, url: str, output: str) -> str:
    errors = [line for line in output.splitlines() if line.startswith("E: ")]
    reason = errors[0][3:] if errors else output.strip()
    if " 404 " in reason:
        return (
            f"the mirror has no release {recipe.release!r} ({url}: 404 Not Found): check the name of the release, "
            "or give another mirror"
        )
    return (
        f"the mirror does not answer: {reason}. Check the network and the proxy settings of apt on the build host, "
        "or give another mirror with the option mirror"
    )


# --- the tree -------------------------------------------------------------------------------------------------------


def missing_programs(recipe: Recipe) -> list[str]:
    """Messages about what the host lacks."""
    missing = []
    for name in ("mmdebstrap", "zstd"):
        try:
            find_program(name, name)
        except CommandError as error:
            missing.append(str(error))
    if not recipe.keyring.exists():
        missing.append(f"{recipe.keyring} is missing: install it with 'apt-get install debian-archive-keyring'")
    return missing


def mmdebstrap_command(recipe: Recipe, archive: Path, finish: Path, rootless: bool) -> list[str]:
    """The command that makes the tar of the tree."""
    command = [
        find_program("mmdebstrap", "mmdebstrap"),
        # Inside our own user namespace the caller is root: only this mode then does without device nodes.
        f"--mode={'unshare' if rootless else 'root'}",
        "--variant=apt",
        "--format=tar",
        f"--keyring={recipe.keyring}",
        f"--components={','.join(recipe.components)}",
        f"--include={','.join(recipe.packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        # The tree is thrown away if anything goes wrong, so dpkg need not flush every file.
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt={line}" for line in recipe.path_excludes.splitlines() if not line.startswith("#")),
        f"--customize-hook={finish}",
        recipe.release,
        str(archive),
    ]
    return command + recipe.sources()


def make_tree(runner: Runner, enter: Sequence[str], recipe: Recipe, epoch: int, work: Path, archive: Path) -> None:
    """Run mmdebstrap; everything temporary stays below `work`, no file in the archive is younger than `epoch`."""
    temporary = work / "mmdebstrap"
    temporary.mkdir(mode=0o755)
    files = dict(FILES)
    if recipe.path_excludes:
        files["etc/dpkg/dpkg.cfg.d/50-path-excludes"] = (recipe.path_excludes, 0o644)
    bundle, finish = work / "files.tar", work / "finish.sh"
    bundle.write_bytes(files_archive(files, epoch))
    script = FINISH.replace("@FILES@", shlex.quote(str(bundle))).replace("@KEYRING@", shlex.quote(str(recipe.keyring)))
    finish.write_text(script, encoding="utf-8")
    finish.chmod(0o755)
    rootless = "--user" in enter
    command = [*enter, *mmdebstrap_command(recipe, archive, finish, rootless)]
    runner.run(command, environment={"TMPDIR": str(temporary), "SOURCE_DATE_EPOCH": str(epoch)})
    temporary.rmdir()
    finish.unlink()
    bundle.unlink()
