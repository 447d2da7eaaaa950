"""Goal: certificates of deploy/tls/issue.sh carry a cluster over several names, and refuse who has none or another role's.

Method: the script makes an authority and certificates; a real cluster runs with them under the name `localhost`, which none of
its addresses is; its members are asked, and intruders try.
"""

import os
import pathlib
import shutil
import tempfile
import unittest

import deploy_files as deploy
import cluster

conclave = deploy.conclave
ISSUE = deploy.DEPLOY / "tls" / "issue.sh"

if not shutil.which("openssl"):
    deploy.skip("no openssl")


class CertificatesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="conclave-tls-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.tls = pathlib.Path(cls.folder.name) / "tls"
        for role in ("router", "worker/w1", "frontend", "operator"):
            cls.issue("prod", role, "localhost")

    @classmethod
    def issue(cls, *args: str, expected: int = 0):
        result = deploy.run_tool(ISSUE, cls.tls, *args)
        if result.returncode != expected:
            raise AssertionError(f"issue.sh {args}: {result.returncode}: {result.stdout}{result.stderr}")
        return result

    def flags(self, name: str) -> list[str]:
        return ["--tls-cert", str(self.tls / f"{name}.pem"), "--tls-key", str(self.tls / f"{name}-key.pem"),
                "--tls-ca", str(self.tls / "ca.pem")]

    def status(self, router: str, *flags: str):
        return conclave.run("cluster", "status", "--router", router, *flags)

    def test_a_cluster_with_them(self):
        with conclave.Router("--insecure", *self.flags("router")) as router:
            address = "localhost:" + router.control.rsplit(":", 1)[1]
            # A free port that the worker can say before it has it.
            with conclave.Router() as probe:
                data = probe.control.rsplit(":", 1)[1]
            with conclave.Process("worker", "--router", address, "--name", "w1", "--model", str(conclave.MODEL), "--threads", "1",
                                  "--listen", f"127.0.0.1:{data}", "--advertise", f"localhost:{data}", *self.flags("worker-w1")), \
                    cluster.Frontend(address, "--rescue-memory", "0B", *self.flags("frontend")) as frontend:
                cluster.wait_until(lambda: frontend.request("GET", "/health/ready").status == 200, "the frontend is ready")
                answer = frontend.chat({"model": "demo", "messages": [conclave.user("Hello")], "max_tokens": 4})
                self.assertEqual(answer.status, 200, answer)
                self.assertEqual(frontend.channels(), {"ucx": 0, "grpc": 1}, "TLS, so gRPC")
                self.assertEqual(self.status(address, *self.flags("operator")).returncode, 0)
                self.assertNotEqual(self.status(address).returncode, 0, "without a certificate")
                refused = self.status(address, *self.flags("worker-w1"))
                self.assertIn("peer_role", refused.stderr, "a worker is no operator")
                by_address = self.status(router.control, *self.flags("operator"))
                self.assertNotEqual(by_address.returncode, 0, "its certificate does not have the address")

    def test_keys_are_their_owners(self):
        for path in self.tls.glob("*-key.pem"):
            self.assertEqual(path.stat().st_mode & 0o777, 0o600, path.name)

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("setpriv"), "needs root, to be somebody else")
    def test_a_key_of_roots_for_a_group_of_the_service(self):
        """A secret of Kubernetes is root's and of the pod's fsGroup, which may read it; so are keys that `install -g` puts in place."""
        user, group, stranger = "10001", 20001, 30001
        with tempfile.TemporaryDirectory(prefix="conclave-secret-") as name:
            folder = pathlib.Path(name)
            folder.chmod(0o755)
            for source, target in (("router.pem", "tls.crt"), ("router-key.pem", "tls.key"), ("ca.pem", "ca.crt")):
                shutil.copyfile(self.tls / source, folder / target)
            key = folder / "tls.key"

            def start(groups: str, owner: int, group_of_key: int, mode: int):
                os.chown(key, owner, group_of_key)
                key.chmod(mode)
                flags = [word for flag, file in (("cert", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt"))
                         for word in (f"--tls-{flag}", str(folder / file))]
                return conclave.Process("router", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", *flags,
                                        prefix=["setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={groups}"])

            for mode in (0o440, 0o640):
                with start(f"{user},{group}", 0, group, mode) as router:
                    self.assertEqual(router.stop(), 0)
            for groups, owner, group_of_key, mode in ((f"{user},{group}", 0, group, 0o444), (f"{user},{group}", 0, group, 0o660),
                                                      (f"{user},{group}", stranger, group, 0o440)):
                with self.assertRaisesRegex(AssertionError, rf"tls_config.*tls\.key: expected a key of this user \({user}\).*"
                                            rf"mode 0{mode:o}, user {owner}, group {group_of_key}"):
                    start(groups, owner, group_of_key, mode)

    def test_wrong_arguments(self):
        for args in (("prod", "router"), ("prod", "gateway", "localhost"), ("a/b", "worker", "localhost"),
                     ("prod", "router", "localhost")):
            self.assertIn("error: ", self.issue(*args, expected=2).stderr)


if __name__ == "__main__":
    deploy.main()
