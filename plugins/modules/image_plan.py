#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_plan
short_description: Decide before minute 0 how an image is built, and whether it has to be
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Looks at everything outside that a build depends on (programs and their versions, accelerator, disk and memory,
    package repositories) and decides once. What follows gets explicit values and guesses nothing.
  - For the builder C(amazon-ebs) it asks AWS, with the credentials of the environment or of C(amazon_ebs.profile), for
    the source AMI, the instance type and the key; nothing is changed there.
  - All that cannot work is reported together, before anything is built.
  - Compares the inputs of the build with those of the finished image and says why it has to be built, if it has to.
requirements:
  - Python 3.11 or later on the build host
  - gpg and gpgv, when a Kubernetes repository has to be verified
  - boto3, for a build in EC2
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: linux
options:
  definition:
    description: The complete image definition, as P(goldsmith.images.image_definition#filter) returns it.
    type: dict
    required: true
  kvm:
    description: What M(goldsmith.images.kvm_check) returned. Of no use for a build in EC2.
    type: dict
    default: {}
  accelerator:
    description: V(auto) takes KVM where it is accelerated, else software emulation.
    type: str
    choices: [auto, kvm, tcg]
    default: auto
  build_method:
    description:
      - V(vm) applies the roles in a machine, V(rootfs) to a root tree without one. Overrides the definition.
      - V(auto) takes V(vm) where KVM is accelerated, else V(rootfs) where the base can be a tree, every role can work
        on one and the user may mount.
    type: str
    choices: [auto, vm, rootfs]
  allow_no_kvm:
    description: Build an image that O(definition) says C(needs_kvm) on a host whose guests cannot use KVM as well.
    type: bool
    default: false
  running_system_roles:
    description: Roles that cannot work on a root tree, and why, as M(goldsmith.images.image_definition) found them.
    type: dict
    default: {}
  kubernetes_packages:
    description:
      - Where the Kubernetes packages come from. Overrides the definition.
      - V(auto) takes the upstream repository if it answers and verifies, else the distribution's packages.
    type: str
    choices: [auto, upstream, mirror, distribution]
  collection_dir:
    description: Folder of this collection on the build host.
    type: path
    required: true
  cache_dir:
    description: Folder of base disks and work folders.
    type: path
    required: true
  output_dir:
    description: Folder that will hold the finished image, O(definition)'s name included.
    type: path
    required: true
  rebuild:
    description: Build even if nothing has changed.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Plan the build
  goldsmith.images.image_plan:
    definition: "{{ definition }}"
    kvm: "{{ kvm }}"
    collection_dir: /usr/share/ansible/collections/ansible_collections/goldsmith/images
    cache_dir: /var/cache/goldsmith-images
    output_dir: /srv/images/cloud_base
  register: plan
"""

RETURN = r"""
accelerator:
  description: Name (kvm or tcg), CPU model and reason; empty for a build in EC2.
  returned: success
  type: dict
  sample: {"name": "tcg", "cpu_model": "max", "reason": "no KVM (no_device)"}
archive_state:
  description: URL and sha256 of the Release file of each package suite that the base disk is made from.
  returned: success
  type: list
  elements: str
mirrors:
  description:
    - The C(archive) and C(security) mirrors of the base disk, so that nobody has to look for them again. Null where
      mmdebstrap has the choice.
  returned: success
  type: dict
  sample: {"archive": "https://mirror.example.com/debian", "security": "https://mirror.example.com/debian-security"}
build_method:
  description: Name (vm or rootfs) and reason.
  returned: success
  type: dict
  sample: {"name": "rootfs", "reason": "no accelerated KVM, and a tree needs none"}
build_fingerprint:
  description: The same as RV(fingerprint) over what goes into the image, without what only judges it.
  returned: success
  type: str
build:
  description: Whether the image has to be built.
  returned: success
  type: bool
ec2:
  description:
    - For a build in EC2, otherwise empty. C(settings), the definition's with everything resolved, C(source_ami) that
      the filter finds now, and C(kms_key_arn).
  returned: success
  type: dict
reasons:
  description: Why it has to be built; empty when it has not.
  returned: success
  type: list
  elements: str
cpus:
  description: Virtual CPUs of the guests; 0 for a build in EC2.
  returned: success
  type: int
fingerprint:
  description: The sha256 over RV(inputs).
  returned: success
  type: str
inputs:
  description: All that makes the image what it is, name to digest or value.
  returned: success
  type: dict
kubernetes:
  description: Resolved source of the Kubernetes packages and why; empty when the image has none.
  returned: success
  type: dict
layers:
  description: For each role what stands for all that decides about what it does; empty for roles of other collections.
  returned: success
  type: list
  elements: dict
  sample: [{"role": "base_packages", "digest": "9b74c9897bac770f..."}]
lines:
  description: The plan in words, one decision a line.
  returned: success
  type: list
  elements: str
role_vars:
  description: Variables for the roles, the definition's with everything resolved.
  returned: success
  type: dict
source_date_epoch:
  description: When the youngest Release file was signed, in seconds since 1970; 0 without one.
  returned: success
  type: int
timeouts:
  description: Deadlines in seconds, scaled by the accelerator.
  returned: success
  type: dict
versions:
  description: Versions of Packer, QEMU, Ansible and this collection.
  returned: success
  type: dict
"""

import os
import re
import typing as t
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.ansible_release import __version__ as ansible_version
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _ec2_build, _host_memory, _root_tree
from ansible_collections.goldsmith.images.plugins.module_utils import _image_plan as planning
from ansible_collections.goldsmith.images.plugins.module_utils._apt_repository import (
    RepositoryError,
    fetch,
    verified_release,
)
from ansible_collections.goldsmith.images.plugins.module_utils._aws_session import AwsError
from ansible_collections.goldsmith.images.plugins.module_utils._bootstrap import (
    ArchiveState,
    BootstrapError,
    Mirrors,
    archive_state,
    choose_mirrors,
    make_recipe,
)
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache, CacheError

# The OBS project isv:kubernetes signs the community repositories of all minor versions.
UPSTREAM_URL = "https://pkgs.k8s.io/core:/stable:/v{version}/deb/"
UPSTREAM_FINGERPRINT = "DE15B14486CD377B9E876E1A234654DA9A296436"
KUBERNETES_ROLE = "kubernetes_prerequisites"
CML_CHECKS_ROLE = "cml_build_checks"
DEFAULT_KUBERNETES_VERSION = "1.36"
NOTHING_TO_DO = "no: nothing has changed since the last build, and its image is intact"


def program_version(module: AnsibleModule, command: list[str], pattern: str) -> str:
    """Return the version that *command* prints."""
    rc, stdout, stderr = module.run_command(command, environ_update={"CHECKPOINT_DISABLE": "1"})
    match = re.search(pattern, stdout + stderr)
    if rc != 0 or not match:
        raise planning.PlanError(f"`{' '.join(command)}` does not print a version: {(stdout + stderr).strip()[:200]}")
    return match[1]


def kubernetes_source(wanted: str, role_vars: dict[str, t.Any]) -> dict[str, str]:
    """Resolve where the Kubernetes packages come from; PlanError when what was asked for does not answer."""
    version = str(role_vars.get(f"{KUBERNETES_ROLE}_version", DEFAULT_KUBERNETES_VERSION))
    if wanted == "distribution":
        return {"source": "distribution", "reason": "asked for", "release": "", "key": ""}
    try:
        if wanted == "mirror":
            url = role_vars[f"{KUBERNETES_ROLE}_repository_url"]
            key, fingerprint = role_vars[f"{KUBERNETES_ROLE}_repository_key"].encode(), ""
        else:
            url, fingerprint = UPSTREAM_URL.format(version=version), UPSTREAM_FINGERPRINT
            key = fetch(f"{url}Release.key")
        release = verified_release(url, "/", key=key, fingerprint=fingerprint)
    except KeyError as exc:
        raise planning.PlanError(f"kubernetes_packages=mirror needs {exc} among the definition's vars") from exc
    except RepositoryError as exc:
        if wanted == "auto":
            return {"source": "distribution", "reason": f"upstream cannot be used: {exc}", "release": "", "key": ""}
        raise planning.PlanError(f"kubernetes_packages={wanted}: {exc}") from exc
    reason = f"{url} answers and verifies"
    source = "mirror" if wanted == "mirror" else "upstream"
    return {"source": source, "reason": reason, "release": release.sha256, "key": release.key}


def archive(definition: dict[str, t.Any]) -> tuple[Mirrors, ArchiveState]:
    """Return the mirrors that the base disk is bootstrapped from, and the state of their suites."""
    base = definition["base"]
    if base["method"] != "bootstrap":
        return Mirrors(), ArchiveState((), 0)
    try:
        mirrors = choose_mirrors(base.get("mirror"), None)
        recipe = make_recipe(base["distribution"], base["release"], base["packages"], ["main"], mirrors)
        return mirrors, archive_state(recipe)
    except BootstrapError as exc:
        raise planning.PlanError(f"The base disk cannot be made: {exc}") from exc


def own_cache(folder: Path) -> None:
    """PlanError if a part of the cache is somebody else's folder."""
    try:
        Cache(folder, 0).check()
    except CacheError as exc:
        raise planning.PlanError(str(exc)) from exc


def tree_problem(cache: Path) -> str:
    """Return why no root tree can be built below the cache folder, which need not exist yet."""
    while not cache.exists():
        cache = cache.parent
    return _root_tree.architecture_problem("amd64") or _root_tree.problem(cache)


def require_programs(programs: t.Mapping[str, str]) -> None:
    """PlanError names the programs that are missing, and the packages that bring them."""
    problems = planning.missing_programs(programs, f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if problems:
        raise planning.PlanError("\n".join(problems))


class Problems(list[str]):
    """What cannot work; all of it is reported together."""

    def collect(self, function: t.Callable[..., t.Any], *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Return what the function returns; None if it cannot, which is noted down."""
        try:
            return function(*args, **kwargs)
        except (planning.PlanError, _ec2_build.Ec2BuildError) as exc:
            self.append(str(exc))
            return None

    def end(self) -> None:
        """PlanError if there are any."""
        if self:
            raise planning.PlanError("\n".join(self))


def resolve_roles(params: dict[str, t.Any], problems: Problems) -> tuple[dict[str, t.Any], dict[str, str]]:
    """Return the variables of the roles and the source of the Kubernetes packages, which is empty if there are none."""
    definition = params["definition"]
    role_vars, kubernetes = dict(definition["vars"]), {}
    if KUBERNETES_ROLE in definition["roles"]:
        wanted = params["kubernetes_packages"] or role_vars.get(f"{KUBERNETES_ROLE}_packages_source", "auto")
        kubernetes = problems.collect(kubernetes_source, wanted, role_vars) or {}
    if CML_CHECKS_ROLE in definition["roles"]:
        role_vars.setdefault(f"{CML_CHECKS_ROLE}_kvm", "report" if params["allow_no_kvm"] else "fail")
    if kubernetes:
        role_vars[f"{KUBERNETES_ROLE}_packages_source"] = kubernetes["source"]
        if kubernetes["key"]:
            role_vars[f"{KUBERNETES_ROLE}_repository_key"] = kubernetes["key"]
    return role_vars, kubernetes


def kubernetes_inputs(kubernetes: t.Mapping[str, str]) -> dict[str, str]:
    """Return what the Kubernetes packages add to the inputs of an image."""
    names = {"kubernetes packages": "source", "kubernetes release": "release"}
    return {name: kubernetes[key] for name, key in names.items() if kubernetes}


def kubernetes_line(kubernetes: t.Mapping[str, str]) -> list[str]:
    """Return the line of the plan about them."""
    return [f"kubernetes   {kubernetes['source']} packages ({kubernetes['reason']})"] if kubernetes else []


def plan_ami(module: AnsibleModule) -> dict[str, t.Any]:
    """Decide everything about a build in EC2; PlanError lists all problems at once."""
    params, problems = module.params, Problems()
    definition, collection = params["definition"], Path(params["collection_dir"])
    output, cache = Path(params["output_dir"]), Path(params["cache_dir"])
    require_programs(planning.EC2_PROGRAMS)
    versions = {
        "packer": program_version(module, ["packer", "--version"], r"(\d+\.\d+\.\d+)"),
        "ansible": ansible_version,
    }
    problems += planning.space_problems(
        {"cache folder": (cache, planning.EC2_SPACE), "output folder": (output, planning.EC2_SPACE)}
    )
    role_vars, kubernetes = resolve_roles(params, problems)
    decision = problems.collect(
        _ec2_build.decide, definition, allow_no_kvm=params["allow_no_kvm"], environment=os.environ,
        packer_version=tuple(int(part) for part in versions["packer"].split(".")),
    )  # fmt: skip
    problems.end()
    for warning in decision.warnings():
        module.warn(warning)
    settings = decision.settings
    outside = {f"version of {name}": version for name, version in versions.items()}
    outside |= {"source AMI": decision.source_ami["id"], "key of the AMI": decision.kms_key_arn}
    counted = {name: settings[name] for name in _ec2_build.OF_THE_AMI}
    inputs = planning.image_inputs(
        {**definition, "amazon_ebs": counted}, collection, {**outside, **kubernetes_inputs(kubernetes)}, []
    )
    ec2 = _ec2_build.ec2_of(settings)
    reasons = planning.why_build_ami(
        inputs, settings["region"], output / "manifest.json", lambda image_id: _ec2_build.why_again(ec2, image_id)
    )
    if params["rebuild"]:
        reasons.append("rebuild was asked for")
    return {
        "accelerator": {},
        "archive_state": [],
        "build": bool(reasons),
        "build_method": {"name": "vm", "reason": "an instance in EC2"},
        "build_fingerprint": planning.build_fingerprint(inputs),
        "ec2": {
            "settings": {**settings, "root_device": decision.source_ami["root_device"]},
            "source_ami": decision.source_ami,
            "kms_key_arn": decision.kms_key_arn,
        },
        "reasons": reasons,
        "cpus": 0,
        "fingerprint": planning.value_digest(inputs),
        "inputs": inputs,
        "kubernetes": {key: kubernetes[key] for key in ("source", "reason", "release")} if kubernetes else {},
        "mirrors": {"archive": None, "security": None},
        "layers": [],
        "role_vars": role_vars,
        "source_date_epoch": 0,
        "timeouts": {"ssh": 600, "build": 7200},
        "versions": versions,
        "lines": [
            f"image        {definition['name']}: {definition.get('description', '')}".rstrip(": "),
            *decision.lines(),
            f"roles        {', '.join([*definition['roles'], 'cleanup'])}",
            f"tools        Packer {versions['packer']}, ansible-core {versions['ansible']}",
            *kubernetes_line(kubernetes),
            "proof        what EC2 says of encryption and key; nothing here can boot an AMI, so no check of it is run",
            f"output       {output}",
            f"build        {'yes: ' + '; '.join(reasons) if reasons else NOTHING_TO_DO}",
        ],
    }


def make_plan(module: AnsibleModule) -> dict[str, t.Any]:
    """Decide everything about a local disk; PlanError lists all problems at once."""
    params, problems = module.params, Problems()
    definition, collection = params["definition"], Path(params["collection_dir"])
    output, cache = Path(params["output_dir"]), Path(params["cache_dir"])
    bootstrap = planning.BOOTSTRAP_PROGRAMS if definition["base"]["method"] == "bootstrap" else {}
    require_programs({**planning.PROGRAMS, **bootstrap})
    versions = {
        "packer": program_version(module, ["packer", "--version"], r"(\d+\.\d+\.\d+)"),
        "qemu": program_version(module, ["qemu-system-x86_64", "--version"], r"version (\d+\.\d+(?:\.\d+)?)"),
        "ansible": ansible_version,
    }
    qemu_version = tuple(int(part) for part in versions["qemu"].split("."))
    accelerator = problems.collect(planning.choose_accelerator, params["accelerator"], params["kvm"], qemu_version)
    if definition.get("needs_kvm") and accelerator:
        problems += planning.nested_kvm_problems(params["kvm"], accelerator, params["allow_no_kvm"])
    method = accelerator and problems.collect(
        planning.choose_build_method, params["build_method"] or definition["build_method"], accelerator,
        definition["base"], params["running_system_roles"], lambda: tree_problem(cache),
    )  # fmt: skip
    folders = {
        "cache folder": (cache, planning.CACHE_SPACE),
        "output folder": (output, planning.OUTPUT_SPACE),
    }
    problems += planning.space_problems(folders)
    for part in ("base_disks", "trees"):
        problems.collect(own_cache, cache / part)
    guests = 2
    problems += planning.memory_problems(definition["memory"], guests, _host_memory.available())
    mirrors, state = problems.collect(archive, definition) or (Mirrors(), ArchiveState((), 0))
    role_vars, kubernetes = resolve_roles(params, problems)
    problems.end()
    outside = {f"version of {name}": version for name, version in versions.items()}
    outside |= {"accelerator": accelerator.name, "cpu model": accelerator.cpu_model, "build method": method.name}
    outside |= kubernetes_inputs(kubernetes)
    inputs = planning.image_inputs(definition, collection, outside, state.digests)
    image = output / f"{definition['name']}.qcow2"
    reasons = planning.why_build(inputs, image, output / "manifest.json")
    if params["rebuild"]:
        reasons.append("rebuild was asked for")
    factor = 1 if accelerator.name == "kvm" else 4
    cpus = min(definition["cpus"], os.cpu_count() or 1)
    return {
        "accelerator": asdict(accelerator),
        "archive_state": list(state.digests),
        "build": bool(reasons),
        "build_method": asdict(method),
        "build_fingerprint": planning.build_fingerprint(inputs),
        "ec2": {},
        "reasons": reasons,
        "cpus": cpus,
        "fingerprint": planning.value_digest(inputs),
        "inputs": inputs,
        "kubernetes": {key: kubernetes[key] for key in ("source", "reason", "release")} if kubernetes else {},
        "mirrors": asdict(mirrors),
        "layers": planning.layers(definition["roles"], role_vars, collection, {"ansible": versions["ansible"]}),
        "role_vars": role_vars,
        "source_date_epoch": state.epoch,
        "timeouts": {"ssh": 150 * factor, "build": 1800 * factor, "verify": 450 * factor},
        "versions": versions,
        "lines": [
            f"image        {definition['name']}: {definition.get('description', '')}".rstrip(": "),
            f"base         {definition['base']['method']} {definition['base'].get('release', '')}".rstrip(),
            f"method       {method.name} ({method.reason})",
            f"roles        {', '.join([*definition['roles'], 'cleanup'])}",
            f"checks       {', '.join(definition['checks'])}",
            f"accelerator  {accelerator.name} ({accelerator.reason}), CPU model {accelerator.cpu_model}, {cpus} CPUs, "
            f"{definition['memory']} MiB",
            f"tools        Packer {versions['packer']}, QEMU {versions['qemu']}, ansible-core {versions['ansible']}",
            *kubernetes_line(kubernetes),
            f"output       {output}",
            f"build        {'yes: ' + '; '.join(reasons) if reasons else NOTHING_TO_DO}",
        ],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "definition": {"type": "dict", "required": True},
            "kvm": {"type": "dict", "default": {}},
            "accelerator": {"type": "str", "choices": ["auto", "kvm", "tcg"], "default": "auto"},
            "build_method": {"type": "str", "choices": ["auto", "vm", "rootfs"]},
            "allow_no_kvm": {"type": "bool", "default": False},
            "running_system_roles": {"type": "dict", "default": {}},
            "kubernetes_packages": {"type": "str", "choices": ["auto", "upstream", "mirror", "distribution"]},
            "collection_dir": {"type": "path", "required": True},
            "cache_dir": {"type": "path", "required": True},
            "output_dir": {"type": "path", "required": True},
            "rebuild": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        ami = module.params["definition"]["builder"] == "amazon-ebs"
        plan = plan_ami(module) if ami else make_plan(module)
    except planning.PlanError as exc:
        module.fail_json(msg=f"This image cannot be built here, nothing was changed:\n{exc}")
    except (AwsError, OSError) as exc:
        module.fail_json(msg=f"Planning failed: {exc}")
    module.exit_json(changed=False, **plan)


if __name__ == "__main__":
    main()
