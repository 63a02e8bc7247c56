#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: base_disk
short_description: Make the disk that an image is built upon
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Makes a minimal bootable disk of Debian from its packages, or downloads somebody else's disk image and checks it.
  - The result is a qcow2 file in a content-addressed cache. The same inputs need no work, and builds at the same time
    share one result. The file is read-only; boot an overlay of it.
  - A bootstrapped disk has a GPT and boots with BIOS and with UEFI, also with Secure Boot. Its root file system is the
    last partition and grows at the first boot. It configures itself with cloud-init and C(systemd-networkd) and takes
    SSH logins with keys only.
  - Nothing here needs a loop device. Without root, user namespaces with subordinate IDs do.
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
    details:
      - Fails where the real run would fail before it makes anything, such as without a mirror that answers.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - With O(method=bootstrap) and no O(archive_state), new packages in the archive are a change.
  platform:
    support: full
    platforms: debian
options:
  method:
    description:
      - V(bootstrap) installs packages into a root tree with C(mmdebstrap) and makes a disk of it.
      - V(download) takes a disk image from O(url).
    type: str
    choices: [bootstrap, download]
    default: bootstrap
  distribution:
    description: The distribution to bootstrap. Only Debian can be; others can be downloaded.
    type: str
    default: debian
  release:
    description: The code name of the release to bootstrap, such as V(trixie) or V(bookworm).
    type: str
    default: trixie
  packages:
    description:
      - Packages to install in addition to the minimal bootable set, each a name or C(name=version).
      - What roles install later in the image is installed much faster here, because nothing is emulated.
    type: list
    elements: str
    default: []
  components:
    description: Components of the archive to use.
    type: list
    elements: str
    default: [main]
  mirror:
    description:
      - The archive to take the packages from, which also becomes the one that the disk uses.
      - Without it, the mirrors of the build host's own C(apt) configuration if it is for Debian, else the defaults of
        C(mmdebstrap).
    type: str
  security_mirror:
    description:
      - The archive of security updates. With O(mirror) and without this, the same with C(-security) behind it.
    type: str
  path_excludes:
    description:
      - Whether to leave out translations and documentation other than copyright files and English manual pages.
      - The disk then has C(/etc/dpkg/dpkg.cfg.d/50-path-excludes), so that it stays so.
    type: bool
    default: true
  size:
    description: The size of the disk. A downloaded disk that is smaller is enlarged, a larger one left as it is.
    type: str
    default: 10G
  url:
    description: The address of the disk image to download, in any format that C(qemu-img) reads.
    type: str
  checksum:
    description: The checksum of the download, V(sha256:...) or V(sha512:...).
    type: str
  checksum_url:
    description:
      - A signed file of checksums, such as C(SHA512SUMS), with a line for the name of the file in O(url).
      - The signature is in the file itself, or in one beside it that ends in C(.sign), C(.gpg), C(.sig) or C(.asc).
    type: str
  checksum_signature_url:
    description: The address of the signature of O(checksum_url), where it has no usual name.
    type: str
  checksum_keyring:
    description: The public keys that may have signed O(checksum_url), in binary or ASCII form.
    type: path
  cache_dir:
    description:
      - The folder of the cache, made if need be.
      - The default is C(goldsmith-images) in E(XDG_CACHE_HOME), else in C(~/.cache).
    type: path
  cache_max_size:
    description:
      - How large the cache may become. What was not used for longest is removed first; what was used within the last
        four hours stays, because a build may need it.
    type: str
    default: 20G
  form:
    description:
      - V(disk) is a qcow2 image that boots.
      - V(tree) is the archive (tar, compressed with zstd) of its root tree. That of a downloaded disk is the largest
        ext4 file system on it, which only root can read.
    type: str
    choices: [disk, tree]
    default: disk
  archive_state:
    description:
      - Strings that stand for the state of the archive and are part of the key of the cache.
      - Without it, the digests of the signed release files of all mirrors, so that the key changes with the archive.
    type: list
    elements: str
  source_date_epoch:
    description:
      - Seconds since 1970. No file of the result is younger, so that the same inputs make the same result.
      - Without it, the moment at which the youngest of the release files was signed. Needed with O(archive_state).
    type: int
  timeout:
    description: Seconds after which the work is given up, waiting for another process that makes the same included.
    type: int
    default: 1800
"""

EXAMPLES = r"""
---
- name: Make a Debian 13 disk with containerd already installed
  goldsmith.images.base_disk:
    release: trixie
    packages:
      - containerd
      - runc
  register: base

- name: Download a cloud image whose checksum is known
  goldsmith.images.base_disk:
    method: download
    url: https://images.example.com/debian-13-generic-amd64.qcow2
    checksum: sha512:{{ image_sha512 }}

- name: Download a cloud image by the signed list of checksums beside it
  goldsmith.images.base_disk:
    method: download
    url: https://images.example.com/noble/noble-server-cloudimg-amd64.img
    checksum_url: https://images.example.com/noble/SHA256SUMS
    checksum_keyring: /usr/share/keyrings/ubuntu-cloudimage-keyring.gpg
