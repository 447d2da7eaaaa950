"""Goal: whatever deploy/ and docs/deploy.md say to conclave, conclave understands.

Method: every command line of units, compose file, image and guide is given to the real binary with --print-config and
--check-config; every word that looks like a flag or a variable is one of --help or of a known other tool. helm_test.py does
the same with the rendered chart.
"""

import pathlib
import re
import shlex
import unittest

import deploy_files as deploy
import yaml

# Flags of tools that deploy/ and the guide use: whatever is no flag of conclave has to be one of these.
OTHER_FLAGS = {
    # docker, docker compose
    "--build", "--wait", "--interval", "--timeout", "--start-period", "--retries", "--from", "--chmod", "--rm",
    # Prometheus, and deploy/grafana/dashboards.py
    "--check", "--config.file", "--storage.tsdb.path", "--storage.tsdb.retention.time",
    # cmake, apt, useradd
    "--install", "--prefix", "--strip", "--preset", "--no-install-recommends", "--uid", "--gid", "--home-dir", "--create-home", "--shell",
    # systemctl, journalctl, install, etcd
    "--now", "--signal", "--create", "--listen-client-urls", "--advertise-client-urls", "--data-dir",
    # helm, kubectl
    "--namespace", "--create-namespace", "--set", "--from-file",
}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9](?![\w-])")


def files() -> dict[str, str]:
    found = {}
    for path in [*sorted(deploy.DEPLOY.rglob("*")), deploy.GUIDE]:
        if path.is_file() and path.suffix not in (".json",) and not any(parent.is_symlink() for parent in path.parents):
            found[path.relative_to(deploy.ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return found


class FlagsTest(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.stage = deploy.Stage()
        cls.addClassCleanup(cls.stage.close)

    def try_command(self, argv, env=None, where=""):
        deploy.try_command(self, self.stage, argv, env, where)

    def test_every_flag_and_variable_exists(self):
        known = deploy.all_flags() | OTHER_FLAGS
        variables = set().union(*map(deploy.variables_of, deploy.COMMANDS))
        # Of compose itself, and of the binary before any command.
        variables |= {"CONCLAVE_MODEL_DIR", "CONCLAVE_VERSION", "CONCLAVE_HOME"}
        used = set()
        for path, text in files().items():
            if path.startswith(("deploy/grafana/", "deploy/prometheus/")):
                continue  # with tests of their own
            for flag in FLAG.findall(text):
                self.assertIn(flag, known, path)
                used.add(flag)
            for variable in re.findall(r"\bCONCLAVE_[A-Z_]+\b", text):
                # CONCLAVE_NAME also stands for "the variable of the setting `name`".
                self.assertIn(variable, variables, path)
        self.assertEqual(OTHER_FLAGS - used, set(), "nobody uses these any more")

    def test_units(self):
        units = sorted((deploy.DEPLOY / "systemd").glob("*.service"))
        self.assertEqual(len(units), 4)
        for unit in units:
            text = unit.read_text().replace("%i", "1").replace("%H", "host-a")
            command = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1]
            words = shlex.split(command)
            self.assertEqual(words[0], "/usr/local/bin/conclave")
            env = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
            self.try_command(words[1:], {name: value for name, value in env.items() if name.startswith("CONCLAVE_")}, unit.name)
            unknown = {name for name in env if name.startswith("CONCLAVE_")} - deploy.variables_of(words[1])
            self.assertEqual(unknown, set(), unit.name)

    def test_configuration_examples(self):
        for path in sorted((deploy.DEPLOY / "systemd" / "etc").glob("*.yaml")):
            result = deploy.conclave.run(path.stem, "--config", str(path), "--check-config")
            self.assertEqual((result.returncode, result.stdout), (0, "ok\n"), f"{path.name}: {result.stderr}")
            # What is commented out is an example too.
            text = re.sub(r"^#(?=[a-z-]+: )", "", path.read_text(), flags=re.MULTILINE)
            for key in yaml.safe_load(text):
                self.assertIn(f"--{key}", deploy.flags_of(path.stem), path.name)
        for path in sorted((deploy.DEPLOY / "systemd" / "etc").glob("*.env")):
            for variable in re.findall(r"^#?(CONCLAVE_\w+)=", path.read_text(), re.MULTILINE):
                self.assertIn(variable, deploy.variables_of(path.stem.partition("-")[0]), path.name)

    def test_compose(self):
        services = yaml.safe_load((deploy.DEPLOY / "compose" / "compose.yaml").read_text())["services"]
        tried = 0
        for name, service in services.items():
            if not service["image"].startswith("conclave:"):
                continue
            env = {key: "" if value.startswith("${") else value for key, value in service["environment"].items()}
            self.try_command(shlex.split(service["command"]), env, f"compose: {name}")
            tried += 1
        self.assertEqual(tried, 6)

    def test_image(self):
        text = (deploy.DEPLOY / "docker" / "Dockerfile").read_text()
        command = yaml.safe_load(re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)[1])
        self.try_command(command, where="Dockerfile")

    def test_guide_and_comments(self):
        commands = [(str(path.relative_to(deploy.ROOT)), argv) for path in (deploy.GUIDE, deploy.DEPLOY / "README.md")
                    for argv in deploy.shell_commands(path.read_text(encoding="utf-8"))]
        self.assertGreater(len(commands), 10)
        for where, argv in commands:
            self.try_command(argv, where=where)


if __name__ == "__main__":
    deploy.main()
