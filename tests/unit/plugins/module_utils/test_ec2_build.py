# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided about a build in EC2 without asking AWS; the rest is in tests/integration/test_amazon_ebs.py."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _ec2_build
from ansible_collections.goldsmith.images.plugins.module_utils._kvm_ec2 import FEATURE, Instance

NOTHING = {"ssh_source_cidrs": [], "security_group_ids": [], "ssh_interface": "public_ip"}


@pytest.mark.parametrize(("size", "gib"), [("10G", 10), ("1T", 1024), ("1500M", 2), ("2048M", 2)])
def test_a_volume_is_a_whole_number_of_gib(size: str, gib: int) -> None:
    assert _ec2_build.volume_size(size) == gib


def test_the_region_comes_from_the_definition_then_from_the_environment() -> None:
    environment = {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "us-east-1"}
    assert _ec2_build.region_of({"region": "eu-north-1"}, environment) == "eu-north-1"
    assert _ec2_build.region_of({}, environment) == "eu-west-1"
    assert _ec2_build.region_of({}, {"AWS_DEFAULT_REGION": "us-east-1"}) == "us-east-1"
    with pytest.raises(_ec2_build.Ec2BuildError, match="no region is known. Set AWS_REGION"):
        _ec2_build.region_of({}, {})


@pytest.mark.parametrize(
    ("kind", "wanted", "needed", "said"),
    [
        (Instance("m5.large", "plan", []), False, False, ""),
        (Instance("m5.large", "plan", []), False, True, "m5.large cannot run VMs"),
        (Instance("m5.large", "plan", [], True), True, False, "amazon_ebs.nested_virtualization: The instance type"),
        (Instance("m5.metal", "plan", []), False, True, ""),
        (Instance("m8i.large", "plan", [FEATURE]), False, True, "with amazon_ebs.nested_virtualization: true"),
        (Instance("m8i.large", "plan", [FEATURE], True), True, True, ""),
        (Instance("m7i.large", "plan", []), False, True, "m7i.large cannot run VMs"),
    ],
)
def test_an_instance_that_could_not_run_vms_is_refused_where_they_are_needed(
    kind: Instance, wanted: bool, needed: bool, said: str
) -> None:
    problem = _ec2_build.nested_problem(kind, {"nested_virtualization": wanted}, needed)
    assert bool(problem) is bool(said)
    assert said in problem
    assert ("image_allow_no_kvm=true" in problem) is (needed and bool(said))


@pytest.fixture
def answer() -> Iterator[tuple[str, list[bytes]]]:
    """A server that says what it is given; its URL and what it says."""
    says: list[bytes] = [b""]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(says[0])

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", says
    server.shutdown()
    server.server_close()


def test_ssh_is_open_for_the_address_of_the_builder_alone(answer: tuple[str, list[bytes]]) -> None:
    url, says = answer
    says[0] = b"192.0.2.7\n"
    assert _ec2_build.ssh_sources(NOTHING, url) == ["192.0.2.7/32"]
    assert _ec2_build.ssh_sources({**NOTHING, "ssh_source_cidrs": ["10.0.0.0/8"]}, url) == ["10.0.0.0/8"]
    assert _ec2_build.ssh_sources({**NOTHING, "security_group_ids": ["sg-1"]}, url) == []


@pytest.mark.parametrize("text", [b"", b"<html>log in first</html>", b"0.0.0.0/0"])
def test_an_answer_that_is_no_address_opens_nothing(answer: tuple[str, list[bytes]], text: bytes) -> None:
    url, says = answer
    says[0] = text
    with pytest.raises(_ec2_build.Ec2BuildError, match="amazon_ebs.ssh_source_cidrs, such as"):
        _ec2_build.ssh_sources(NOTHING, url)


def test_an_unknown_address_opens_nothing() -> None:
    with pytest.raises(_ec2_build.Ec2BuildError, match="cannot be found out"):
        _ec2_build.ssh_sources(NOTHING, "http://127.0.0.1:9/")
    with pytest.raises(_ec2_build.Ec2BuildError, match="private_ip"):
        _ec2_build.ssh_sources({**NOTHING, "ssh_interface": "private_ip"}, "http://127.0.0.1:9/")
