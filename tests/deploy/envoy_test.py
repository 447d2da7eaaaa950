"""Goal: deploy/proxy/envoy.yaml says the same as nginx.conf beside it.

Method: Envoy is not in Debian and is not run; its file is read as YAML and compared with nginx's, which is.
"""

import unittest

import deploy_files as deploy
import yaml

FOLDER = deploy.DEPLOY / "proxy"


class EnvoyTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.config = yaml.safe_load((FOLDER / "envoy.yaml").read_text())
        resources = cls.config["static_resources"]
        (cls.cluster,) = resources["clusters"]
        (cls.listener,) = resources["listeners"]
        cls.http = cls.listener["filter_chains"][0]["filters"][0]["typed_config"]
        (cls.route,) = cls.http["route_config"]["virtual_hosts"][0]["routes"]

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
        self.assertEqual(self.cluster["lb_policy"], "LEAST_REQUEST")
        self.assertIn(503, self.route["route"]["retry_policy"]["retriable_status_codes"])
        self.assertEqual(self.listener["per_connection_buffer_limit_bytes"], 32 << 20)


if __name__ == "__main__":
    deploy.main()
