"""Goal: the image is built from what is there, holds the libraries that the binary needs and no others, and its health check
tells a live process from a dead one.

Method: hadolint reads the Dockerfile; its COPY lines are compared with the tree and with .dockerignore, its packages with
what the real binary is linked with; the health check asks real processes.
"""

import pathlib
import re
import shutil
import socket
import subprocess
import sys
import unittest

import deploy_files as deploy
import cluster

DOCKERFILE = deploy.DEPLOY / "docker" / "Dockerfile"
HEALTHCHECK = deploy.DEPLOY / "docker" / "healthcheck.sh"
# In every Debian, or wanted by one of the others in any case.
BASE = {"libc6", "libstdc++6", "libgcc-s1"}


def instructions() -> list[tuple[str, str]]:
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#"))
    return [tuple(line.split(None, 1)) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def ignored(path: str) -> bool:
    """By .dockerignore, whose first line is `*` and whose others take something back."""
    rules = [line for line in (deploy.ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*" and all(rule.startswith("!") for rule in rules[1:]), rules
    return not any(path == rule[1:] or path.startswith(rule[1:] + "/") for rule in rules[1:])


class ImageTest(unittest.TestCase):
    def test_hadolint(self):
        hadolint = pathlib.Path(sys.executable).parent / "hadolint"
        if not hadolint.exists():
            self.skipTest("no hadolint; tools/test.sh installs it from tests/requirements.txt")
        result = deploy.run_tool(hadolint, "--no-color", "--failure-threshold", "style", DOCKERFILE)
        self.assertEqual((result.returncode, result.stdout), (0, ""))

    def test_what_is_copied_is_there_and_sent(self):
        for name, rest in instructions():
            if name != "COPY" or "--from=" in rest:
                continue
            words = [word for word in rest.split() if not word.startswith("--")]
            for source in words[:-1]:
                if source == ".":
                    continue
                self.assertTrue((deploy.ROOT / source).exists(), source)
                self.assertFalse(ignored(source), f".dockerignore leaves out {source}")

    def test_every_source_of_the_build_is_sent(self):
        top = (deploy.ROOT / "CMakeLists.txt").read_text()
        for folder in re.findall(r"^add_subdirectory\((\w+)\)", top, re.MULTILINE):
            self.assertFalse(ignored(folder), folder)
        for path in ("CMakePresets.json", "cmake/Conclave.cmake", "models/demo/config.json", "tools/setup.sh", "LICENSE"):
            self.assertTrue((deploy.ROOT / path).exists() and not ignored(path), path)
        for path in ("tests", "docs", ".git", "build", ".venv", "bench"):
            self.assertTrue(ignored(path), path)

    def test_packages_are_those_that_the_binary_is_linked_with(self):
        if not shutil.which("readelf") or not shutil.which("dpkg-query"):
            self.skipTest("no readelf or dpkg-query: this is no Debian with binutils")
        libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", deploy.run_tool("readelf", "-d", deploy.conclave.BINARY).stdout)
        self.assertGreater(len(libraries), 20)
        found = deploy.run_tool("dpkg-query", "--search", *(f"*/{library}" for library in libraries)).stdout
        # Not the libraries of other architectures, which may be installed beside.
        wanted = {line.split(":")[0] for line in found.splitlines() if re.search(r"/lib/x86_64-linux-gnu/[^/]+$", line)} - BASE
        runs = [rest for name, rest in instructions() if name == "RUN"]
        (install,) = [run for run in runs if "libgrpc++" in run]
        listed = set(re.findall(r"\slib[\w.+-]+|\szlib1g", install))
        listed = {package.strip() for package in listed} - BASE
        sanitizers = {package for package in wanted if re.match(r"lib(asan|tsan|ubsan)", package)}
        self.assertEqual(listed, wanted - sanitizers)

    def test_it_does_not_run_as_root(self):
        names = [name for name, _ in instructions()]
        users = [rest for name, rest in instructions() if name == "USER"]
        self.assertRegex(users[-1], r"^[1-9]\d*:[1-9]\d*$")
        self.assertLess(names.index("USER"), names.index("ENTRYPOINT"))
        labels = next(rest for name, rest in instructions() if name == "LABEL")
        for key in ("title", "description", "licenses", "version", "revision"):
            self.assertIn(f"org.opencontainers.image.{key}=", labels)

    def healthcheck(self, *args: str, env=None) -> subprocess.CompletedProcess:
        return deploy.run_tool(HEALTHCHECK, *args, env={"PATH": "/usr/bin:/bin", **(env or {})}, timeout=10)

    def test_health_check(self):
        with deploy.conclave.Router() as router:
            port = router.ready["admin"].rsplit(":", 1)[1]
            self.assertEqual(self.healthcheck("live", port).returncode, 0)
            self.assertEqual(self.healthcheck("ready", port).returncode, 0)
            self.assertEqual(self.healthcheck(env={"CONCLAVE_ADMIN_LISTEN": f"0.0.0.0:{port}"}).returncode, 0)
            self.assertNotEqual(self.healthcheck("elsewhere", port).returncode, 0)
        self.assertNotEqual(self.healthcheck("live", port).returncode, 0, "the process is gone")

    def test_health_check_of_one_that_is_not_ready(self):
        # It looks for a router that is not there, and its admin address is all that answers.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        worker = subprocess.Popen(deploy.conclave.command("worker", "--router", "127.0.0.1:1", "--admin-listen", f"127.0.0.1:{port}"),
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=deploy.conclave.clean_environment())
        try:
            cluster.wait_until(lambda: self.healthcheck("live", str(port)).returncode == 0, "the worker is alive")
            result = self.healthcheck("ready", str(port))
            self.assertEqual((result.returncode, result.stderr), (1, "/health/ready: 503\n"))
        finally:
            worker.kill()
            worker.wait()


if __name__ == "__main__":
    deploy.main()
