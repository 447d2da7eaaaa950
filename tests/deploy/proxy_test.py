"""Goal: nginx with deploy/proxy/nginx.conf passes streams piece by piece, ends the answers of clients that leave, and hides from
clients that a frontend dies or drains.

Method: the real nginx with the file, of which ports and paths alone are replaced, before two `conclave serve`; what runs on each of
them is read from its metrics. The cases that Envoy has to pass too are in proxies.py.
"""

import shutil
import unittest
import urllib.parse

import deploy_files as deploy
import proxies

conclave = deploy.conclave
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
if not NGINX:
    deploy.skip("no nginx; tools/setup.sh test installs it")


class Nginx(proxies.Proxy):
    def command(self, servers) -> list[str]:
        text = (proxies.FOLDER / "nginx.conf").read_text()
        for server, port in zip(servers, (8001, 8002)):
            text = text.replace(f"server 127.0.0.1:{port} ", f"server {urllib.parse.urlsplit(server.api).netloc} ")
        temporary = "".join(f"  {name}_temp_path {self.folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        text = (text.replace("listen 127.0.0.1:8080;", f"listen {self.address};").replace("/var/log/nginx/", f"{self.folder}/")
                .replace("/run/nginx.pid", f"{self.folder}/nginx.pid").replace("http {\n", "http {\n" + temporary, 1)
                .replace("worker_processes auto;", "worker_processes 1;"))
        config = self.folder / "nginx.conf"
        config.write_text(text)
        return [NGINX, "-c", str(config), "-e", f"{self.folder}/start.log", "-g", "daemon off;"]

    def is_ready(self) -> bool:
        try:
            return conclave.http_request(self.api, "GET", "/health/live").status == 200
        except OSError:
            return False


class NginxTest(proxies.ProxyCases, unittest.TestCase):
    proxy_type = Nginx

    def test_a_conversation_stays_where_it_is(self):
        for _ in range(6):
            self.assertEqual(self.proxy.chat(proxies.SHORT, {"X-Conversation-Id": "c-1"}).status, 200)
        self.assertEqual(sorted(proxies.answered(server) for server in self.servers), [0, 6])
        for index in range(16):
            self.proxy.chat({**proxies.SHORT, "max_tokens": 1}, {"X-Conversation-Id": f"c-{index}"})
        self.assertTrue(all(proxies.answered(server) for server in self.servers), "all conversations on one server")

    def test_requests_keep_their_id_and_only_the_api_is_passed_on(self):
        self.assertEqual(self.proxy.chat(proxies.SHORT, {"X-Request-Id": "mine-1"}).headers["x-request-id"], "mine-1")
        self.assertRegex(self.proxy.chat(proxies.SHORT).headers["x-request-id"], r"^[0-9a-f]{32}$")
        for path in ("/metrics", "/health/ready", "/"):
            self.assertEqual(conclave.http_request(self.proxy.api, "GET", path).status, 404, path)

    def test_a_large_picture_passes(self):
        large = {**proxies.SHORT, "messages": [conclave.user("What is in the image?", conclave.bytes_data_uri(b"\0" * (20 << 20)))]}
        self.assertEqual(self.proxy.chat(large).status, 400, "the server's own refusal, not nginx's 413")
        self.assertEqual(self.proxy.chat({**proxies.SHORT, "x": "y" * (33 << 20)}).status, 413)


if __name__ == "__main__":
    deploy.main()
