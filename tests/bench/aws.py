# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-aws`: ami_copy_encrypt and ami_import in a simulated cloud, against what one would do instead.

Copies take SLOWEST seconds or less, a fifth of what real ones of ten minutes take. So the intervals in which all sides
look for their ends are a fifth too: 15 s become 3 s in the waiters of the AWS CLI and of community.aws.ec2_ami_copy,
and 5 s become 1 s in ours. What processes and Python take is not scaled: with real copies it weighs five times less.
The loops copy one image after the other, so both are measured with 2 targets and counted up to all 60: what a target
takes beside its copy, times 60, and the time of all copies. No loop is run over all 60. Since they wait nearly all the
time, they run at the same time as ours, in an account of their own. The side of the CLI is made by `aws` where that is
on PATH, else by boto3 with the same calls and waiter; `program` in the JSON says which, beside each ratio.
Prints JSON and writes it to output/bench-aws.json; exit status 1 if a figure misses its target.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ansible_collections.community.aws as community_aws
import boto3
import botocore.loaders
from ansible_collections.goldsmith.images.plugins.module_utils import _ebs_upload
from ansible_collections.goldsmith.images.tests.support.cloud import KEYS, Call, Cloud
from ansible_collections.goldsmith.images.tests.support.cloud_ebs import blocks, ebs_direct

CHECKOUT = Path(__file__).resolve().parents[2]
HOME_REGION = "eu-west-1"
ACCOUNTS = ("222222222222", "333333333333", "444444444444")
KEY = "alias/images"
SCALE = 1 / 5
SLOWEST = 120.0
WAITER, POLL = 15 * SCALE, 5 * SCALE
LOOPS, LOOPED = "555555555555", (0, 9)  # the account of the loops, and which of the regions they are measured with
LIMITS = {"wall_to_slowest_copy": 1.15, "bytes_sent_to_allocated": 1.02}
LATENCY = 0.01  # seconds that each block takes beside its transfer

