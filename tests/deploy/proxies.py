"""What the proxies of deploy/proxy promise, whichever of them it is: streams pass piece by piece, a client that leaves ends its
answer, the frontend with the fewest answers is next, and clients do not notice when one dies or drains.
"""

import http.client
import json
import pathlib
import re
import signal
import subprocess
import tempfile
import urllib.parse

import deploy_files as deploy
import cluster

conclave = deploy.conclave
FOLDER = deploy.DEPLOY / "proxy"
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


class Proxy:
    """A proxy before `apis`, on a port of its own. What each makes of its file is its own; the file's ports are replaced."""

    def __init__(self, servers):
        self._folder = tempfile.TemporaryDirectory(prefix="conclave-proxy-")
        self.folder = pathlib.Path(self._folder.name)
        self.folder.chmod(0o755)
        with conclave.Router() as probe:  # a port that was free a moment ago
            self.address = probe.control
        self.api = f"http://{self.address}"
        with open(self.folder / "stderr", "wb") as errors:
            self.process = subprocess.Popen(self.command(servers), stdout=subprocess.DEVNULL, stderr=errors)
        cluster.wait_until(self.is_ready, "the proxy answers", 20)

    def command(self, servers) -> list[str]:
        """Its command line; writes what that names."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def chat(self, body: dict, headers=None) -> conclave.Response:
        return conclave.http_request(self.api, "POST", "/v1/chat/completions", body, headers)

    def stream(self, body: dict) -> "Stream":
        return Stream(self.api, body)

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in (self.folder / "error.log", self.folder / "stderr") if path.exists())

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


class ProxyCases:
    """Cases of a unittest.TestCase, which says what `proxy_type` is."""

    proxy_type: type[Proxy]

    def setUp(self):
        self.servers = [conclave.Server("--threads", "1") for _ in range(2)]
        for server in self.servers:
            self.addCleanup(server.kill)
        self.proxy = self.proxy_type(self.servers)
        self.addCleanup(self.proxy.close)

    def stream(self, body=LONG) -> Stream:
        stream = self.proxy.stream(body)
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
        self.assertEqual(len(at_work), 1, self.proxy.log())
        stream.close()
        cluster.wait_until(lambda: running(at_work[0]) == 0, "the answer of the client that left has ended", 10)
        cluster.wait_until(lambda: metric(at_work[0], "conclave_request_success_total", 'finished_reason="abort"') == 1,
                           "it counts as aborted", 10)

    def test_a_whole_stream_is_what_the_server_says(self):
        events = []
        for api in (self.proxy.api, self.servers[0].api):
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
            self.assertEqual(self.proxy.chat(SHORT).status, 200)
        self.servers[0].kill()
        statuses = [self.proxy.chat(SHORT).status for _ in range(8)]
        self.assertEqual(statuses, [200] * 8, self.proxy.log())

    def test_a_draining_server_is_masked(self):
        streams = [self.stream(), self.stream()]
        for stream in streams:
            stream.event()
        self.servers[0].send_signal(signal.SIGTERM)
        cluster.wait_until(lambda: conclave.http_request(self.servers[0].ready["admin"], "GET", "/health/ready").status == 503,
                           "it drains")
        statuses = [self.proxy.chat(SHORT).status for _ in range(4)]
        self.assertEqual(statuses, [200] * 4, self.proxy.log())
        for stream in streams:
            while (event := stream.event()) not in ("[DONE]", ""):
                pass
            self.assertEqual(event, "[DONE]", "an answer that runs is not cut")
