"""A cluster of real processes for the end-to-end tests: a router, workers and frontends on free ports of loopback."""

import http.client
import json
import pathlib
import re
import tempfile
import threading
import time
import urllib.parse

import conclave_process as conclave


class Router(conclave.Process):
    def __init__(self, *args: str, listen: str = "127.0.0.1:0", state_dir: str | None = None,
                 model: pathlib.Path = conclave.MODEL):
        state = ["--state-dir", state_dir] if state_dir else []
        super().__init__("router", "--model", str(model), "--listen", listen, "--admin-listen", "127.0.0.1:0", *state,
                         *args)
        self.control = self.ready["control"]


class Worker(conclave.Process):
    def __init__(self, router: str, name: str, *args: str, model: pathlib.Path = conclave.MODEL,
                 env: dict[str, str] | None = None):
        self.name = name
        super().__init__("worker", "--router", router, "--name", name, "--model", str(model), "--listen", "127.0.0.1:0",
                         "--admin-listen", "127.0.0.1:0", "--threads", "1", *args, env=env)


class Frontend(conclave.ApiProcess):
    def __init__(self, router: str, *args: str, model: pathlib.Path = conclave.MODEL,
                 env: dict[str, str] | None = None):
        super().__init__("frontend", "--router", router, "--model", str(model), "--listen", "127.0.0.1:0",
                         "--admin-listen", "127.0.0.1:0", "--threads", "1", *args, env=env)

    def channels(self) -> dict[str, int]:
        """Links that are up, by what carries their calls."""
        url = urllib.parse.urlparse(self.ready["admin"])
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.findall(r'^moe_cluster_links_by_channel\{channel="(\w+)"\} (\d+)', text, re.MULTILINE)
        return {channel: int(links) for channel, links in found}


def wait_until(condition, what: str, timeout: float = 60):
    """Fails the test when `condition()` is not true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.02)


def arm(process, setting: str):
    """Replaces the failpoints of a process of a build that has them."""
    response = conclave.http_request(process.ready["admin"], "PUT", "/debug/failpoints", setting.encode())
    if response.status != 200:
        raise AssertionError(f"PUT /debug/failpoints {setting}: {response}")


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Cluster:
    """Use as a context manager. `args` and `env` go to every worker and frontend, such as --dtype f32."""

    def __init__(self, workers: int = 3, frontends: int = 1, args=(), router_args=(), model=conclave.MODEL,
                 tls: bool = False, frontend_args=(), env: dict[str, str] | None = None, worker_args=()):
        self.model = model
        self.worker_args = list(worker_args)
        self.env = env
        self.frontend_args = list(frontend_args)
        self.args = list(args)
        self.router_args = list(router_args)
        self._state = tempfile.TemporaryDirectory(prefix="conclave-state-")
        self._certificates = tempfile.TemporaryDirectory(prefix="conclave-certs-") if tls else None
        if tls:
            made = conclave.run("cluster", "certs", f"{self._certificates.name}/certs")
            if made.returncode != 0:
                raise AssertionError(f"cluster certs: {made.stderr}")
        self.workers: dict[str, Worker] = {}
        self.frontends: list[Frontend] = []
        self.router: Router | None = None
        try:
            self.start_routers()
            for index in range(workers):
                self.add_worker(f"w{index}")
            for _ in range(frontends):
                self.add_frontend()
            wait_until(self.is_ready, "every expert is served")
        except BaseException:
            self.close()
            raise

    def start_routers(self):
        self.router = Router(*self.router_args, *self.tls("router"), state_dir=self._state.name, model=self.model)
        self.control = self.router.control

    def tls(self, role: str) -> list[str]:
        """The flags that give a process its certificate; none without TLS."""
        if self._certificates is None:
            return []
        folder = pathlib.Path(self._certificates.name) / "certs"
        return ["--tls-cert", str(folder / f"{role}.pem"), "--tls-key", str(folder / f"{role}-key.pem"),
                "--tls-ca", str(folder / "ca.pem")]

    def add_worker(self, name: str, env=None) -> Worker:
        self.workers[name] = Worker(self.control, name, *self.args, *self.worker_args, *self.tls("worker"),
                                    model=self.model, env=env or self.env)
        return self.workers[name]

    def add_frontend(self) -> Frontend:
        self.frontends.append(Frontend(self.control, *self.args, *self.frontend_args, *self.tls("frontend"),
                                       model=self.model, env=self.env))
        return self.frontends[-1]

    def command(self, *args: str):
        """`conclave cluster ...` as the operator."""
        return conclave.run("cluster", *args, "--router", self.control, *self.tls("operator"))

    def is_ready(self) -> bool:
        return all(frontend.request("GET", "/health/ready").status == 200 for frontend in self.frontends)

    def status(self) -> dict:
        result = self.command("status", "--json")
        if result.returncode != 0:
            raise AssertionError(f"cluster status: {result.stderr}")
        return json.loads(result.stdout)

    def replication(self) -> int:
        return self.status()["replication_lowest"]

    def wait_for_replicas(self, wanted: int, timeout: float = 60):
        wait_until(lambda: self.replication() >= wanted, f"{wanted} replicas of every expert", timeout)

    def restart_router(self, keep_state: bool = True):
        """Starts a router on the old one's address; the old one has ended."""
        if not keep_state:
            self._state.cleanup()
            self._state = tempfile.TemporaryDirectory(prefix="conclave-state-")
        self.router = Router(*self.router_args, *self.tls("router"), listen=self.control, state_dir=self._state.name,
                             model=self.model)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for process in [*self.frontends, *self.workers.values(), self.router]:
            if process is not None:
                process.kill()
        self._state.cleanup()
        if self._certificates is not None:
            self._certificates.cleanup()

    def logs(self) -> str:
        parts = [("router", self.router), *((f"worker {name}", worker) for name, worker in self.workers.items()),
                 *((f"frontend {index}", frontend) for index, frontend in enumerate(self.frontends))]
        return "\n".join(f"--- {name}\n{process.log()[-4000:]}" for name, process in parts if process is not None)


