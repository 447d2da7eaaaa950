"""Network namespaces for the end-to-end tests: a node per process, joined by bridges or by the emulator `netemu`.

Every node has two interfaces. `ctl` (10.98.0.x) is the test's own way to it, never disturbed: API, admin pages. `data`
(10.99.0.x) is the network of the cluster, on which faults happen: a bridge whose packets nft drops and tbf slows, or the
emulator's device, where there is delay, jitter, loss, duplication and damage too.

Namespaces have no names: each lives as long as its holder, a process that the kernel kills with this one, so nothing is left
behind however a test ends. The test itself moves into a namespace of its own (`enter`), where the bridges are; no interface
of the machine is touched.
"""

import ctypes
import os
import pathlib
import select
import shutil
import subprocess
import time

import conclave_process as conclave

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
SIGKILL = 9
COMMAND_TIMEOUT_S = 20
EMULATOR_DEVICE = "emu0"
_libc = ctypes.CDLL(None, use_errno=True)


def run(*args: str, stdin: str | None = None) -> str:
    done = subprocess.run(args, input=stdin, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def delete_link(name: str):
    """There may be none: a network that could not be made is taken down as well."""
    subprocess.run(["ip", "link", "delete", name], capture_output=True, timeout=COMMAND_TIMEOUT_S)


def why_not(needs_emulator: bool) -> str | None:
    """What keeps this machine from it; None: nothing. Tried, not guessed."""
    for tool in ("ip", "nft", "tc", "nsenter", "unshare", "setpriv"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed; tools/setup.sh test brings it"
    if os.geteuid() != 0:
        return "network namespaces need root"
    script = "ip link set lo up && ip link add name va type veth peer name vb && ip link add name br type bridge && " \
             "nft 'add table inet t; add chain inet t i {type filter hook input priority 0;}' && " \
             "tc qdisc add dev va root tbf rate 10mbit burst 32kbit latency 50ms"
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True,
                          timeout=COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        return f"this kernel or container does not allow it: {done.stderr.strip()}"
    if needs_emulator:
        done = subprocess.run(["unshare", "--net", "ip", "tuntap", "add", "dev", EMULATOR_DEVICE, "mode", "tun"],
                              capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        if done.returncode != 0:
            return f"no TUN devices: {done.stderr.strip()}"
    return None


def enter():
    """Moves the calling thread, and those that it starts, into a new namespace. Once, before there are others."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    run("ip", "link", "set", "lo", "up")


def die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, SIGKILL)


class Node:
    """A namespace with its two addresses. `prefix` before a command runs it there."""

    def __init__(self, number: int):
        self.control = f"10.98.0.{number}"
        self.address = f"10.99.0.{number}"
        self._number = number
        self._outer: list[str] = []  # the ends of its devices in this process's namespace
        self._own = os.readlink("/proc/self/ns/net")
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], preexec_fn=die_with_parent)
        self.namespace = f"/proc/{self._holder.pid}/ns/net"
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while os.readlink(self.namespace) == self._own:
            if time.monotonic() > deadline or self._holder.poll() is not None:
                raise AssertionError("unshare made no namespace")
            time.sleep(0.01)
        # With its own /sys, where UCX looks for devices; and the kernel kills it with this process, as it does the holder.
        self.prefix = ["nsenter", f"--net={self.namespace}", "unshare", "--mount", "sh", "-c",
                       'mount -t sysfs sysfs /sys && exec setpriv --pdeathsig KILL "$@"', "sh"]

    def run(self, *args: str, stdin: str | None = None) -> str:
        return run(*self.prefix, *args, stdin=stdin)

    def join(self, bridge: str, device: str, address: str):
        outer = f"{device}{self._number}"
        self._outer.append(outer)
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", device, "netns", str(self._holder.pid))
        run("ip", "link", "set", outer, "master", bridge, "up")
        self.run("ip", "addr", "add", f"{address}/24", "dev", device)
        self.run("ip", "link", "set", device, "up")

    def close(self):
        # Before the namespace ends: the kernel takes its devices away some time after the last process in it is gone, and
        # until then the next network could not use their names.
        for outer in self._outer:
            delete_link(outer)
        self._holder.kill()
        self._holder.wait()


class Network:
    """Nodes on a bridge, or under the emulator whose program is given. Use as a context manager."""

    def __init__(self, names: list[str], emulator: str | None = None, seed: int = 1):
        self.nodes: dict[str, Node] = {}
        self._emulator = None
        try:
            for bridge in ("ctl", "data"):
                run("ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0")
                run("ip", "link", "set", bridge, "up")
            run("ip", "addr", "add", "10.98.0.254/24", "dev", "ctl")
            for number, name in enumerate(names, start=1):
                node = self.nodes[name] = Node(number)
                node.run("ip", "link", "set", "lo", "up")
                node.join("ctl", "ctl", node.control)
                if emulator is None:
                    node.join("data", "data", node.address)
            if emulator is not None:
                self._start(emulator, seed)
        except BaseException:
            self.close()
            raise

    def _start(self, emulator: str, seed: int):
        ports = [f"{node.namespace}={node.address}" for node in self.nodes.values()]
        self._emulator = subprocess.Popen([emulator, str(seed), *ports], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        answer = self._answer("ready")
        if answer:
            raise AssertionError(f"netemu: {answer}")

    def _answer(self, last: str) -> list[str]:
        """The lines before the one that ends an answer."""
        lines, pending = [], b""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._emulator.stdout], [], [], left)[0]:
                raise AssertionError(f"netemu did not answer within {COMMAND_TIMEOUT_S} s")
            byte = os.read(self._emulator.stdout.fileno(), 1)
            if not byte:
                raise AssertionError(f"netemu ended with {self._emulator.wait()}")
            pending += byte
            if byte == b"\n":
                line, pending = pending.decode().strip(), b""
                if line == last:
                    return lines
                if line.startswith("error"):
                    raise AssertionError(f"netemu: {line}")
                lines.append(line)

    def emulate(self, command: str) -> list[str]:
        """A command of netemu's, such as `set * * loss=0.01`; names of nodes stand for their addresses."""
        words = [self.nodes[word].address if word in self.nodes else word for word in command.split()]
        self._emulator.stdin.write((" ".join(words) + "\n").encode())
        self._emulator.stdin.flush()
        return self._answer("ok")

    def stats(self) -> dict[str, int]:
        """Packets of the emulator, over all links."""
        names = ["passed", "lost", "doubled", "damaged", "cut"]
        rows = [[int(word) for word in line.split()[2:]] for line in self.emulate("stats")]
        return {name: sum(row[index] for row in rows) for index, name in enumerate(names)}

    def cut(self, node: str, peers: list[str], arriving: bool = True, leaving: bool = True):
        """Drops what `node` sends to the peers, what comes from them, or both, on the data network."""
        rules = []
        for peer in peers:
            address = self.nodes[peer].address
            rules += [f"add rule inet cut i ip saddr {address} drop"] if arriving else []
            rules += [f"add rule inet cut o ip daddr {address} drop"] if leaving else []
        self.nodes[node].run("nft", "-f", "-", stdin="\n".join(
            ["add table inet cut", "add chain inet cut i { type filter hook input priority 0; }",
             "add chain inet cut o { type filter hook output priority 0; }", *rules]) + "\n")

    def heal(self, node: str):
        self.nodes[node].run("nft", "delete", "table", "inet", "cut")

    def slow(self, node: str, rate: str):
        """A rate such as 10mbit for what the node sends."""
        self.nodes[node].run("tc", "qdisc", "add", "dev", "data", "root", "tbf", "rate", rate, "burst", "32kbit", "latency",
                             "50ms")

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self._emulator is not None:
            self._emulator.kill()
            self._emulator.wait()
            self._emulator.stdin.close()
            self._emulator.stdout.close()
        for node in self.nodes.values():
            node.close()
        self.nodes = {}
        for bridge in ("ctl", "data"):
            delete_link(bridge)


class Cluster:
    """A router, workers w0, w1, ... and a frontend, each on its node of the network. Of several nodes for routers ("router..."),
    only the first is started. Use as a context manager."""

    def __init__(self, network: Network, args=(), router_args=(), model: pathlib.Path = conclave.MODEL, env=None):
        self.network = network
        self._model = model
        self._env = env
        self._args = list(args)
        self.processes: dict[str, conclave.Process] = {}
        try:
            self.start_router(*router_args, name=self._routers()[0])
            for name in [name for name in network.nodes if name.startswith("w")]:
                self.start_worker(name)
            self.frontend = self.start_frontend()
        except BaseException:
            self.close()
            raise

    def start(self, name: str, kind, role: str, *args: str):
        node = self.network.nodes[name]
        self.processes[name] = kind(role, "--model", str(self._model), "--admin-listen", f"{node.control}:9000", "--insecure",
                                    *args, env=self._env, prefix=node.prefix)
        return self.processes[name]

    def _routers(self) -> list[str]:
        return [name for name in self.network.nodes if name.startswith("router")]

    def control(self) -> str:
        """The routers' addresses, for --router."""
        return ",".join(f"{self.network.nodes[name].address}:7000" for name in self._routers())

    def start_router(self, *args: str, name: str = "router"):
        return self.start(name, conclave.Process, "router", "--listen", f"{self.network.nodes[name].address}:7000", *args)

    def start_worker(self, name: str):
        return self.start(name, conclave.Process, "worker", "--router", self.control(), "--name", name, "--listen",
                          f"{self.network.nodes[name].address}:7100", "--threads", "1", *self._args)

    def start_frontend(self, name: str = "frontend"):
        return self.start(name, conclave.ApiProcess, "frontend", "--router", self.control(), "--listen",
                          f"{self.network.nodes[name].control}:8000", "--threads", "1", *self._args)

    def command(self, *args: str, router: str | None = None) -> subprocess.CompletedProcess:
        """`conclave cluster ...` as the operator, beside the router: the first one if none is named."""
        node = self.network.nodes[router or self._routers()[0]]
        return subprocess.run([*node.prefix, *conclave.command("cluster", *args, "--router", f"{node.address}:7000")],
                              capture_output=True, text=True, timeout=60, env=conclave.clean_environment())

    def metrics(self, name: str) -> str:
        return conclave.http_request(self.processes[name].ready["admin"], "GET", "/metrics").body.decode()

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{process.log()[-4000:]}" for name, process in self.processes.items())

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for process in self.processes.values():
            process.kill()
