"""Goal: the units are sound, shut in as far as conclave can work, and leave it time to drain.

Method: systemd-analyze checks copies of them that name the real binary, and rates their exposure; the rest is compared with
what the binary does: what it tells systemd, how it ends, what it is configured with.
"""

import os
import pathlib
import re
import shutil
import tempfile
import unittest

import deploy_files as deploy

if not shutil.which("systemd-analyze"):
    deploy.skip("no systemd-analyze")

FOLDER = deploy.DEPLOY / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
# Of ten; a service without any of it has 9.6.
EXPOSURE_MAX = 1.7


class Unit(dict):
    """Sections of keys; a key that stands several times has all its values."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        section = None
        for line in path.read_text().splitlines():
            if match := re.fullmatch(r"\[(\w+)\]", line):
                section = self.setdefault(match[1], {})
            elif match := re.fullmatch(r"(\w+)=(.*)", line):
                section.setdefault(match[1], []).append(match[2])


class UnitsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="conclave-units-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.copies = []
        for path in UNITS:
            text = path.read_text().replace("/usr/local/bin/conclave", deploy.conclave.BINARY)
            copy = pathlib.Path(cls.folder.name) / path.name.replace("@.", "@1.")
            copy.write_text(text)
            cls.copies.append(copy)

    def test_systemd_takes_them(self):
        self.assertEqual(len(UNITS), 4)
        result = deploy.run_tool("systemd-analyze", "verify", "--man=no", *self.copies)
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_a_misspelt_key_would_be_seen(self):
        bad = pathlib.Path(self.folder.name) / "bad.service"
        bad.write_text(self.copies[0].read_text().replace("ProtectHome=", "ProtectHomes="))
        result = deploy.run_tool("systemd-analyze", "verify", "--man=no", bad)
        self.assertIn("ProtectHomes", result.stderr)

    def test_exposure(self):
        for copy in self.copies:
            result = deploy.run_tool("systemd-analyze", "security", "--offline=true", "--no-pager", copy)
            rating = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)[1])
            print(f"{copy.name} {rating}", end="  ")
            self.assertLessEqual(rating, EXPOSURE_MAX, copy.name)

    def test_they_say_what_the_binary_does(self):
        sources = "".join(path.read_text() for folder in ("cli", "libs/service") for path in (deploy.ROOT / folder).rglob("*.cc"))
        for path in UNITS:
            service = Unit(path)["Service"]
            self.assertEqual(service["Type"], ["notify"], path.name)
            # A watchdog kills whoever does not ping it.
            self.assertEqual("WatchdogSec" in service, "WATCHDOG=1" in sources, path.name)
            self.assertEqual(service["Restart"], ["on-failure"], path.name)
            # docs/errors.md: usage, configuration and model never get better by themselves; 5 is the network, which does.
            never = set(service["RestartPreventExitStatus"][0].split())
            self.assertLessEqual({"2", "3", "4"}, never, path.name)
            self.assertNotIn("5", never, path.name)
            self.assertEqual(Unit(path)["Unit"]["StartLimitIntervalSec"], ["0"], path.name)
            self.assertEqual((service["User"], service["Group"]), (["conclave"], ["conclave"]), path.name)

    def test_a_stop_leaves_time_to_drain(self):
        for path in UNITS:
            role = re.search(r"conclave-(\w+)", path.name)[1]
            config = FOLDER / "etc" / f"{role}.yaml"
            found = re.search(r"^drain-timeout: (\d+)s$", config.read_text(), re.MULTILINE)
            drain = int(found[1]) if found else 30
            self.assertGreaterEqual(int(Unit(path)["Service"]["TimeoutStopSec"][0]), drain + 10, path.name)

    def test_instances_have_their_own_names_and_ports(self):
        environment = dict(entry.split("=", 1) for entry in Unit(FOLDER / "conclave-worker@.service")["Service"]["Environment"])
        self.assertIn("%i", environment["CONCLAVE_NAME"])
        self.assertIn("%i", environment["CONCLAVE_ADMIN_LISTEN"])

    def test_ucx_sees_its_peers(self):
        # With ProtectProc= a peer's /proc/PID is hidden, UCX takes it for dead, and rows would go over gRPC for ever.
        for name in ("conclave-worker@.service", "conclave-frontend.service"):
            service = Unit(FOLDER / name)["Service"]
            for key in ("ProtectProc", "ProcSubset", "PrivateUsers", "PrivateNetwork", "PrivateIPC"):
                self.assertNotIn(key, service, name)

    @staticmethod
    def is_root() -> bool:
        return os.geteuid() == 0  # who may give folders away

    def test_user_and_folders(self):
        sysusers = (FOLDER / "conclave.sysusers").read_text()
        self.assertRegex(sysusers, r"(?m)^u conclave - ")
        if shutil.which("systemd-sysusers"):
            root = pathlib.Path(self.folder.name) / "root"
            (root / "etc").mkdir(parents=True, exist_ok=True)
            result = deploy.run_tool("systemd-sysusers", f"--root={root}", "--inline", *[
                line for line in sysusers.splitlines() if not line.startswith("#")])
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("conclave:", (root / "etc" / "passwd").read_text())
            result = deploy.run_tool("systemd-tmpfiles", f"--root={root}", "--create", FOLDER / "conclave.tmpfiles")
            if self.is_root():
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual((root / "etc/conclave/tls").stat().st_mode & 0o777, 0o750)
        for line in (FOLDER / "conclave.tmpfiles").read_text().splitlines():
            if not line.startswith("#"):
                self.assertRegex(line, r"^d /(etc|var/lib)/conclave\S* 0[0-7]{3} (root|conclave) (root|conclave) -$")


if __name__ == "__main__":
    deploy.main()
