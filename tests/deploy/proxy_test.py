"""Goal: behind a proxy a client sees what it sees without one: pieces as they come, an end when it leaves, and no failure when a
frontend dies or drains.

Method: the real nginx with deploy/proxy/nginx.conf, of which ports and paths alone are replaced, before two `conclave serve`;
what runs on each of them is read from its metrics.
"""

import http.client
import json
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import unittest
import urllib.parse

import deploy_files as deploy
import cluster

conclave = deploy.conclave
FOLDER = deploy.DEPLOY / "proxy"
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
if not NGINX:
    deploy.skip("no nginx; tools/setup.sh test installs it")
SHORT = {"model": "demo", "messages": [conclave.user("Hello")], "temperature": 0, "max_tokens": 4}
LONG = {"model": "demo", "messages": [conclave.user("Hello")], "temperature": 0, "stream": True, "max_tokens": 400,
        "ignore_eos": True}


def metric(server, name: str, labels: str = "") -> float:
    text = conclave.http_request(server.ready["admin"], "GET", "/metrics").body.decode()
    found = re.findall(rf"^{name}\{{[^}}]*{labels}[^}}]*\}} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def running(server) -> float:
    return metric(server, "conclave_num_requests_running")


def answered(server) -> float:
    return metric(server, "conclave_request_success_total")


class Nginx:
    """nginx with the example before `apis`, on a port of its own."""

    def __init__(self, apis: list[str]):
        self._folder = tempfile.TemporaryDirectory(prefix="conclave-nginx-")
        folder = pathlib.Path(self._folder.name)
        folder.chmod(0o755)
        text = (FOLDER / "nginx.conf").read_text()
        for api, port in zip(apis, (8001, 8002)):
            text = text.replace(f"server 127.0.0.1:{port} ", f"server {urllib.parse.urlsplit(api).netloc} ")
        with conclave.Router() as probe:  # a port that was free a moment ago
            address = probe.control
        temporary = "".join(f"  {name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        text = (text.replace("listen 127.0.0.1:8080;", f"listen {address};").replace("/var/log/nginx/", f"{folder}/")
                .replace("/run/nginx.pid", f"{folder}/nginx.pid").replace("http {\n", "http {\n" + temporary, 1)
                .replace("worker_processes auto;", "worker_processes 1;"))
        self.config = folder / "nginx.conf"
        self.config.write_text(text)
        self.api = f"http://{address}"
        self.process = subprocess.Popen([NGINX, "-c", str(self.config), "-e", f"{folder}/start.log", "-g", "daemon off;"],
                                        stderr=subprocess.DEVNULL)
        cluster.wait_until(self._answers, "nginx answers", 10)

    def _answers(self) -> bool:
        try:
            return conclave.http_request(self.api, "GET", "/health/live").status == 200
        except OSError:
            return False

    def chat(self, body: dict, headers=None) -> conclave.Response:
        return conclave.http_request(self.api, "POST", "/v1/chat/completions", body, headers)

    def stream(self, body: dict) -> "Stream":
        return Stream(self.api, body)

    def log(self) -> str:
        return (self.config.parent / "error.log").read_text()

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        self._folder.cleanup()


class Stream:
    def __init__(self, api: str, body: dict):
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(api).netloc, timeout=60)
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        self.response = self.connection.getresponse()

    def event(self) -> str:
        for line in self.response:
            if line.startswith(b"data: "):
                return line[6:].decode().strip()
        return ""

    def close(self):
        self.response.close()
        self.connection.close()


