"""Machines that are namespaces of this one: own network, host name, shared memory and file tree, on bridges of the test.

A machine's tree is a tmpfs with /usr of this machine, read-only, below what it is given: folders and files at the places where
the programs look for them. So /etc, /var, /tmp, /dev/shm and /usr/local are its own, and nothing of this machine is written to.
As in tests/e2e/namespaces.py, namespaces have no names and go with their holders, which the kernel kills with the test.
"""

import dataclasses
import pathlib
import shlex
import shutil
import subprocess
import tempfile

import deploy_files  # noqa: F401  (finds the next ones)
import namespaces

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# What programs read of a Debian's /etc, beside accounts and names.
ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl", "alternatives", "nginx", "mime.types", "debian_version", "os-release")
NOBODY = 65534


def why_not() -> str | None:
    """What keeps this machine from it; None: nothing."""
    return namespaces.why_not(needs_emulator=False) or next(
        (f"{tool} is not installed" for tool in ("chroot", "mount", "setpriv") if shutil.which(tool) is None), None)


@dataclasses.dataclass
class Mount:
    source: pathlib.Path  # of this machine
    target: str
    writable: bool = True


class Bridge:
    """A network of machines, 172.30.NUMBER.0/24; the test itself is its .254 unless `is_internal`."""

    def __init__(self, name: str, number: int, is_internal: bool = False):
        self.name = name
        self._prefix = f"172.30.{number}"
        self._next = 1
        namespaces.run("ip", "link", "add", name, "type", "bridge", "forward_delay", "0")
        namespaces.run("ip", "link", "set", name, "up")
        if not is_internal:
            namespaces.run("ip", "addr", "add", f"{self._prefix}.254/24", "dev", name)

    def next_address(self) -> str:
        self._next += 1
        return f"{self._prefix}.{self._next}"

    def close(self):
        namespaces.delete_link(self.name)


