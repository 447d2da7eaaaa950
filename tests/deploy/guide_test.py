"""Goal: who does what docs/deploy.md says gets what it says, on one machine, on three, and on three with mutual TLS.

Method: the fenced blocks of the guide are run as they stand, in their order, each on the machine of namespaces (machines.py) that its
first line names; behind `#` the guide says what to see, and words in quotes there have to be in what the command prints. The
first line of a block reads `sh MACHINE [WORD...]`: `check` (a command is repeated until it shows what the guide says, as a
reader would), `stays` (runs until the end of the part), `install` (on every machine of the three too), `tls` (of the part with
mutual TLS), `build` (not run).

What is not run as it stands, and why: building and installing the release (the binary of this build is at /usr/local/bin with
the demo where the installation puts it), `sudo` (the test is root; with -u it becomes that user), `systemctl` and `journalctl` (no
systemd runs in a namespace: service_manager.py does what the very unit files say, which the guide's own commands have put into
place, as the user that the guide's own commands have made), nginx's unit (nginx itself is started) and `scp` (copies).
Commands for docker are left to compose_topology_test.py and image_test.py, those for Kubernetes are compared with the chart.
"""

import contextlib
import dataclasses
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import unittest

import deploy_files as deploy
import cluster
import machines
import namespaces
import service_manager

conclave = deploy.conclave
CHECK_TIMEOUT_S = 30
COMMAND_TIMEOUT_S = 60
HOME = "/opt/conclave"  # the checkout
FOLDERS_OF_SYSTEM = ("/usr/lib/sysusers.d", "/usr/lib/tmpfiles.d", "/var/log/nginx", "/var/lib/nginx")
SUDO = """#!/bin/sh
if [ "$1" = -u ]; then user=$2; shift 2; exec setpriv --reuid="$user" --regid="$user" --init-groups "$@"; fi
exec "$@"
"""
JOURNALCTL = f"""#!/bin/sh
[ "$1" = -u ] && exec cat "{service_manager.NOTIFY}/$2.log"
"""


@dataclasses.dataclass
class Block:
    part: str  # the heading that it stands under
    machine: str
    words: list[str]
    text: str


def blocks() -> list[Block]:
    found, part, info, lines = [], "", None, []
    for line in deploy.GUIDE.read_text(encoding="utf-8").splitlines():
        if info is None and (heading := re.match(r"#{2,3} (.*)", line)):
            part = heading[1]
        elif info is None and line.startswith("```"):
            info, lines = line[3:].split(), []
        elif line == "```":
            assert info[0] == "sh" and len(info) >= 2, f"{part}: a block without a machine: {info}"
            found.append(Block(part, info[1], info[2:], "\n".join(lines)))
            info = None
        elif info is not None:
            lines.append(line)
    assert info is None, "a block without an end"
    return found


def commands(text: str) -> list[str]:
    """One a line, with its continuations and the text that it is given."""
    found, lines = [], iter(text.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines).strip()
        if end := re.search(r"<<'(\w+)'", line):
            for more in lines:
                line += f"\n{more}"
                if more == end[1]:
                    break
        found.append(line)
    return found


@dataclasses.dataclass
class Expected:
    words: list[str]
    fails: bool

    def why_not(self, done: subprocess.CompletedProcess) -> str | None:
        out = done.stdout + done.stderr
        if (done.returncode != 0) != self.fails:
            return f"exit code {done.returncode}: {out[-2000:]}"
        return next((f"no {word!r} in {out[-2000:]}" for word in self.words if word not in out), None)


def split_comment(command: str) -> tuple[str, Expected]:
    match = re.fullmatch(r"(.*?)\s{2,}# (.*)", command)
    if not match:
        return command, Expected([], False)
    comment = match[2]
    braces = re.findall(r"\{[^{}]*\}( \d+)?", comment)
    words = [found[0] for found in re.finditer(r"\{[^{}]*\}(?: \d+)?", comment)] if braces else re.findall(r'"([^"]*)"', comment)
    return match[1], Expected(words, comment.startswith("fails"))