class Load:
    """Clients that ask the recorded questions round and round until `stop`, each answer with its logits' figures.

    `answers` holds (index of the question, key) where equal keys mean equal tokens and equal bits of their log
    probabilities; `failures` what was no answer.
    """

    def __init__(self, frontends, bodies: list[dict], clients: int = 4):
        self.answers: list[tuple[int, str]] = []
        self.failures: list[str] = []
        self._frontends = list(frontends)
        self._bodies = bodies
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._next = 0
        self._threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int):
        while not self._stopping.is_set():
            with self._lock:
                index = self._next % len(self._bodies)
                self._next += 1
            frontend = self._frontends[client % len(self._frontends)]
            try:
                response = frontend.chat(self._bodies[index], timeout=60)
                key = answer_key(response) if response.status == 200 else None
                failure = None if key else repr(response)
            except OSError as error:
                key, failure = None, f"{type(error).__name__}: {error}"
            with self._lock:
                if failure:
                    self.failures.append(f"question {index}: {failure}")
                else:
                    self.answers.append((index, key))

    def wait_for(self, answers: int, timeout: float = 120):
        """Until so many more answers (or failures) have come."""
        start = len(self.answers) + len(self.failures)
        wait_until(lambda: len(self.answers) + len(self.failures) >= start + answers, f"{answers} answers", timeout)

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=120)
            if thread.is_alive():
                raise AssertionError("a request hangs")


def answer_key(response: conclave.Response) -> str:
    """Tokens with the figures of their logits, as the server printed them."""
    choice = response.json()["choices"][0]
    return json.dumps([[token["token"], token["logprob"], [top["logprob"] for top in token["top_logprobs"]]]
                       for token in choice["logprobs"]["content"]])


def bodies_of(samples: list[dict]) -> list[dict]:
    return [{"model": "demo", "messages": conclave.sample_messages(sample), "temperature": 0, "logprobs": True,
             "top_logprobs": 3} for sample in samples]


def undisturbed(bodies: list[dict], *args: str) -> list[str]:
    """The keys of a single process's answers."""
    with conclave.Server(*args) as server:
        return [answer_key(server.chat(body)) for body in bodies]