class Machine:
    """Close it, or use it as a context manager. `accounts` are lines of /etc/passwd behind root's and nobody's."""

    def __init__(self, name: str, mounts: list[Mount], bridges: list[Bridge], accounts: list[str] = (), read_only: bool = False,
                 shm_size: str = "64m"):
        self.name = name
        self.addresses = {bridge.name: bridge.next_address() for bridge in bridges}
        self._folder = tempfile.TemporaryDirectory(prefix=f"conclave-{name}-")
        folder = pathlib.Path(self._folder.name)
        self.root = folder / "root"
        self.root.mkdir()
        self.etc = folder / "etc"
        self.etc.mkdir(mode=0o755)
        self._write_etc(name, accounts)
        self._outer: list[str] = []
        script = folder / "setup.sh"
        script.write_text(self._script(mounts, read_only, shm_size), encoding="utf-8")
        self._holder = subprocess.Popen(["unshare", "--net", "--uts", "--ipc", "--mount", "sh", "-ec",
                                         f". {script}; echo up; exec sleep infinity"], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, preexec_fn=namespaces.die_with_parent)
        try:
            if self._holder.stdout.readline() != "up\n":
                raise AssertionError(f"{name}: {self._holder.stderr.read()}")
            for bridge in bridges:
                self._join(bridge)
        except BaseException:
            self.close()
            raise

    def _write_etc(self, name: str, accounts):
        for entry in ETC:
            source = pathlib.Path("/etc") / entry
            if source.is_dir():
                shutil.copytree(source, self.etc / entry, symlinks=True)
            elif source.exists():
                shutil.copy(source, self.etc / entry)
        lines = ["root:x:0:0:root:/root:/bin/bash", f"nobody:x:{NOBODY}:{NOBODY}:nobody:/nonexistent:/usr/sbin/nologin", *accounts]
        groups = ["root:x:0:", f"nogroup:x:{NOBODY}:"] + [f"{line.split(':')[0]}:x:{line.split(':')[3]}:" for line in accounts]
        files = {"passwd": lines, "group": groups, "shadow": [f"{line.split(':')[0]}:*:1::::::" for line in lines],
                 "gshadow": [f"{line.split(':')[0]}:*::" for line in groups], "hostname": [name],
                 "nsswitch.conf": ["passwd: files", "group: files", "shadow: files", "hosts: files"]}
        for file, content in files.items():
            (self.etc / file).write_text("".join(f"{line}\n" for line in content))
        self.set_hosts({})

    def set_hosts(self, names: dict[str, str]):
        """What /etc/hosts says beside localhost; a name at once, without a restart of anybody."""
        (self.etc / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in names.items()))

    def _script(self, mounts: list[Mount], read_only: bool, shm_size: str) -> str:
        root = shlex.quote(str(self.root))
        lines = [f"R={root}", f"hostname {shlex.quote(self.name)}", "ip link set lo up",
                 "mount -t tmpfs -o mode=755 root $R", "mkdir -p $R/usr $R/etc $R/proc $R/sys $R/dev $R/tmp $R/run $R/root $R/var/lib $R/var/log",
                 "for d in bin sbin lib lib32 lib64; do if [ -L /$d ]; then cp -P /$d $R/; fi; done",
                 "mount --bind /usr $R/usr", "mount -o remount,bind,ro $R/usr",
                 f"mount --bind {shlex.quote(str(self.etc))} $R/etc", "mount -t sysfs sysfs $R/sys", "mount -t proc proc $R/proc",
                 "mount -t tmpfs -o mode=755 dev $R/dev", "mkdir $R/dev/shm", f"mount -t tmpfs -o mode=1777,size={shm_size} shm $R/dev/shm",
                 "mount -t tmpfs -o mode=1777 tmp $R/tmp", "ln -s /proc/self/fd $R/dev/fd"]
        for device in DEVICES:
            lines.append(f"touch $R/dev/{device}; mount --bind /dev/{device} $R/dev/{device}")
        for mount in mounts:
            source, target = shlex.quote(str(mount.source)), "$R" + shlex.quote(mount.target)
            make = f"mkdir -p {target}" if mount.source.is_dir() else \
                f"mkdir -p $(dirname {target}); [ -e {target} ] || touch {target}"
            lines += [f"[ -e {target} ] || {{ {make}; }}", f"mount --bind {source} {target}"]
            if not mount.writable:
                lines.append(f"mount -o remount,bind,ro {target}")
        if read_only:
            lines.append("mount -o remount,ro $R")
        return "".join(f"{line}\n" for line in lines)

    def _join(self, bridge: Bridge):
        device = f"eth{len(self._outer)}"
        outer = f"{self.name[:10]}{len(self._outer)}"
        self._outer.append(outer)
        namespaces.run("ip", "link", "add", outer, "type", "veth", "peer", "name", device, "netns", str(self._holder.pid))
        namespaces.run("ip", "link", "set", outer, "master", bridge.name, "up")
        self.run("ip", "addr", "add", f"{self.addresses[bridge.name]}/24", "dev", device)
        self.run("ip", "link", "set", device, "up")

    def prefix(self) -> list[str]:
        """Before a command: runs it on the machine, with its file tree as the root."""
        return ["nsenter", "--target", str(self._holder.pid), "--net", "--uts", "--ipc", "--mount", "chroot", str(self.root)]

    def init_prefix(self) -> list[str]:
        """As `prefix`, and the command is process 1 of a process namespace of its own, as in a container."""
        return ["nsenter", "--target", str(self._holder.pid), "--net", "--uts", "--ipc", "--mount", "unshare", "--mount", "--pid",
                "--fork", "--kill-child", f"--mount-proc={self.root}/proc", "chroot", str(self.root)]

    def run(self, *args: str) -> str:
        return namespaces.run(*self.prefix(), *args)

    def close(self):
        for outer in self._outer:
            namespaces.delete_link(outer)
        self._holder.kill()
        self._holder.wait()
        self._holder.stdout.close()
        self._holder.stderr.close()
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def environment(values: dict[str, str], folder: str = "/") -> list[str]:
    """`env` with these variables and no others, in that folder."""
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return ["env", "-i", f"--chdir={folder}", path, *(f"{name}={value}" for name, value in values.items())]


def become(user: int, group: int) -> list[str]:
    """That user for the rest of the command, without any right of root's; killed with whoever started it."""
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
            "--inh-caps=-all", "--pdeathsig=KILL"]


def child_of(pid: int) -> int | None:
    """The one process that `pid` has started."""
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None
