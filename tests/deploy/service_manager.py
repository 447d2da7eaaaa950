"""The part of systemd that conclave's units lean on, for machines of namespaces, where no systemd runs.

It does what the units in /etc/systemd/system of the machine say: ExecStart= as the unit's user, Environment= and EnvironmentFile=,
the specifiers %i and %H, StateDirectory=, Type=notify (a start ends with READY=1), Restart=on-failure but for RestartPreventExitStatus=,
WatchdogSec= (SIGABRT to whoever is silent for so long) and TimeoutStopSec= (SIGKILL; a process may ask for more by
EXTEND_TIMEOUT_USEC). It does not confine: systemd-analyze looks at that in units_test.py. Units of other programs are refused.
"""

import os
import pathlib
import re
import select
import shlex
import signal
import socket
import subprocess
import threading
import time

import cluster
import machines

# Of this machine; bound to NOTIFY of each.
NOTIFY = "/run/notify"
DEFAULT_STOP_S = 90


def parse_unit(text: str, instance: str, host: str) -> dict[str, list[str]]:
    """Keys of all sections; one that stands several times has all its values."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value.replace("%i", instance).replace("%H", host))
    return found


def parse_seconds(text: str) -> float:
    if text == "infinity":
        return float("inf")
    value, unit = re.fullmatch(r"(\d+)(s|min|)", text).groups()
    return int(value) * (60 if unit == "min" else 1)


class NotifySocket:
    """What a unit's process says."""

    def __init__(self, path: pathlib.Path):
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o777)

    def wait(self, timeout: float) -> dict[str, str]:
        """The next message's variables; empty when none comes in time."""
        if not select.select([self._socket], [], [], max(0.0, timeout))[0]:
            return {}
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def close(self):
        self._socket.close()