Place = tuple[str, str]  # account, region


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Bench:
    """A cloud, and a folder to work in."""

    def __init__(self, cloud: Cloud, work: Path) -> None:
        self.cloud = cloud
        self.work = work
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ENDPOINT_URL": cloud.url,
            "AWS_ACCESS_KEY_ID": KEYS["access_key"],
            "AWS_SECRET_ACCESS_KEY": KEYS["secret_key"],
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        }
        described = self.client("ec2", HOME_REGION).describe_regions()["Regions"]
        enabled = {region["RegionName"] for region in described if region["OptInStatus"] != "not-opted-in"}
        self.regions = sorted(enabled & set(boto3.session.Session().get_available_regions("ec2")))[:20]
        self.slowest = SLOWEST
        cloud.polls, cloud.seconds = 0, lambda account, region: self.duration(region)

    def duration(self, region: str) -> float:
        """How long a copy to a region takes: two fifths of the slowest, and up to it."""
        return self.slowest * (0.4 + 0.6 * self.regions.index(region) / (len(self.regions) - 1))

    def client(self, service: str, region: str, keys: dict[str, str] | None = None) -> Any:
        keys = keys or {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
        return boto3.client(service, region_name=region, endpoint_url=self.cloud.url, **keys)

    def keys_of(self, account: str) -> dict[str, str]:
        """Credentials of an account, as boto3's clients take them."""
        role = f"arn:aws:iam::{account}:role/copier"
        found = self.client("sts", HOME_REGION).assume_role(RoleArn=role, RoleSessionName="bench")["Credentials"]
        names = {
            "AccessKeyId": "access_key_id",
            "SecretAccessKey": "secret_access_key",
            "SessionToken": "session_token",
        }
        return {f"aws_{name}": found[key] for key, name in names.items()}

    def play(self, title: str, task: dict[str, Any], collections: str = "") -> tuple[float, dict[str, Any]]:
        """Run one task with Ansible; return its seconds, without the start of ansible-playbook, and its result."""
        say(f"{title} ...")
        path = Path(tempfile.mkdtemp(dir=self.work)) / "play.yml"
        path.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]), encoding="utf-8")
        paths = [collections, str(CHECKOUT / ".venv/collections")]
        done = subprocess.run(
            ["ansible-playbook", str(path)],
            env={**self.environment, "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"bench: {title} failed:\n{done.stdout[-8000:]}{done.stderr[-4000:]}")
        [play] = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
        [found] = play["tasks"]
        begin, end = (datetime.datetime.fromisoformat(found["task"]["duration"][name]) for name in ("start", "end"))
        seconds = (end - begin).total_seconds()
        say(f"{title}: {seconds:.1f} s")
        return seconds, found["hosts"]["localhost"]

    # --------------------------------------------------------------------------------------------------------- copies
    def ours(self, regions: list[str], accounts: tuple[str, ...], slowest: float) -> dict[str, Any]:
        """Copy with ami_copy_encrypt; return what that took."""
        self.slowest = slowest
        begin, asked = len(self.cloud.calls), []
        self.cloud.before = lambda call: asked.append((call.account, call.region, call.action, time.monotonic()))
        title = f"ami_copy_encrypt, {len(regions)} regions, {len(accounts)} accounts"
        seconds, _result = self.play(
            title,
            {
                "goldsmith.images.ami_copy_encrypt": {
                    "source": {"image_id": self.cloud.image(HOME_REGION), "region": HOME_REGION},
                    "regions": regions,
                    "accounts": [{"role_arn": f"arn:aws:iam::{account}:role/copier"} for account in accounts],
                    "kms_key_ids": dict.fromkeys(regions, KEY),
                    "poll": POLL,
                    "journal": str(self.work / "journal"),
                }
            },
        )
        self.cloud.before = lambda call: None
        calls = Counter(call.action for call in self.cloud.calls[begin:] if call.account != LOOPS)
        looks: dict[Place, list[float]] = {}
        for account, region, action, at in asked:
            if action == "DescribeImages" and account in accounts:
                looks.setdefault((account, region), []).append(at)
        gaps = [later - earlier for times in looks.values() for earlier, later in zip(times, times[1:])]
        wanted = max(map(self.duration, regions))
        return {
            "seconds": round(seconds, 2),
            "slowest_copy_seconds": wanted,
            "ratio_to_slowest_copy": round(seconds / wanted, 3),
            "calls": calls.total(),
            "calls_per_target": round(calls.total() / len(regions) / len(accounts), 1),
            "calls_by_action": dict(calls.most_common()),
            "describe_images_per_account_and_region": {
                "most": max(map(len, looks.values())),
                # No two of them belong to the same poll.
                "shortest_seconds_between_two": round(min(gaps), 3),
            },
        }

    def source(self) -> str:
        """An image that the account of the loops may copy."""
        image_id = self.cloud.image(HOME_REGION)
        ec2 = self.client("ec2", HOME_REGION)
        ec2.modify_image_attribute(ImageId=image_id, LaunchPermission={"Add": [{"UserId": LOOPS}]})
        [image] = ec2.describe_images(ImageIds=[image_id])["Images"]
        for mapping in image["BlockDeviceMappings"]:
            ec2.modify_snapshot_attribute(
                SnapshotId=mapping["Ebs"]["SnapshotId"],
                Attribute="createVolumePermission",
                OperationType="add",
                UserIds=[LOOPS],
            )
        return image_id

    def cli_loop(self, source: str, regions: list[str], keys: dict[str, str], program: str | None) -> float:
        """`aws ec2 copy-image` and `aws ec2 wait image-available` for each target; without the CLI, the same calls."""
        models = self.work / "models/ec2/2016-11-15"
        models.mkdir(parents=True)
        waiters = botocore.loaders.Loader().load_service_model("ec2", "waiters-2")
        waiters["waiters"]["ImageAvailable"]["delay"] = WAITER
        (models / "waiters-2.json").write_text(json.dumps(waiters), encoding="utf-8")
        environment = {**self.environment, "AWS_DATA_PATH": str(self.work / "models")}
        environment.update({name.upper(): value for name, value in keys.items()})
        begin = time.monotonic()
        for region in regions:
            if program:
                copy = [program, "ec2", "copy-image", "--source-image-id", source, "--source-region", HOME_REGION]
                copy += ["--name", "golden", "--encrypted", "--kms-key-id", KEY, "--region", region]
                done = subprocess.run(copy, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                wait = [program, "ec2", "wait", "image-available", "--region", region, "--image-ids"]
                subprocess.run([*wait, json.loads(done.stdout)["ImageId"]], env=environment, check=True)
            else:
                ec2 = self.client("ec2", region, keys)
                wanted = {"SourceImageId": source, "SourceRegion": HOME_REGION, "Name": "golden"}
                image_id = ec2.copy_image(**wanted, Encrypted=True, KmsKeyId=KEY)["ImageId"]
                waiter = ec2.get_waiter("image_available")
                waiter.wait(ImageIds=[image_id], WaiterConfig={"Delay": WAITER, "MaxAttempts": 1000})
        return time.monotonic() - begin

    def ansible_loop(self, source: str, regions: list[str], keys: dict[str, str]) -> float:
        """community.aws.ec2_ami_copy for each target, with the pause in its waiter scaled."""
        tree = self.work / "collections/ansible_collections/community/aws"
        shutil.copytree(Path(next(iter(community_aws.__path__))), tree)
        module = tree / "plugins/modules/ec2_ami_copy.py"
        text = module.read_text(encoding="utf-8")
        if text.count("delay = 15") != 1:
            sys.exit(f"bench: {module} does not wait as it did")
        module.write_text(text.replace("delay = 15", f"delay = {WAITER}"), encoding="utf-8")
        task = {
            "community.aws.ec2_ami_copy": {
                "source_region": HOME_REGION,
                "source_image_id": source,
                "region": "{{ item }}",
                "name": "golden",
                "encrypted": True,
                "kms_key_id": KEY,
                "wait": True,
                "access_key": keys["aws_access_key_id"],
                "secret_key": keys["aws_secret_access_key"],
                "session_token": keys["aws_session_token"],
            },
            "loop": regions,
        }
        return self.play("community.aws.ec2_ami_copy in a loop", task, str(self.work / "collections"))[0]

    def beside_the_loops(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Copy to all targets with ami_copy_encrypt and to some with the loops; return what each of them took."""
        self.slowest = SLOWEST
        regions = [self.regions[number] for number in LOOPED]
        program, source, keys = shutil.which("aws"), self.source(), self.keys_of(LOOPS)
        with ThreadPoolExecutor() as pool:
            loops = {
                "aws_cli": pool.submit(self.cli_loop, source, regions, keys, program),
                "ec2_ami_copy": pool.submit(self.ansible_loop, source, regions, keys),
            }
            ours = self.ours(self.regions, ACCOUNTS, SLOWEST)
            seconds = {name: loop.result() for name, loop in loops.items()}
        alone = sum(map(self.duration, regions))
        everything = sum(map(self.duration, self.regions)) * len(ACCOUNTS)
        targets = len(self.regions) * len(ACCOUNTS)
        programs = {
            "aws_cli": "aws ec2 copy-image and aws ec2 wait image-available"
            if program
            else "no aws on PATH: the same calls and waiter by boto3, without the start of processes",
            "ec2_ami_copy": "community.aws.ec2_ami_copy in a loop of ansible-playbook",
        }
        report: dict[str, Any] = {}
        for name, measured in seconds.items():
            beside = (measured - alone) / len(regions)
            whole = everything + beside * targets
            report[name] = {
                "program": programs[name],
                "measured_targets": len(regions),
                "measured_seconds": round(measured, 1),
                "beside_the_copy_seconds_per_target": round(beside, 2),
                "all_targets": targets,
                "counted_up_to_all_targets_seconds": round(whole, 1),
                "ratio_to_ami_copy_encrypt": round(whole / ours["seconds"], 1),
            }
        return ours, report

    # --------------------------------------------------------------------------------------------------------- import
    def disk(self) -> Path:
        """A raw disk of 10 GiB, with 32 pieces of data of 32 MiB each somewhere in it, as file systems scatter them."""
        path, mebi = self.work / "disk.raw", 1024**2
        places = random.Random(1)
        with path.open("wb") as file:
            file.truncate(10 * 1024 * mebi)
            for number in range(32):
                file.seek(number * 320 * mebi + places.randrange(0, 288 * mebi, 4096))
                file.write(os.urandom(32 * mebi))
        return path

    def imported(self, disk: Path) -> dict[str, Any]:
        """Import it with ami_import, and send the same blocks one after the other; return what that took."""

        def slow(call: Call) -> None:
            if "/blocks/" in call.action:
                time.sleep(LATENCY)

        self.cloud.before = slow
        task = {"path": str(disk), "region": HOME_REGION, "name": "imported", "state_dir": str(self.work / "state")}
        _seconds, ours = self.play("ami_import", {"goldsmith.images.ami_import": {**task, "no_progress": True}})
        stored = len(blocks(ours["snapshot_id"])) * _ebs_upload.BLOCK
        if stored != ours["bytes_sent"]:
            sys.exit(f"bench: {ours['bytes_sent']} bytes are said to be sent, {stored} arrived")
        say("one block after the other ...")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds = pool.submit(one_block_after_the_other, self.cloud.url, disk).result()
        say(f"one block after the other: {seconds:.1f} s")
        self.cloud.before = lambda call: None
        allocated = disk.stat().st_blocks * 512
        return {
            "virtual_bytes": disk.stat().st_size,
            "allocated_bytes": allocated,
            "bytes_sent": ours["bytes_sent"],
            "bytes_sent_to_allocated": round(ours["bytes_sent"] / allocated, 4),
            "latency_seconds": LATENCY,
            "phases": {phase["phase"]: phase["seconds"] for phase in ours["phases"]},
            "upload_seconds": ours["seconds"],
            "one_block_after_the_other_seconds": round(seconds, 2),
            "one_block_after_the_other_to_ami_import": round(seconds / ours["seconds"], 2),
        }


def one_block_after_the_other(url: str, disk: Path) -> float:
    """Send the blocks with data as a plain script does, in a process of its own; return the seconds."""
    keys = {"aws_access_key_id": KEYS["access_key"], "aws_secret_access_key": KEYS["secret_key"]}
    ebs = boto3.client("ebs", region_name=HOME_REGION, endpoint_url=url, **keys)
    numbers = _ebs_upload.data_blocks(disk)
    begin = time.monotonic()
    snapshot = ebs.start_snapshot(VolumeSize=_ebs_upload.volume_gibibytes(disk))["SnapshotId"]
    with disk.open("rb") as file:
        for number in numbers:
            _ebs_upload.put(ebs, snapshot, number, _ebs_upload.read_block(file.fileno(), number))
    return time.monotonic() - begin


def main() -> None:
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="gi-bench-aws-") as folder, Cloud.running() as cloud, ebs_direct(cloud):
        bench = Bench(cloud, Path(folder))
        for account in (*ACCOUNTS, LOOPS):
            for region in bench.regions:
                cloud.key(region, account, KEY)
        one, regions = ACCOUNTS[:1], bench.regions
        growth = {}
        for count, accounts in ((1, one), (5, one), (20, one), (20, ACCOUNTS)):
            found = bench.ours(regions[-count:], accounts, SLOWEST / 40)
            growth[f"{count}x{len(accounts)}"] = {
                name: found[name] for name in ("calls", "calls_per_target", "seconds")
            }
        whole, loops = bench.beside_the_loops()
        load.append(os.getloadavg()[0])
        imported = bench.imported(bench.disk())
    once = whole["describe_images_per_account_and_region"]["shortest_seconds_between_two"] >= 0.9 * POLL
    result = {
        "host": {"cpus": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release()},
        # Other work on the host makes everything slower but the simulated copies themselves.
        "load_before_and_after_the_copies": [round(each, 1) for each in load],
        "scale": {"copies_and_polls": SCALE, "slowest_copy_seconds": SLOWEST, "waiter_seconds": WAITER, "poll": POLL},
        "copies": {"regions": len(regions), "accounts": len(ACCOUNTS), "ami_copy_encrypt": whole, "instead": loops},
        "calls_by_targets": growth,
        "import": imported,
        "reached": {
            "wall_to_slowest_copy": whole["ratio_to_slowest_copy"] <= LIMITS["wall_to_slowest_copy"],
            "one_describe_images_per_account_region_and_poll": once,
            "bytes_sent_to_allocated": imported["bytes_sent_to_allocated"] <= LIMITS["bytes_sent_to_allocated"],
        },
    }
    text = json.dumps(result, indent=2)
    (CHECKOUT / "output").mkdir(exist_ok=True)
    (CHECKOUT / "output" / "bench-aws.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    sys.exit(0 if all(result["reached"].values()) else 1)


if __name__ == "__main__":
    main()
