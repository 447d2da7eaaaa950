"""What the tests of deploy/ share: finding conclave command lines in files, and trying them with the real binary."""

import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import conclave_process as conclave  # noqa: E402  (needs the path above)

ROOT = conclave.ROOT
DEPLOY = ROOT / "deploy"
GUIDE = ROOT / "docs" / "deploy.md"
CHART = DEPLOY / "helm" / "conclave"
ROLES = {"router", "worker", "frontend", "serve"}
COMMANDS = ROLES | {"cluster", "ask", "inspect", "synth", "doctor", "version"}

_flags: dict[str, set[str]] = {}


def flags_of(command: str) -> set[str]:
    """Long flags that `conclave COMMAND --help` lists."""
    if command not in _flags:
        text = conclave.run(command, "--help").stdout
        _flags[command] = set(re.findall(r"^ {2,6}(?:-\w, )?(--[a-z][a-z0-9-]*)", text, re.MULTILINE))
    return _flags[command]


def variables_of(command: str) -> set[str]:
    return set(re.findall(r"\[(CONCLAVE_[A-Z_]+)\]", conclave.run(command, "--help").stdout))


def all_flags() -> set[str]:
    return set().union(*map(flags_of, COMMANDS))


class Stage:
    """A folder with what a command line names and this machine has not: models, certificates, configuration."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="conclave-deploy-")
        self.certificates = pathlib.Path(self._folder.name) / "certificates"
        made = conclave.run("cluster", "certs", str(self.certificates))
        if made.returncode != 0:
            raise AssertionError(f"cluster certs: {made.stderr}")

    def close(self):
        self._folder.cleanup()

    def here(self, argv: list[str]) -> list[str]:
        """The command line with paths and hosts of another machine replaced by ones that are here."""
        flag = ""
        out = []
        for word in argv:
            name, equals, value = word.partition("=") if word.startswith("--") else (flag, "", word)
            replaced = self._value(name, value)
            out.append(f"{name}={replaced}" if equals else replaced if value else word)
            flag = word if word.startswith("-") and not equals else ""
        return out

    def _value(self, flag: str, value: str) -> str:
        value = value.replace("$(POD_NAME)", "pod-0").replace("$(POD_IP)", "10.1.2.3")
        if flag == "--config":
            return str(DEPLOY / "systemd" / "etc" / pathlib.PurePath(value).name)
        if flag in ("--model", "-m"):
            return str(conclave.MODEL)
        if flag.startswith("--tls-"):
            name = {"--tls-ca": "ca.pem", "--tls-cert": "worker.pem", "--tls-key": "worker-key.pem"}[flag]
            return str(self.certificates / name)
        if flag in ("--listen", "--admin-listen", "--grpc-listen", "--etcd") and not re.match(r"[\d.]+:", value):
            return re.sub(r"[^:,]+:", "127.0.0.1:", value)
        return value


def try_command(test: unittest.TestCase, stage: Stage, argv: list[str], env: dict[str, str] | None = None, where: str = ""):
    """The command line parses, and what its settings mean together is accepted."""
    test.assertIn(argv[0], COMMANDS, f"{where}: no command of conclave: {argv}")
    argv = [word for word in argv if word not in ("--print-config", "--check-config")]
    here = stage.here(argv)
    if argv[0] == "cluster" or argv[0] in ROLES:
        result = conclave.run(*here, "--print-config", env=env)
        test.assertEqual(result.returncode, 0, f"{where}: conclave {shlex.join(argv)}: {result.stderr}")
    if argv[0] in ROLES:
        result = conclave.run(*here, "--check-config", env=env)
        test.assertEqual((result.returncode, result.stdout), (0, "ok\n"),
                         f"{where}: conclave {shlex.join(argv)}: {result.stderr}")
    for word in argv:
        if word.startswith("--"):
            test.assertIn(word.partition("=")[0], flags_of(argv[0]), f"{where}: conclave {shlex.join(argv)}")


def shell_commands(text: str) -> list[list[str]]:
    """`conclave ...` at the beginning of lines of a page's blocks, indented or fenced, or after what runs a command, or a variable."""
    found = []
    is_fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            is_fenced = not is_fenced
            continue
        match = re.match(r"(?:    )?(?:\S+@\S+\$ )?(.*)" if is_fenced else r"    (?:\S+@\S+\$ )?(.*)", line)
        if not match:
            continue
        for part in re.split(r"\s(?:&&|\|\||\||;)\s", match[1]):
            words = shlex.split(part, comments=True)
            starts = [index for index, word in enumerate(words)
                      if (word == "conclave" or word.endswith("/conclave")) and index + 1 < len(words)
                      and words[index + 1] in COMMANDS and (index == 0 or words[index - 1] in ("--", "sudo", "router") or "=" in words[index - 1])]
            if starts:
                argv = words[starts[0] + 1:]
                found.append([word for word in argv if word != "&" and not re.match(r"\d?>", word)])
    return found


def run_tool(*argv: str, timeout: float = 60, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=timeout, **kwargs)


def skip(reason: str):
    """Ends the whole script as skipped."""
    print(f"skipped: {reason}")
    sys.exit(77)


def main():
    unittest.main(module=sys.modules["__main__"], verbosity=2)
