# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cloud_init_validate against the real dash, shellcheck and checkbashisms."""

from __future__ import annotations

import base64
import email.mime.multipart
import email.mime.text
import gzip
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_report import Report, Request
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_validate import validate

TOOLS = ("dash", "bash", "shellcheck", "checkbashisms")
missing = [name for name in TOOLS if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")

SHELLS = ["syntax", "shellcheck", "checkbashisms"]

# Code, dash's exit status when it runs it (the truth that the checkers are measured by), what each checker says of it,
# and what in it they should point at. checkbashisms of other versions may see more.
DASH, SHELLCHECK, CHECKBASHISMS = "dash", "shellcheck", "checkbashisms"
CONSTRUCTS = [
    ("cat <<<x", 2, {DASH: "syntax", SHELLCHECK: "SC3011", CHECKBASHISMS: "bashism"}, "<<<"),
    ("exec > >(tee f) 2>&1", 2, {DASH: "syntax", SHELLCHECK: "SC3001", CHECKBASHISMS: "bashism"}, "> >("),
    ("cat <(date)", 2, {DASH: "syntax", SHELLCHECK: "SC3001", CHECKBASHISMS: "bashism"}, "<("),
    ("a=(1 2)", 2, {DASH: "syntax", SHELLCHECK: "SC3030", CHECKBASHISMS: None}, "a=("),
    ("function f { date; }", 2, {DASH: "syntax", SHELLCHECK: "SC2113", CHECKBASHISMS: "bashism"}, "function"),
    (
        "for ((i=0;i<3;i=i+1)); do date; done",
        2,
        {DASH: "syntax", SHELLCHECK: "SC3005", CHECKBASHISMS: "bashism"},
        "for",
    ),
    ("date |& cat", 2, {DASH: "syntax", SHELLCHECK: "SC3029", CHECKBASHISMS: "bashism"}, "|&"),
    ("date &>/dev/null", 0, {DASH: None, SHELLCHECK: "SC3020", CHECKBASHISMS: "bashism"}, "&>"),
    ("[[ -e / ]]", 127, {DASH: None, SHELLCHECK: "SC3010", CHECKBASHISMS: "bashism"}, "[["),
    ("source ./x", 127, {DASH: None, SHELLCHECK: "SC3046", CHECKBASHISMS: "bashism"}, "source"),
    ("let i=1", 127, {DASH: None, SHELLCHECK: "SC3039", CHECKBASHISMS: "bashism"}, "let"),
    ("pushd /", 127, {DASH: None, SHELLCHECK: "SC3044", CHECKBASHISMS: "bashism"}, "pushd"),
    ("coproc date", 127, {DASH: None, SHELLCHECK: "SC3032", CHECKBASHISMS: "bashism"}, "coproc"),
    ("echo ${x//a/b}", 2, {DASH: None, SHELLCHECK: "SC3060", CHECKBASHISMS: "bashism"}, "${x"),
    ("set -o pipefail", None, {DASH: None, SHELLCHECK: "SC3040", CHECKBASHISMS: None}, "pipefail"),
    ("echo {1..3}", 0, {DASH: None, SHELLCHECK: "SC3009", CHECKBASHISMS: "bashism"}, "{1"),
    ("echo $'a'", 0, {DASH: None, SHELLCHECK: "SC3003", CHECKBASHISMS: "bashism"}, "$'"),
    ("[ $x == b ]", 2, {DASH: None, SHELLCHECK: "SC3014", CHECKBASHISMS: "bashism"}, "=="),
    ("echo $RANDOM", 0, {DASH: None, SHELLCHECK: "SC3028", CHECKBASHISMS: "bashism"}, "$RANDOM"),
    ("echo -e x", 0, {DASH: None, SHELLCHECK: "SC3036", CHECKBASHISMS: "bashism"}, "-e"),
    ("local q=1", 2, {DASH: None, SHELLCHECK: "SC2168", CHECKBASHISMS: None}, "local"),
]


def look(content: str, **options: Any) -> Report:
    options.setdefault("checkers", SHELLS)
    return validate(Request(content=content, **options))


def of(report: Report, checker: str) -> list[Any]:
    return [found for found in report.findings if found.checker == checker]


@pytest.mark.parametrize(("code", "status", "expected", "at"), CONSTRUCTS, ids=[row[0] for row in CONSTRUCTS])
def test_who_sees_what_in_a_script(code: str, status: int | None, expected: dict[str, str | None], at: str) -> None:
    report = look(f"#!/bin/sh\nset -e\n{code}\n")
    for checker, wanted in expected.items():
        codes = [found.code for found in of(report, checker)]
        assert (wanted in codes) if wanted else (not codes or checker == CHECKBASHISMS), report.findings
    for found in of(report, DASH):
        assert (found.line, code[found.column - 1 :][: len(at)]) == (3, at)
    assert any(found.severity == "error" for found in report.findings)
    assert not report.as_result("error")["valid"]


@pytest.mark.parametrize(("code", "status", "expected", "at"), CONSTRUCTS, ids=[row[0] for row in CONSTRUCTS])
def test_what_dash_really_does(
    code: str, status: int | None, expected: dict[str, str | None], at: str, tmp_path: Path
) -> None:
    """The table's truth: whoever passes `dash -n` and is in it fails when it runs, or does something else."""
    parsed = subprocess.run(["dash", "-n", "-c", code], capture_output=True, check=False)
    assert (parsed.returncode != 0) is (expected[DASH] is not None)
    done = subprocess.run(["dash", "-c", code], cwd=tmp_path, capture_output=True, check=False)
    # Debian 13's dash knows pipefail, Debian 12's and Ubuntu 24.04's end there.
    assert done.returncode == status or (status is None and done.returncode in (0, 2)), done


def in_style(style: str, code: str) -> tuple[str, int]:
    """A runcmd item (or a script's line) that holds the code, and the column where the code begins."""
    if style == "single":
        return "  - '{}'\n".format(code.replace("'", "''")), 6
    if style == "double":
        return '  -   "{}"\n'.format(code.replace("\\", "\\\\").replace('"', '\\"')), 8
    if style == "block":
        return f"  - |\n      # a comment\n\n      {code}\n", 7
    if style == "folded":
        return f"  - >-\n    date\n    -u\n\n    {code}\n", 5
    return f"    {code}\n", 5


@pytest.mark.parametrize("style", ["single", "double", "block", "folded", "written"])
def test_positions_are_those_in_the_users_file(style: str) -> None:
    content = "#cloud-config\nruncmd:\n"
    if style == "written":
        content = "#cloud-config\nwrite_files:\n- path: /x\n  content: |\n    #!/bin/sh\n"
    expected = set()
    for code, _unused, says, at in CONSTRUCTS:
        item, column = in_style(style, code)
        content += item
        expected.add((content.count("\n"), says[SHELLCHECK], column, column + code.index(at) + len(at)))
    found = {(each.line, each.code): each.column for each in of(look(content, size_limit=0), SHELLCHECK)}
    for line, code, first, last in expected:
        # shellcheck points at the construct, or at the word that it is in.
        assert first <= found[(line, code)] <= last, content.split("\n")[line - 1]


def test_the_story_of_the_half_made_machine(tmp_path: Path) -> None:
    """What cloud-init's schema calls valid: dash ends in it, with the message that is foretold."""
    content = """\
#cloud-config
runcmd:
  - touch one
  - exec > >(tee log) 2>&1
  - touch three
"""
    report = look(content, severity="error")
    [problem] = report.problems("error")
    assert problem.startswith("content:4:10: error: Syntax error: redirection unexpected.")
    assert "`cmd >file 2>&1`" in problem and "#!/bin/bash" in problem
    script = "touch one\nexec > >(tee log) 2>&1\ntouch three\n"
    done = subprocess.run(["dash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"] or "redirection unexpected" in done.stderr


def test_what_runs_under_bash_may_be_bash() -> None:
    report = look("#!/bin/bash\nset -euo pipefail\n[[ -e / ]] && cat <<<x\nexec > >(tee /dev/null)\n")
    assert [found for found in report.findings if found.severity != "info"] == []
    assert report.scripts[0]["checkers"] == ["bash", "shellcheck"]
    assert look("#!/bin/sh\nset -e\ncat <<<x\n", shell="bash").problems("warning") == []
    [found] = of(look("#!/bin/bash\nset -e\nif date; then\n"), "bash")
    assert found.code == "syntax"


@pytest.mark.parametrize(
    ("shebang", "shell"),
    [
        ("#!/bin/sh -e", "dash"),
        ("#! /usr/bin/env bash", "bash"),
        ("#!/usr/bin/env -S bash -e", "bash"),
        ("#!/bin/busybox sh", "dash"),
        ("#!/usr/bin/python3", ""),
    ],
)
def test_the_first_line_says_which_shell(shebang: str, shell: str) -> None:
    report = look(f"{shebang}\ncat <<<x\n")
    assert report.scripts[0]["shell"] == shell
    assert ("syntax" in [found.code for found in report.findings]) is (shell == "dash")
    assert report.evaluated is bool(shell)


MULTIPART = """\
Content-Type: multipart/mixed; boundary="=B="
MIME-Version: 1.0

--=B=
Content-Type: text/cloud-config; charset="us-ascii"
Content-Disposition: attachment; filename="base.yml"

#cloud-config
runcmd:
  - set -e
  - cat <<<one
--=B=
Content-Type: text/x-shellscript

#!/bin/sh
set -e
cat <<<two
--=B=
Content-Type: text/x-shellscript
Content-Transfer-Encoding: base64

@BASE64@
--=B=--
"""


def positions(report: Report) -> list[tuple[int, int, str]]:
    return [(found.line, found.column, found.origin) for found in of(report, DASH)]


def test_multipart() -> None:
    encoded = base64.b64encode(b"#!/bin/sh\nset -e\n\ncat <<<three\n").decode()
    report = look(MULTIPART.replace("@BASE64@", encoded))
    assert positions(report) == [
        (11, 9, "part 1 (base.yml), runcmd"),
        (17, 5, "part 2"),
        (4, 5, "part 3, part 3"),
    ]


def test_multipart_as_python_writes_it() -> None:
    message = email.mime.multipart.MIMEMultipart()
    message.attach(email.mime.text.MIMEText("#!/bin/sh\nset -e\ncat <<<é\n", "x-shellscript", "utf-8"))
    assert positions(look(message.as_string())) == [(3, 5, "part 1, part 1")]


def test_gzip_is_unpacked_and_measured(tmp_path: Path) -> None:
    path = tmp_path / "user-data"
    path.write_bytes(gzip.compress(b"#cloud-config\nruncmd:\n- set -e\n- cat <<<x\n"))
    report = validate(Request(src=[str(path)], checkers=SHELLS))
    assert positions(report) == [(4, 7, "runcmd, unpacked")]
    [size] = report.size
    assert size["raw"] == size["gzip"] == path.stat().st_size


def test_templates_keep_their_positions() -> None:
    report = look(
        "## template: jinja\n#cloud-config\n{% if v1.region %}\nruncmd:\n  - set -e\n"
        "  - echo {{ v1.local_hostname }} && cat <<<x\n{% endif %}\n"
    )
    assert positions(report) == [(6, 41, "runcmd")]


def test_archive() -> None:
    report = look(
        "#cloud-config-archive\n- type: text/x-shellscript\n  content: |\n    #!/bin/sh\n    set -e\n    cat <<<x\n"
        "- |\n  #cloud-config\n  runcmd:\n    - set -e\n    - cat <<<y\n"
    )
    assert positions(report) == [(6, 9, "entry 1"), (11, 11, "entry 2, runcmd")]


def test_boothook_needs_a_shell_of_its_own() -> None:
    assert [found.code for found in of(look("#cloud-boothook\n#!/bin/sh\ncat <<<x\n"), DASH)] == ["syntax"]
    [problem] = look("#cloud-boothook\ndate\n").problems("error")
    assert "Exec format error" in problem


def test_include_reads_files_and_fetches_nothing(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("#!/bin/sh\nset -e\ncat <<<x\n")
    report = look(f"#include\nfile://{tmp_path}/more\nhttps://192.0.2.1/user-data\n")
    assert [(found.file, found.line) for found in of(report, DASH)] == [(f"{tmp_path}/more", 3)]
    assert report.not_evaluated == ["content: https://192.0.2.1/user-data is included and was not fetched"]
    assert not report.as_result("error")["evaluated"]


def test_include_of_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "user-data"
    path.write_text(f"#include file://{path}\n")
    report = validate(Request(src=[str(path)], checkers=SHELLS))
    assert "deep" in report.not_evaluated[0]


def test_directory(tmp_path: Path) -> None:
    """A seed and a folder of scripts: names say what files are."""
    boot = tmp_path / "per-boot"
    boot.mkdir()
    for name, text, mode in (
        ("a.sh", "#!/bin/sh\ncat <<<x\n", 0o755),
        ("b.sh", "date\n", 0o755),
        ("c", "#!/bin/sh\n", 0o644),
    ):
        (boot / name).write_text(text)
        (boot / name).chmod(mode)
    (tmp_path / "user-data").write_text("#cloud-config\nhostname: x\n")
    (tmp_path / "meta-data").write_text("instance-id: x\n")
    (tmp_path / "network-config").write_text("ethernets: {}\n")
    (tmp_path / "90-x.cfg").write_text("datasource_list: [NoCloud]\n")
    report = validate(Request(src=[str(tmp_path), str(boot)], checkers=SHELLS))
    assert sorted((Path(found.file).name, found.code) for found in report.findings if found.severity == "error") == [
        ("a.sh", "SC3011"),
        ("a.sh", "syntax"),
        ("b.sh", "no-shebang"),
        ("c", "not-executable"),
        ("network-config", "network-version"),
    ]
    assert [Path(entry["file"]).name for entry in report.size] == ["user-data"]


@pytest.mark.parametrize(
    ("content", "code", "place"),
    [
        ("runcmd: [date]\n", "header", (1, 1)),
        ("# cloud-config\nruncmd: [date]\n", "header", (1, 1)),
        ("\ufeff#cloud-config\n{}\n", "byte-order-mark", (1, 1)),
        ("#cloud-config\nruncmd:\n- [[ -e / ]]\n", "item-type", (3, 3)),
        ("#cloud-config\nruncmd:\n- [[ -e / ]] && date\n", "yaml", None),
        ("#cloud-config\nruncmd:\n- echo a: b\n", "item-type", (3, 3)),
        ("#cloud-config\nruncmd:\n- true\n", "item-type", (3, 3)),
        ("#cloud-config\nruncmd: date\n", "item-type", (2, 9)),
        ("#cloud-config\nruncmd: [a]\nusers: []\nruncmd: [b]\n", "duplicate-key", (4, 1)),
        ("#cloud-config\na: [\n", "yaml", None),
        ("#cloud-config\n- a\n", "yaml", (2, 1)),
        ("#!/bin/sh\r\ndate\r\n", "crlf", (1, 10)),
        ("#cloud-config\nwrite_files:\n- {path: /x, encoding: b64, content: abcde}\n", "content", (3, 38)),
        (
            "#cloud-config\nwrite_files:\n- path: /var/lib/cloud/scripts/per-boot/x\n  content: '#!/bin/sh'\n",
            "not-executable",
            (4, 12),
        ),
        ("#cloud-config\n" + "# \n" * 9000, "size", None),
    ],
)
def test_traps(content: str, code: str, place: tuple[int, int] | None) -> None:
    report = look(content)
    errors = [found for found in report.findings if found.severity == "error"]
    assert [found.code for found in errors] == [code]
    if place:
        assert (errors[0].line, errors[0].column) == place
    assert errors[0].suggestion or code in ("yaml", "content")


@pytest.mark.parametrize(
    ("content", "limit", "hint"),
    [
        ("# \n" * 3000, 8192, "cloud-init unpacks it"),
        ("x", 9, "fetch a part"),
    ],
)
def test_size_is_held_against_the_limit(content: str, limit: int, hint: str) -> None:
    report = look(f"#cloud-config\n{content}\n", size_limit=limit)
    [found] = [found for found in report.findings if found.code == "size"]
    assert str(limit) in found.message and hint in found.suggestion
    assert not report.size[0]["fits"]
    assert look(f"#cloud-config\n{content}\n", size_limit=0).size == []


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        ("#!/bin/sh\nfalse\ntrue\n", ["no-errexit"]),
        ("#!/bin/sh\nset -e\nfalse || echo failed\n", ["swallowed"]),
        ("#!/bin/sh\nset -e\nfalse || true\n", ["swallowed"]),
        ("#!/bin/sh\nset -e\nfalse || { echo failed; exit 1; }\n", []),
        ("#!/bin/sh\nset -e\n# false || true\necho 'a || true'\ncat <<EOF\nb || true\nEOF\n", []),
        ("#!/bin/sh\nset -e\nfalse | tee log\n", ["pipe"]),
        ("#!/bin/bash\nset -euo pipefail\nfalse | tee log\n", []),
        ("#!/bin/sh -e\nfalse\ntrue\n", []),
        ("#!/bin/sh\nexec /usr/bin/true\n", []),
        ("#cloud-config\nruncmd:\n- [set, -e]\n- false\n- true\n", []),
        ("#cloud-config\nruncmd:\n- false\n- true\n", None),
        ("#cloud-config\nruncmd:\n- 'false'\n- 'true'\n", ["no-errexit"]),
        # What CML's own cloud-init does.
        ("#cloud-config\nruncmd:\n- /provision/cml.sh && touch /run/reboot || echo 'failed'\n", ["swallowed"]),
    ],
)
def test_masked_failures(content: str, codes: list[str] | None) -> None:
    masked = of(look(content), "masked")
    if codes is not None:
        assert [found.code for found in masked] == codes
        assert all(found.suggestion for found in masked)
    # The truth of the first ones: the script fails in the middle and ends with success.
    if codes and content.startswith("#!/bin/sh"):
        assert subprocess.run(["dash", "-c", content], cwd="/tmp", capture_output=True, check=False).returncode == 0


def test_findings_can_be_ignored() -> None:
    content = "#!/bin/sh\nfalse\ntrue\n"
    assert look(content, ignore=["no-errexit"]).problems("info") == []


def test_a_missing_program_is_never_valid_by_omission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dash").symlink_to(shutil.which("dash"))
    monkeypatch.setenv("PATH", str(tmp_path))
    report = validate(Request(content="#cloud-config\nruncmd: [[date]]\n"))
    result = report.as_result("warning")
    assert (result["valid"], result["evaluated"], result["problems"]) == (False, False, [])
    assert result["tools_missing"] == ["checkbashisms", "cloud-init", "shellcheck"]
    assert result["scripts"][0]["checkers"] == ["dash"]
    assert look("#cloud-config\nruncmd: [[date]]\n", checkers=["syntax"]).as_result("warning")["valid"]