class NginxTest(unittest.TestCase):
    def setUp(self):
        self.servers = [conclave.Server("--threads", "1") for _ in range(2)]
        for server in self.servers:
            self.addCleanup(server.kill)
        self.nginx = Nginx([server.api for server in self.servers])
        self.addCleanup(self.nginx.close)

    def stream(self, body=LONG) -> Stream:
        stream = self.nginx.stream(body)
        self.addCleanup(stream.close)
        return stream

    def test_answers_come_in_pieces_and_leaving_ends_them(self):
        stream = self.stream()
        self.assertEqual(stream.response.status, 200)
        self.assertEqual(stream.response.getheader("Content-Type"), "text/event-stream")
        for _ in range(3):
            self.assertIn("chat.completion.chunk", stream.event())
        # The third piece is here and the answer is not at its end: nobody held it back.
        at_work = [server for server in self.servers if running(server)]
        self.assertEqual(len(at_work), 1, self.nginx.log())
        stream.close()
        cluster.wait_until(lambda: running(at_work[0]) == 0, "the answer of the client that left has ended", 10)
        cluster.wait_until(lambda: metric(at_work[0], "conclave_request_success_total", 'finished_reason="abort"') == 1,
                           "it counts as aborted", 10)

    def test_a_whole_stream_is_what_the_server_says(self):
        events = []
        for api in (self.nginx.api, self.servers[0].api):
            stream = Stream(api, {**LONG, "max_tokens": 20})
            self.addCleanup(stream.close)
            events.append([])
            while (event := stream.event()) not in ("[DONE]", ""):
                events[-1].append(json.loads(event)["choices"][0]["delta"].get("content", ""))
            self.assertEqual(event, "[DONE]")
        # How tokens are cut into pieces depends on who was faster, what they say does not.
        self.assertEqual(*map("".join, events))
        self.assertTrue("".join(events[0]).startswith("Hello"))

    def test_the_next_request_goes_where_the_fewest_are(self):
        first = self.stream()
        first.event()
        second = self.stream()
        second.event()
        # The first may be at its end by now; gauges follow a step later.
        cluster.wait_until(lambda: [running(server) + answered(server) for server in self.servers] == [1, 1],
                           "each server has one of the two", 10)

    def test_a_killed_server_is_masked(self):
        for _ in range(2):
            self.assertEqual(self.nginx.chat(SHORT).status, 200)
        self.servers[0].kill()
        statuses = [self.nginx.chat(SHORT).status for _ in range(8)]
        self.assertEqual(statuses, [200] * 8, self.nginx.log())

    def test_a_draining_server_is_masked(self):
        streams = [self.stream(), self.stream()]
        for stream in streams:
            stream.event()
        self.servers[0].send_signal(signal.SIGTERM)
        cluster.wait_until(lambda: conclave.http_request(self.servers[0].ready["admin"], "GET", "/health/ready").status == 503,
                           "it drains")
        statuses = [self.nginx.chat(SHORT).status for _ in range(4)]
        self.assertEqual(statuses, [200] * 4, self.nginx.log())
        for stream in streams:
            while (event := stream.event()) not in ("[DONE]", ""):
                pass
            self.assertEqual(event, "[DONE]", "an answer that runs is not cut")

    def test_a_conversation_stays_where_it_is(self):
        for _ in range(6):
            self.assertEqual(self.nginx.chat(SHORT, {"X-Conversation-Id": "c-1"}).status, 200)
        self.assertEqual(sorted(answered(server) for server in self.servers), [0, 6])
        for index in range(16):
            self.nginx.chat({**SHORT, "max_tokens": 1}, {"X-Conversation-Id": f"c-{index}"})
        self.assertTrue(all(answered(server) for server in self.servers), "all conversations on one server")

    def test_requests_keep_their_id_and_only_the_api_is_passed_on(self):
        self.assertEqual(self.nginx.chat(SHORT, {"X-Request-Id": "mine-1"}).headers["x-request-id"], "mine-1")
        self.assertRegex(self.nginx.chat(SHORT).headers["x-request-id"], r"^[0-9a-f]{32}$")
        for path in ("/metrics", "/health/ready", "/"):
            self.assertEqual(conclave.http_request(self.nginx.api, "GET", path).status, 404, path)

    def test_a_large_picture_passes(self):
        large = {**SHORT, "messages": [conclave.user("What is in the image?", conclave.bytes_data_uri(b"\0" * (20 << 20)))]}
        self.assertEqual(self.nginx.chat(large).status, 400, "the server's own refusal, not nginx's 413")
        self.assertEqual(self.nginx.chat({**SHORT, "x": "y" * (33 << 20)}).status, 413)


if __name__ == "__main__":
    deploy.main()