class Unit:
    """One that was started, until it is stopped."""

    def __init__(self, manager: "ServiceManager", name: str):
        self.name = name
        machine = manager.machine
        template, instance = re.fullmatch(r"([\w-]+@?)(\w*)", name).groups()
        path = machine.etc / "systemd" / "system" / f"{template}.service"
        if not path.exists():
            raise AssertionError(f"{machine.name}: no unit {name}: {path.name}")
        self.keys = parse_unit(path.read_text(), instance, machine.name)
        self.machine = machine
        self.starts = 0
        self.pings = 0
        self.status = None  # of the last process, when it has ended
        self._log = open(manager.folder / f"{name}.log", "ab")
        self._socket_name = f"{name}.socket"
        self._notify = NotifySocket(manager.folder / self._socket_name)
        self._is_ready = threading.Event()
        self._has_ended = threading.Event()
        self._is_stopping = False
        self._kill_at = float("inf")
        self._process = None
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _one(self, key: str, default: str = "") -> str:
        return self.keys.get(key, [default])[-1]

    def _environment(self) -> dict[str, str]:
        lines = list(self.keys.get("Environment", []))
        for file in self.keys.get("EnvironmentFile", []):
            path = self.machine.etc / pathlib.PurePath(file.removeprefix("-")).relative_to("/etc")
            if path.exists() or not file.startswith("-"):
                lines += [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        variables = dict(line.split("=", 1) for line in lines)
        variables["NOTIFY_SOCKET"] = f"{NOTIFY}/{self._socket_name}"
        if self._one("WatchdogSec"):
            variables["WATCHDOG_USEC"] = str(int(parse_seconds(self._one("WatchdogSec")) * 1e6))
        return variables

    def _start(self):
        user = self._one("User")
        account = next((line.split(":") for line in (self.machine.etc / "passwd").read_text().splitlines()
                        if line.startswith(f"{user}:")), None)
        if account is None:
            raise AssertionError(f"{self.machine.name}: {self.name} wants the user {user}, who is not in /etc/passwd")
        uid, gid = int(account[2]), int(account[3])
        for folder in self.keys.get("StateDirectory", []):
            self.machine.run("install", "-d", "-o", str(uid), "-g", str(gid), "-m", self._one("StateDirectoryMode", "0755"),
                             f"/var/lib/{folder}")
        self._process = subprocess.Popen(
            [*self.machine.prefix(), *machines.become(uid, gid), *machines.environment(self._environment()),
             *shlex.split(self._one("ExecStart"))], stdout=self._log, stderr=self._log)
        self.starts += 1

    def _keep(self):
        while not self._is_stopping:
            self._start()
            self._watch()
            self.status = self._process.wait()
            self._is_ready.clear()
            never = set(self._one("RestartPreventExitStatus").split())
            if self._is_stopping or self._one("Restart") != "on-failure" or self.status == 0 or str(self.status) in never:
                break
            time.sleep(parse_seconds(self._one("RestartSec", "1")))
        self._has_ended.set()

    def _watch(self):
        """Until the process ends."""
        limit = parse_seconds(self._one("WatchdogSec")) if self._one("WatchdogSec") else float("inf")
        told_at = None
        while self._process.poll() is None:
            message = self._notify.wait(0.1)
            now = time.monotonic()
            if "READY" in message:
                told_at = now
                self._is_ready.set()
            if "WATCHDOG" in message:
                told_at = now
                self.pings += 1
            if "EXTEND_TIMEOUT_USEC" in message and self._is_stopping:
                self._kill_at = max(self._kill_at, now + int(message["EXTEND_TIMEOUT_USEC"]) / 1e6)
            if told_at is not None and now - told_at > limit:
                self._process.send_signal(signal.SIGABRT)
            if self._is_stopping and now > self._kill_at:
                self._process.kill()

    def wait_ready(self, timeout: float):
        deadline = time.monotonic() + timeout
        while not self._is_ready.wait(0.1):
            if self._has_ended.is_set():
                raise AssertionError(f"{self.machine.name}: {self.name} ended with {self.status}: {self.log()[-2000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.machine.name}: {self.name} is not ready within {timeout} s: {self.log()[-2000:]}")

    def is_active(self) -> bool:
        return self._is_ready.is_set()

    def send_signal(self, number: int):
        self._is_ready.clear()
        self._process.send_signal(number)

    def stop(self):
        """SIGTERM, and what comes of it; fails when it had to be killed, or did not end well."""
        self._kill_at = time.monotonic() + parse_seconds(self._one("TimeoutStopSec", str(DEFAULT_STOP_S)))
        self._is_stopping = True
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._has_ended.wait()
        if self.status != 0:
            raise AssertionError(f"{self.machine.name}: {self.name} ended with {self.status} when it was stopped: {self.log()[-2000:]}")

    def log(self) -> str:
        return pathlib.Path(self._log.name).read_text(errors="replace")

    def close(self):
        self._is_stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._keeper.join()
        self._notify.close()
        self._log.close()


class ServiceManager:
    """Of one machine, whose NOTIFY is bound to `folder`."""

    def __init__(self, machine: machines.Machine, folder: pathlib.Path, start_timeout: float = 60):
        self.machine = machine
        self.folder = folder
        self.units: dict[str, Unit] = {}
        self._start_timeout = start_timeout

    def systemctl(self, argv: list[str]):
        """The words behind `systemctl`."""
        verb, options = argv[0], [word for word in argv[1:] if word.startswith("-")]
        names = [word.removesuffix(".service") for word in argv[1:] if not word.startswith("-")]
        if verb == "daemon-reload":
            return
        if (verb, options) == ("enable", ["--now"]) or verb in ("start", "restart"):
            if verb == "restart":
                self.stop([name for name in names if name in self.units])
            for name in self.in_order(names):
                self.units[name] = Unit(self, name)
                self.units[name].wait_ready(self._start_timeout)
        elif (verb, options) == ("disable", ["--now"]) or verb == "stop":
            self.stop(names)
        elif verb == "kill" and options == ["--signal=SIGKILL"]:
            for name in names:
                self.units[name].send_signal(signal.SIGKILL)
        else:
            raise AssertionError(f"systemctl {shlex.join(argv)}: not something that this stands in for")

    def in_order(self, names: list[str]) -> list[str]:
        """By After=, as given otherwise."""
        def after(name: str) -> set[str]:
            template, instance = re.fullmatch(r"([\w-]+@?)(\w*)", name).groups()
            path = self.machine.etc / "systemd" / "system" / f"{template}.service"
            text = path.read_text() if path.exists() else ""
            wanted = " ".join(parse_unit(text, instance, self.machine.name).get("After", [])).split()
            return {word.removesuffix(".service") for word in wanted}
        ordered: list[str] = []
        left = list(names)
        while left:
            following = next((name for name in left if not after(name) & set(left)), left[0])
            ordered.append(following)
            left.remove(following)
        return ordered

    def stop(self, names: list[str]):
        for name in reversed(self.in_order(names)):
            unit = self.units.pop(name)
            try:
                unit.stop()
            finally:
                unit.close()

    def close(self):
        for unit in self.units.values():
            unit.close()
        self.units = {}
