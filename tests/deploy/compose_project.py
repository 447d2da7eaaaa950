"""`docker compose` without docker: the services of a compose file on machines of namespaces (machines.py).

A container has the file's command as process 1 with the file's environment, as the user and with the files of its image, which
for conclave are those that the Dockerfile copies; the file's networks, names, published ports, volumes, read-only root, shared
memory, restart policy, health checks and grace time; and `depends_on` is the order of start and stop.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import deploy_files as deploy
import cluster
import machines
import namespaces
import yaml

conclave = deploy.conclave
FILE = deploy.DEPLOY / "compose" / "compose.yaml"
DOCKERFILE = deploy.DEPLOY / "docker" / "Dockerfile"
# What docker waits before it starts a container again; it grows when that ends at once, which would be a failure here.
RESTART_DELAY_S = 0.1


def interpolate(text: str) -> str:
    """${NAME:-default} without any such variable set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def seconds(text: str) -> float:
    value, unit = re.fullmatch(r"(\d+)(s|m|h)", text).groups()
    return int(value) * {"s": 1, "m": 60, "h": 3600}[unit]


class Image:
    """What a container starts with: command, user, folder, files."""

    def __init__(self, entrypoint: list[str], user: int, folder: str, mounts: list[machines.Mount], home: str = ""):
        self.entrypoint, self.user, self.folder, self.mounts, self.home = entrypoint, user, folder, mounts, home


def conclave_image(folder: pathlib.Path) -> Image:
    """Of the last stage of the Dockerfile: what it copies, with the binary of the build in place of the one of its first stage."""
    text = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    local = folder / "usr-local"
    for name in ("bin", "lib", "share/conclave/models/demo"):
        (local / name).mkdir(parents=True)
    for mode, source, target in re.findall(r"^COPY --chmod=(\d+) (\S+) /usr/local/(\S+)$", text, re.MULTILINE):
        (local / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(deploy.ROOT / source, local / target)
        (local / target).chmod(int(mode, 8))
    assert re.search(r"^COPY --from=build /out/ /usr/local/$", text, re.MULTILINE), "where `cmake --install` put it"
    (local / "bin" / "conclave").touch(mode=0o755)
    mounts = [machines.Mount(local, "/usr/local", False),
              machines.Mount(pathlib.Path(conclave.BINARY), "/usr/local/bin/conclave", False),
              machines.Mount(conclave.MODEL, "/usr/local/share/conclave/models/demo", False)]
    entrypoint = yaml.safe_load(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1])
    user = int(re.search(r"^USER (\d+):\1$", text, re.MULTILINE)[1])
    workdir = re.search(r"^WORKDIR (.*)$", text, re.MULTILINE)[1]
    return Image(entrypoint, user, workdir, mounts, home=re.search(r"--home-dir (\S+)", text)[1])


# As the Dockerfile of prom/prometheus has it.
PROMETHEUS_IMAGE = Image(["/bin/prometheus"], machines.NOBODY, "/prometheus", [])


class Container:
    """A service that runs, and runs again when its process ends, until it is stopped."""

    def __init__(self, name: str, service: dict, image: Image, machine: machines.Machine, log):
        self.name, self.service, self.image, self.machine, self._log = name, service, image, machine, log
        self.restarts = 0
        self.is_stopped = False
        self._lock = threading.Lock()
        variables = {key: interpolate(value) for key, value in service.get("environment", {}).items()}
        self._as_user = [*machines.become(image.user, image.user), *machines.environment(variables, image.folder)]
        self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self):
        argv = [*self.image.entrypoint, *shlex.split(interpolate(self.service["command"]))]
        self._process = subprocess.Popen([*self.machine.init_prefix(), *self._as_user, *argv], stdout=self._log,
                                         stderr=self._log)

    def _keep(self):
        while True:
            self._process.wait()
            time.sleep(RESTART_DELAY_S)
            with self._lock:
                if self.is_stopped:
                    return
                assert self.service["restart"] == "unless-stopped", self.name
                self.restarts += 1
                self._start()

    def pid(self) -> int:
        """Of its process 1, which has started."""
        found = None

        def has_started() -> bool:
            nonlocal found
            found = machines.child_of(self._process.pid)
            return found is not None and pathlib.Path(f"/proc/{found}/comm").read_text() != "unshare\n"
        cluster.wait_until(has_started, f"{self.name} has started", 20)
        return found

    def kill(self):
        os.kill(self.pid(), signal.SIGKILL)

    def is_healthy(self) -> bool:
        """One check of the file, within its time, inside of the container."""
        check = self.service["healthcheck"]
        assert check["test"][0] == "CMD", self.name
        inside = ["nsenter", "--target", str(self.pid()), "--net", "--uts", "--ipc", "--mount", "--pid", "--root", "--wd=/"]
        try:
            done = subprocess.run([*inside, *self._as_user, *check["test"][1:]], capture_output=True,
                                  timeout=seconds(check["timeout"]) + 1)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def stop(self) -> tuple[int, float]:
        """SIGTERM; what the process ended with, and after how long. SIGKILL when its grace time is over, as docker does."""
        with self._lock:
            self.is_stopped = True
        begin = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid(), signal.SIGTERM)
        try:
            self._process.wait(seconds(self.service.get("stop_grace_period", "10s")))
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.wait()
        return self._process.returncode, time.monotonic() - begin

    def close(self):
        with self._lock:
            self.is_stopped = True
        self._process.kill()
        self._process.wait()
        self._keeper.join()