"""

RETURN = r"""
path:
  description: The qcow2 file or the archive in the cache, or where it would be.
  returned: success
  type: str
  sample: /root/.cache/goldsmith-images/base_disks/entries/0f3a.../disk.qcow2
key:
  description: The digest of everything that decides about the disk.
  returned: success
  type: str
  sample: 0f3ac1b2d0a24cf0a3b6...
sha256:
  description: The digest of the qcow2 file. Null in check mode if the disk is not in the cache.
  returned: success
  type: str
  sample: 9b74c9897bac770ffc029102a200c5de...
size:
  description: The size of the qcow2 file in bytes. Null in check mode if the disk is not in the cache.
  returned: success
  type: int
  sample: 378798080
cached:
  description: Whether the disk was in the cache, or somebody else has just made it, so that this run had nothing to do.
  returned: success
  type: bool
  sample: false
packages:
  description: The installed packages of a bootstrapped disk, sorted by name. Empty for a downloaded disk.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the package.
      type: str
    version:
      description: Version of the package.
      type: str
  sample:
    - {name: apt, version: 3.0.3}
sources:
  description: The C(apt) sources of a bootstrap, the address of a download. Empty if C(mmdebstrap) chose its defaults.
  returned: success
  type: list
  elements: str
  sample: [deb http://mirror.example.com/debian trixie main]
phases:
  description: How long each part took.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the part.
      type: str
    seconds:
      description: Its duration in seconds.
      type: float
  sample:
    - {name: bootstrap, seconds: 38.2}
log:
  description: The file with the output of all commands; it grows while the work goes on.
  returned: always
  type: str
  sample: /root/.cache/goldsmith-images/base_disks/logs/0f3ac1b2d0a24cf0.log
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _base_disk
from ansible_collections.goldsmith.images.plugins.module_utils._bootstrap import ArchiveState
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache
from ansible_collections.goldsmith.images.plugins.module_utils._command import interruptible
from ansible_collections.goldsmith.images.plugins.module_utils._disk import parse_size

ARGUMENTS = {
    "method": {"type": "str", "choices": ["bootstrap", "download"], "default": "bootstrap"},
    "distribution": {"type": "str", "default": "debian"},
    "release": {"type": "str", "default": "trixie"},
    "packages": {"type": "list", "elements": "str", "default": []},
    "components": {"type": "list", "elements": "str", "default": ["main"]},
    "mirror": {"type": "str"},
    "security_mirror": {"type": "str"},
    "path_excludes": {"type": "bool", "default": True},
    "size": {"type": "str", "default": "10G"},
    "url": {"type": "str"},
    "checksum": {"type": "str"},
    "checksum_url": {"type": "str"},
    "checksum_signature_url": {"type": "str"},
    "checksum_keyring": {"type": "path"},
    "cache_dir": {"type": "path"},
    "cache_max_size": {"type": "str", "default": "20G"},
    "form": {"type": "str", "choices": ["disk", "tree"], "default": "disk"},
    "archive_state": {"type": "list", "elements": "str"},
    "source_date_epoch": {"type": "int"},
    "timeout": {"type": "int", "default": 1800},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        mutually_exclusive=[("checksum", "checksum_url")],
        required_if=[("method", "download", ("url",))],
        required_by={"checksum_url": ("checksum_keyring",), "checksum_signature_url": ("checksum_url",)},
        required_together=[("archive_state", "source_date_epoch")],
        supports_check_mode=True,
    )
    p = module.params
    try:
        with interruptible():
            request = _base_disk.Request(
                method=p["method"],
                distribution=p["distribution"],
                release=p["release"],
                packages=tuple(p["packages"]),
                components=tuple(p["components"]),
                mirror=p["mirror"],
                security_mirror=p["security_mirror"],
                path_excludes=p["path_excludes"],
                size=parse_size(p["size"]),
                url=p["url"],
                checksum=p["checksum"],
                checksum_url=p["checksum_url"],
                checksum_signature_url=p["checksum_signature_url"],
                checksum_keyring=Path(p["checksum_keyring"]) if p["checksum_keyring"] else None,
                archive_state=(
                    None
                    if p["archive_state"] is None
                    else ArchiveState(tuple(p["archive_state"]), p["source_date_epoch"])
                ),
                timeout=p["timeout"],
                form=p["form"],
            )
            folder = Path(p["cache_dir"] or _base_disk.default_cache_dir()).absolute() / "base_disks"
            cache = Cache(folder, parse_size(p["cache_max_size"]))
            result = _base_disk.get(request, cache, module.check_mode)
    except _base_disk.ERRORS as error:
        module.fail_json(msg=str(error))
    for note in result.notes:
        module.warn(note)
    module.exit_json(
        changed=not result.cached,
        path=str(result.path),
        key=result.key,
        sha256=result.sha256,
        size=result.size,
        cached=result.cached,
        packages=result.packages,
        sources=result.sources,
        phases=result.phases,
        log=str(result.log),
    )


if __name__ == "__main__":
    main()
