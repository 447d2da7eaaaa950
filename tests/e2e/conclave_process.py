"""Runs the real `conclave` binary for the end-to-end tests: servers with a ready line, one-shot commands, plain HTTP.

The binary's path is in CONCLAVE_BINARY. Every wait here has a deadline, and a server that a test leaves behind is
killed, so a hang shows up as a failure that names what did not happen.
"""

import base64
import http.client
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models" / "demo"
SAMPLES = MODEL / "samples"
BINARY = os.environ.get("CONCLAVE_BINARY", "")

# Loading the demo takes well under a second; the rest is for a loaded machine and for sanitizer builds.
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60


def command(*args: str) -> list[str]:
    if not BINARY:
        raise RuntimeError("CONCLAVE_BINARY is not set; run the end-to-end tests with ctest -L e2e")
    return [BINARY, *map(str, args)]


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment without variables that would change what conclave does."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("CONCLAVE_", "WATCHDOG_")) and name != "NOTIFY_SOCKET"}
    return {**environment, **(extra or {})}


def run(*args: str, timeout: float = 60, env: dict[str, str] | None = None, cwd=None,
        stdin: str = "") -> subprocess.CompletedProcess:
    """Runs a command to its end; stdout and stderr are text."""
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=timeout,
                          env=clean_environment(env), cwd=cwd, input=stdin)


class Process:
    """A running conclave process of any role. Use as a context manager.

    `ready` are the pairs of the ready line, `log()` is what it wrote to stderr. `prefix` is a command that becomes this one,
    as `nsenter` does.
    """

    def __init__(self, *args: str, env: dict[str, str] | None = None, prefix: list[str] | None = None):
        self._log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([*(prefix or []), *command(*args)], stdout=subprocess.PIPE, stderr=self._log,
                                        env=clean_environment(env))
        try:
            self.ready_line = self._read_ready_line()
        except Exception:
            self.kill()
            raise
        words = self.ready_line.split()
        self.ready = dict(word.split("=", 1) for word in words[1:])

    def _read_ready_line(self) -> str:
        deadline = time.monotonic() + START_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"no ready line within {START_TIMEOUT_S} s; log:\n{self.log()}")
            if select.select([self.process.stdout], [], [], left)[0]:
                byte = os.read(self.process.stdout.fileno(), 1)
                if not byte:
                    code = self.process.wait(timeout=STOP_TIMEOUT_S)
                    raise AssertionError(f"the server ended with {code} before it was ready; log:\n{self.log()}")
                line += byte
        return line.decode().rstrip("\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def log(self) -> str:
        if not self._log.closed:
            self._log.seek(0)
            self._log_text = self._log.read().decode(errors="replace")
        return self._log_text

    def send_signal(self, number: int):
        self.process.send_signal(number)

    def wait(self, timeout: float = STOP_TIMEOUT_S) -> int:
        """Exit code; fails the test when the server does not end in time."""
        try:
            return self.process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end within {timeout} s; log:\n{self.log()}") from None

    def stop(self, number: int = signal.SIGINT) -> int:
        self.send_signal(number)
        return self.wait()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log()  # kept for who asks later
        self._log.close()

    def rest_of_stdout(self) -> str:
        """What came on stdout after the ready line; only after the server has ended."""
        return self.process.stdout.read().decode()


class ApiProcess(Process):
    """A process that answers clients; `api` is its base URL without a path."""

    @property
    def api(self) -> str:
        return self.ready["api"]

    def request(self, method: str, path: str, body=None, headers: dict[str, str] | None = None,
                timeout: float = 60) -> "Response":
        """One plain HTTP request. A body that is not bytes is sent as JSON."""
        return http_request(self.api, method, path, body, headers, timeout)

    def chat(self, body: dict, timeout: float = 60) -> "Response":
        return self.request("POST", "/v1/chat/completions", body, timeout=timeout)


class Server(ApiProcess):
    """A running `conclave serve`."""

    def __init__(self, *args: str, model: pathlib.Path = MODEL, env: dict[str, str] | None = None):
        super().__init__("serve", "--model", str(model), "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
                         *args, env=env)


class Router(Process):
    """A running `conclave router`; `control` is the address for --router."""

    def __init__(self, *args: str, env: dict[str, str] | None = None):
        super().__init__("router", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", *args, env=env)
        self.control = self.ready["control"]


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes):
        self.status = status
        self.headers = headers  # names in lower case
        self.body = body

    def json(self):
        return json.loads(self.body)

    @property
    def content(self) -> str:
        """Text of the first choice of a chat completion."""
        return self.json()["choices"][0]["message"]["content"]

    def __repr__(self):
        return f"Response({self.status}, {self.body[:500]!r})"


def http_request(base: str, method: str, path: str, body=None, headers: dict[str, str] | None = None,
                 timeout: float = 60) -> Response:
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)
    try:
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def data_uri(image: pathlib.Path) -> str:
    kind = {".png": "png", ".jpg": "jpeg"}[image.suffix]
    return bytes_data_uri(image.read_bytes(), kind)


def bytes_data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def image_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def user(text: str, *images: str) -> dict:
    """A user message: sample images by file name, or data URIs, before the text."""
    if not images:
        return {"role": "user", "content": text}
    urls = [image if image.startswith("data:") else data_uri(SAMPLES / image) for image in images]
    return {"role": "user", "content": [*map(image_part, urls), {"type": "text", "text": text}]}


def samples() -> list[dict]:
    """The recorded questions and answers of the demo model."""
    with open(SAMPLES / "samples.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def sample_messages(sample: dict) -> list[dict]:
    """A recorded line as chat messages: its history, then its question; the image belongs to the first user turn."""
    messages = []
    for turn in [*sample["history"], {"question": sample["question"], "answer": None}]:
        images = [sample["image"]] if sample["image"] and not messages else []
        messages.append(user(turn["question"], *images))
        if turn["answer"] is not None:
            messages.append({"role": "assistant", "content": turn["answer"]})
    return messages


# What no client may ever see: pointer-like values, paths of the server, the text of libraries.
LEAK = re.compile(r"0x[0-9a-f]{6,}|/(?:home|root|usr|var|etc|proc|tmp)/|libpng|libjpeg|boost|terminate called|std::",
                  re.IGNORECASE)

ERROR_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout", 411: "invalid_request_error", 413: "invalid_request_error",
    414: "invalid_request_error", 415: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error",
    431: "invalid_request_error",
}


class TestCase(unittest.TestCase):
    """unittest with the checks that several scripts share."""

    maxDiff = None

    def assert_error(self, response: Response, status: int, code: str | None = None, param: str | None = None):
        """The response is the stable error object with that status, code and param, and gives nothing away."""
        self.assertEqual(response.status, status, response)
        error = response.json()["error"]
        self.assertEqual(set(error) & {"message", "type", "param", "code"}, {"message", "type", "param", "code"}, error)
        self.assertEqual(error["type"], ERROR_TYPES[status], error)
        self.assertRegex(error["code"] or "", r"^[a-z][a-z0-9_]*$")
        self.assertTrue(error["message"] and "\n" not in error["message"], error)
        self.assertIsNone(LEAK.search(error["message"]), error)
        if code is not None:
            self.assertEqual(error["code"], code, error)
        if param is not None:
            self.assertEqual(error["param"], param, error)

    def assert_good(self, server: Server):
        """A plain request about an image still gives the recorded answer."""
        response = server.chat({"model": "demo", "messages": [user("What shape is the green object?", "one.png")],
                                "temperature": 0})
        self.assertEqual(response.status, 200, response)
        self.assertEqual(response.content, "The green object is a heart.")