class Project:
    """`docker compose up` of some services of the file. Use as a context manager."""

    def __init__(self, names: list[str]):
        self.file = yaml.safe_load(FILE.read_text())
        self.services = {name: self.file["services"][name] for name in names}
        self._stack = contextlib.ExitStack()
        self.containers: dict[str, Container] = {}
        self.logs = {}
        with contextlib.ExitStack() as stack:
            self._folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conclave-compose-")))
            self._folder.chmod(0o755)
            self._image = conclave_image(self._folder)
            self._bridges = {}
            for number, (name, network) in enumerate(self.file["networks"].items(), start=1):
                self._bridges[name] = machines.Bridge(name, number, network.get("internal", False))
                stack.callback(self._bridges[name].close)
            self.machines = {name: stack.enter_context(self._machine(name)) for name in names}
            self._name_services()
            self._publish()
            self._stack = stack.pop_all()

    def _image_of(self, name: str) -> Image:
        return PROMETHEUS_IMAGE if name == "prometheus" else self._image

    def _volume(self, name: str, image: Image, target: str) -> pathlib.Path:
        """A named volume, shared by whoever names it; new ones are owned as the image's folder there is."""
        folder = self._folder / f"volume-{name}"
        if not folder.exists():
            folder.mkdir(mode=0o755)
            if target in (image.home, image.folder):
                os.chown(folder, image.user, image.user)
        return folder

    def _machine(self, name: str) -> machines.Machine:
        service, image = self.services[name], self._image_of(name)
        mounts = list(image.mounts)
        for volume in service["volumes"]:
            source, target, *mode = interpolate(volume).split(":")
            path = (FILE.parent / source).resolve() if source.startswith(".") else self._volume(source, image, target)
            mounts.append(machines.Mount(path, target, mode != ["ro"]))
        if image.home and image.home not in [mount.target for mount in mounts]:
            mounts.append(machines.Mount(self._volume(f"home-{name}", image, image.home), image.home, not service["read_only"]))
        return machines.Machine(name, mounts, [self._bridges[network] for network in service["networks"]],
                                [f"user:x:{image.user}:{image.user}::/:/usr/sbin/nologin"] if image.user != machines.NOBODY else [],
                                service.get("read_only", False), service.get("shm_size", "64m").replace("gb", "g"))

    def _name_services(self):
        """docker's own resolver: every service by its name, on the networks that both are on."""
        for machine in self.machines.values():
            machine.set_hosts({other.name: other.addresses[network] for network in reversed(list(machine.addresses))
                               for other in self.machines.values() if network in other.addresses})

    def _publish(self):
        """docker's own rules for published ports."""
        namespaces.run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
        rules = ["table ip published {", "chain o { type nat hook output priority -100;"]
        for name, service in self.services.items():
            for port in service.get("ports", []):
                host, outer, inner = port.split(":")
                rules.append(f"oifname lo ip daddr {host} tcp dport {outer} dnat to {self.machines[name].addresses['published']}:{inner};")
        rules += ["}", "chain p { type nat hook postrouting priority 100; ip saddr 127.0.0.1 oifname published masquerade; }", "}"]
        namespaces.run("nft", "-f", "-", stdin="\n".join(rules) + "\n")

    def needs(self, name: str) -> dict[str, str]:
        return {other: entry["condition"] for other, entry in self.services[name].get("depends_on", {}).items()}

    def up(self):
        """Each as soon as what it depends on is as it wants it, and until all are healthy, as `up --wait` does."""
        waiting = list(self.services)
        while waiting:
            ready = [name for name in waiting if all(other in self.containers for other in self.needs(name))]
            for name in ready:
                for other, condition in self.needs(name).items():
                    if condition == "service_healthy":
                        self.wait_healthy(other)
                self._start(name)
                waiting.remove(name)
            assert ready, f"depends_on in a circle: {waiting}"
        for name in self.services:
            self.wait_healthy(name)

    def _start(self, name: str):
        self.logs[name] = self._stack.enter_context(tempfile.TemporaryFile())
        container = Container(name, self.services[name], self._image_of(name), self.machines[name], self.logs[name])
        self._stack.callback(container.close)
        self.containers[name] = container

    def wait_healthy(self, name: str):
        cluster.wait_until(self.containers[name].is_healthy, f"{name} is healthy", 60)

    def down(self) -> dict[str, tuple[int, float]]:
        """Whoever nobody that still runs depends on is stopped, all of these at once."""
        ended = {}
        running = [name for name, container in self.containers.items() if not container.is_stopped]
        while running:
            leaves = [name for name in running if not any(name in self.needs(other) for other in running)]
            with concurrent.futures.ThreadPoolExecutor(len(leaves)) as pool:
                ended.update(zip(leaves, pool.map(lambda name: self.containers[name].stop(), leaves)))
            running = [name for name in running if name not in ended]
        return ended

    def log(self, name: str) -> str:
        self.logs[name].seek(0)
        return self.logs[name].read().decode(errors="replace")

    def run(self, name: str, *argv: str) -> str:
        """`docker compose exec`."""
        container = self.containers[name]
        return namespaces.run(*self.machines[name].prefix(), *container._as_user, *argv)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()
