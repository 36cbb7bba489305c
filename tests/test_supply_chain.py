"""What is installed is pinned by its digests, and what is fetched is compared."""

import re
import subprocess
import tomllib
from pathlib import Path

from gdd.weights import packaged
from gdd.weights.download import FILES, SUMS

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def plain(name):
    return re.sub(r"[-_.]+", "-", name.lower())


def entries():
    """Name, version and digests of every package in the lock."""
    text = LOCK.replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield re.fullmatch(
                r"([\w.-]+)==([\w.+]+)( ; [^#]*?)?((?: +--hash=sha256:[0-9a-f]{64})+) *", line)


def test_every_package_has_digests_and_none_a_host():
    found = list(entries())
    assert len(found) > 180
    assert None not in found
    assert "http:" not in LOCK
    assert "https:" not in LOCK
    assert not re.search(r"--(?:index|extra-index|find-links|trusted)", LOCK)
    assert "/" not in LOCK


def test_all_that_the_project_asks_for_is_pinned_build_requirements_too():
    pinned = {plain(entry[1]) for entry in entries()}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    wanted += [name for extra in extras.values() for name in extra]
    assert {plain(re.match(r"[\w.-]+", name)[0]) for name in wanted} <= {*pinned, "gdd-toolkit"}
    assert {package.name for package in packaged.PACKAGES.values()} == {
        re.match(r"[\w.-]+", name)[0] for name in extras["pictures"]}
    assert "gdd-toolkit" not in pinned


def test_make_installs_by_digest_and_fetches_nothing_to_build_with():
    recipe = subprocess.run(["make", "-n", "VENV=nowhere", "nowhere/installed"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout
    installs = [line for line in recipe.splitlines() if " pip install" in line]
    assert len(installs) == 2
    assert "--require-hashes --only-binary :all: -r requirements.lock" in installs[0]
    assert "--no-build-isolation --no-deps -e ." in installs[1]


def test_the_lock_is_made_by_a_command_that_is_written_down():
    command = (ROOT / "CONTRIBUTING.md").read_text().replace("\\\n", " ")
    words = re.search(r"uv pip compile pyproject.toml.*requirements\.lock", command)[0].split()
    assert {"--generate-hashes", "--universal", "--all-extras", "--no-emit-index-url"} <= {*words}


def test_an_audit_without_a_network_warns_only(tmp_path):
    """And one that finds a hole fails; pip-audit is played by a script."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "installed").touch()
    python = tmp_path / "bin" / "python"

    def audit(script):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        return subprocess.run([
            "make", "--no-print-directory", "-o", f"{tmp_path}/installed", f"VENV={tmp_path}",
            "audit"], cwd=ROOT, capture_output=True, text=True, check=False)

    done = audit("echo 'a long story' >&2; echo 'ConnectionError: no network' >&2; exit 1")
    assert (done.returncode,
            done.stdout) == (0, "ConnectionError: no network\nwarning: nothing was audited\n")
    done = audit("echo 'Found 1 known vulnerability in 1 package'; echo 'x 1.0 CVE-1'; exit 1")
    assert done.returncode != 0
    assert "CVE-1" in done.stdout
    done = audit("echo 'No known vulnerabilities found'; echo 'x could not be audited'")
    assert (done.returncode, done.stdout) == (
        0, "No known vulnerabilities found\nwarning: of 1 packages nobody could be asked\n")


def test_security_says_what_is_noted_where():
    text = (ROOT / "SECURITY.md").read_text()
    assert SUMS in text
    assert "--require-hashes" in text
    assert sum(bool(file.md5) for file in FILES.values()) < len(FILES)  # else it says too much
