"""The systemd units: systemd accepts them, and each process may do no more than it needs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "packaging" / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
# systemd's own measure, 0 (shut) to 10 (open). A run and a daemon need what torch needs: more memory rights, devices.
EXPOSURE = {"fedmed-connect@": 2.0, "fedmed-run@": 4.0, "fedmed-site@": 3.0, "fedmed-superlink": 3.5}

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze (.ci/run installs it)"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as a machine has them: programs that exist, an instance of each template."""
    folder = tmp_path_factory.mktemp("units")
    for name in SERVICES:
        text = (UNITS / name).read_text().replace("/opt/fedmed/bin/", f"{Path(sys.executable).parent}/")
        for target in (name, name.replace("@", "@north")):
            (folder / target).write_text(text)
    return folder


def settings(name: str) -> dict[str, list[str]]:
    """Key -> values of a unit, in order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"(?m)^(\w+)=(.*(?:\\\n.*)*)", (UNITS / name).read_text()):
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_accepts_the_unit(installed: Path, name: str) -> None:
    unit = installed / name.replace("@", "@north")
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_may_do_no_more_than_it_needs(installed: Path, name: str) -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        str(installed / name.replace("@", "@north")),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    level = float(re.findall(r"exposure level for \S+ ([0-9.]+)", done.stdout)[0])
    assert level <= EXPOSURE[name.removesuffix(".service")]
    assert settings(name)["NoNewPrivileges"] == ["yes"]
    assert settings(name)["User"] != ["root"]


def test_a_misspelt_setting_is_found(installed: Path) -> None:
    """The checks above can fail: systemd names what it does not know."""
    broken = installed / "broken.service"
    broken.write_text(
        (installed / "fedmed-superlink.service").read_text().replace("NoNewPrivileges", "NoNewPriviliges")
    )
    done = subprocess.run(["systemd-analyze", "verify", str(broken)], capture_output=True, text=True)
    assert "NoNewPriviliges" in done.stderr


def test_who_connects_is_another_user_who_cannot_see_the_site() -> None:
    site, connect = settings("fedmed-site@.service"), settings("fedmed-connect@.service")
    assert site["User"] != connect["User"]
    assert site["Group"] == connect["SupplementaryGroups"]  # the socket's group, and nothing else in common
    assert connect["Group"] != site["Group"]
    assert connect["InaccessiblePaths"] == ["-/srv/fedmed/%i -/srv/fedmed/%i.witness"]
    assert connect["ProtectHome"] == ["yes"]
    assert site["PrivateNetwork"] == ["yes"]
    assert site["RestrictAddressFamilies"] == ["AF_UNIX"]


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_and_no_endless_restart(name: str) -> None:
    found = settings(name)
    assert not re.search(r"(?i)password|token|secret|--insecure", " ".join(found["ExecStart"]))
    assert found["Restart"] == ["on-failure"]
    assert "2" in found["RestartPreventExitStatus"][0].split()
    assert int(found["StartLimitBurst"][0]) <= 20


def test_users_are_made_as_systemd_takes_them() -> None:
    file = str(UNITS / "fedmed.sysusers.conf")
    done = subprocess.run(["systemd-sysusers", "--dry-run", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    users = {line.split()[1] for line in Path(file).read_text().splitlines() if line.startswith("u ")}
    assert users == {user for name in SERVICES for user in settings(name)["User"]}