class Site:
    """Machines with the checkout, the binary and a service manager each. Use as a context manager."""

    def __init__(self, names: list[str]):
        self._stack = contextlib.ExitStack()
        self.managers: dict[str, service_manager.ServiceManager] = {}
        self.machines: dict[str, machines.Machine] = {}
        self._staying: list[subprocess.Popen] = []
        self._logs = {}
        with contextlib.ExitStack() as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conclave-guide-")))
            folder.chmod(0o755)
            bridge = machines.Bridge("site", 9)
            stack.callback(bridge.close)
            for name in names:
                self.machines[name] = stack.enter_context(self._machine(name, folder / name, bridge))
                self.managers[name] = service_manager.ServiceManager(self.machines[name], folder / name / "notify")
                stack.callback(self.managers[name].close)
            for machine in self.machines.values():
                machine.set_hosts({other.name: other.addresses["site"] for other in self.machines.values()})
            stack.callback(self._end_staying)
            self._stack = stack.pop_all()

    def _machine(self, name: str, folder: pathlib.Path, bridge: machines.Bridge) -> machines.Machine:
        local = folder / "local"
        mounts = [machines.Mount(local, "/usr/local")]
        for place in ("bin", "share/conclave/models/demo"):
            (local / place).mkdir(parents=True)
        (local / "bin" / "conclave").touch(mode=0o755)
        mounts += [machines.Mount(pathlib.Path(conclave.BINARY), "/usr/local/bin/conclave", False),
                   machines.Mount(conclave.MODEL, "/usr/local/share/conclave/models/demo", False)]
        for tool, text in (("sudo", SUDO), ("journalctl", JOURNALCTL)):
            (local / "bin" / tool).write_text(text)
            (local / "bin" / tool).chmod(0o755)
        checkout = folder / "checkout"
        (checkout / "deploy").mkdir(parents=True)
        mounts += [machines.Mount(checkout, HOME), machines.Mount(deploy.DEPLOY, f"{HOME}/deploy", False)]
        for place in FOLDERS_OF_SYSTEM:
            empty = folder / place.strip("/").replace("/", "-")
            empty.mkdir()
            if pathlib.Path(place).is_dir() or not place.startswith("/usr"):
                mounts.append(machines.Mount(empty, place))
        notify = folder / "notify"
        notify.mkdir(mode=0o755)
        mounts.append(machines.Mount(notify, service_manager.NOTIFY))
        machine = machines.Machine(name, mounts, [bridge], ["www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin"])
        (machine.etc / "systemd" / "system").mkdir(parents=True)
        self.checkouts = getattr(self, "checkouts", {})
        self.checkouts[name] = checkout
        return machine

    def run(self, name: str, command: str) -> subprocess.CompletedProcess:
        argv = [*self.machines[name].prefix(), *machines.environment({"HOME": "/root"}, HOME), "bash", "-ec", command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)

    def do(self, block: Block, name: str = ""):
        name = name or block.machine
        for command in commands(block.text):
            command, expected = split_comment(command)
            where = f"{block.part}, {name}: {command}"
            if not command.strip():
                continue
            if "stays" in block.words:
                self._stay(name, command)
            elif not self._stood_in(name, command):
                self._try(name, command, expected, "check" in block.words, where)

    def _try(self, name: str, command: str, expected: Expected, is_check: bool, where: str):
        deadline = time.monotonic() + (CHECK_TIMEOUT_S if is_check else 0)
        while why := expected.why_not(self.run(name, command)):
            if time.monotonic() > deadline:
                raise AssertionError(f"{where}: {why}\n{self.logs()}")
            time.sleep(0.5)

    def _stood_in(self, name: str, command: str) -> bool:
        words = shlex.split(command)
        if words[:2] == ["sudo", "systemctl"]:
            if words[2:] == ["restart", "nginx"]:
                self._stay(name, "nginx -g 'daemon off;'")
            else:
                self.managers[name].systemctl(words[2:])
            return True
        if words[0] == "scp":
            for file in words[1:-1]:
                shutil.copy(self.checkouts[name] / file, self.checkouts[words[-1].rstrip(":")])
            return True
        return False

    def _stay(self, name: str, command: str):
        log = self._stack.enter_context(tempfile.TemporaryFile())
        self._logs[f"{name}: {command}"] = log
        argv = [*self.machines[name].prefix(), *machines.environment({"HOME": "/root"}, HOME), "setpriv", "--pdeathsig=KILL",
                *shlex.split(command)]
        self._staying.append(subprocess.Popen(argv, stdout=log, stderr=log))

    def _end_staying(self):
        for process in self._staying:
            process.terminate()
        for process in self._staying:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def logs(self) -> str:
        parts = []
        for name, log in self._logs.items():
            log.seek(0)
            parts.append(f"--- {name}\n{log.read().decode(errors='replace')[-2000:]}")
        for name, manager in self.managers.items():
            parts += [f"--- {name}: {unit.name}\n{unit.log()[-2000:]}" for unit in manager.units.values()]
        return "\n".join(parts)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()


class GuideTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.blocks = blocks()
        cls.done: list[int] = []

    def follow(self, site: Site, part: str):
        mine = [block for block in self.blocks if block.part == part]
        self.assertTrue(mine, f"the guide has no blocks under {part!r}")
        for block in mine:
            self.done.append(id(block))
            if "build" not in block.words:
                site.do(block)

    def install(self, site: Site):
        for block in self.blocks:
            if "install" in block.words:
                for name in site.machines:
                    site.do(block, name)

    def test_one_process(self):
        with Site(["host"]) as site:
            self.follow(site, "One process")

    def test_as_a_service(self):
        with Site(["host"]) as site:
            self.follow(site, "As a service")
            units = site.managers["host"].units
            self.assertEqual(units["conclave-worker@2"].starts, 2, "it was killed and started again")
            self.assertGreater(units["conclave-frontend"].pings, 0)
            site.managers["host"].systemctl(["stop", "conclave-frontend"])

    def test_a_wrong_setting(self):
        """As the guide says of a service: exit code 3, which names the line, and no second try."""
        with Site(["host"]) as site:
            self.install(site)
            (site.machines["host"].etc / "conclave" / "serve.yaml").write_text("listen: 127.0.0.1:8000\nworker: 2\n")
            with self.assertRaisesRegex(AssertionError, "ended with 3") as failed:
                site.managers["host"].systemctl(["start", "conclave-serve"])
            self.assertIn("serve.yaml:2", str(failed.exception))
            self.assertEqual(site.managers["host"].units["conclave-serve"].starts, 1)

    def test_a_proxy_in_front(self):
        if not shutil.which("/usr/sbin/nginx"):
            self.skipTest("no nginx; tools/setup.sh test installs it")
        with Site(["host"]) as site:
            site.machines["host"].run("install", "-d", "/etc/nginx")
            self.follow(site, "A proxy in front")

    def test_three_machines_on_a_network_of_their_own(self):
        with Site(["host-a", "host-b", "host-c"]) as site:
            self.install(site)
            self.follow(site, "On a network of their own")
            site.managers["host-a"].systemctl(["stop", "conclave-frontend"])
            site.managers["host-b"].systemctl(["stop", "conclave-worker@1"])

    def test_three_machines_with_tls(self):
        with Site(["host-a", "host-b", "host-c"]) as site:
            self.install(site)
            self.follow(site, "On a network with others: mutual TLS")
            mode = site.run("host-b", "stat -c '%U %G %a' /etc/conclave/tls/worker-b-key.pem").stdout
            self.assertEqual(mode, "root conclave 640\n")

    def test_a_second_router(self):
        if not shutil.which("etcd"):
            self.skipTest("no etcd; tools/setup.sh test installs it")
        with Site(["host-a", "host-b", "host-c"]) as site:
            self.follow(site, "A second router")

    def test_zzz_nothing_of_the_guide_was_left_out(self):
        left = [f"{block.part}: {block.text[:60]}" for block in self.blocks if id(block) not in self.done]
        if shutil.which("/usr/sbin/nginx") and shutil.which("etcd"):
            self.assertEqual(left, [])


class ReadingTest(unittest.TestCase):
    """That the guide is read as it says."""

    def test_what_to_see(self):
        for command, words, fails in (
                ('curl http://x/   # {"status":"ready"}', ['{"status":"ready"}'], False),
                ('curl http://x/   # the name: "demo"', ["demo"], False),
                ('grep links      # {channel="ucx"} 2', ['{channel="ucx"} 2'], False),
                ("cluster status  # fails: no certificate, \"error:\"", ["error:"], True),
                ("cluster drain b", [], False)):
            found, expected = split_comment(command)
            self.assertEqual((expected.words, expected.fails), (words, fails), command)
            self.assertNotIn("#", found)

    def test_commands(self):
        self.assertEqual(commands("a \\\n  b   # c\nd <<'END'\nx\nEND\ne"), ["a b   # c", "d <<'END'\nx\nEND", "e"])


if __name__ == "__main__":
    reason = machines.why_not() or next((f"no {tool}" for tool in ("curl", "openssl", "systemd-sysusers") if not shutil.which(tool)), None)
    if reason:
        deploy.skip(reason)
    namespaces.enter()
    deploy.main()
