"""Goal: a gRPC client gets the answers, errors and manners of the HTTP API: the same token ids for the same question, in
one process and through a cluster with mutual TLS.

Method: Google's Python client, with stubs made from proto/inference.proto; every question is asked over HTTP as well.
"""

import base64
import concurrent.futures
import pathlib
import signal
import socket
import sys
import tempfile
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_tools import protoc

import cluster as clusters
import conclave_process as conclave
from conclave_process import user

STUBS = tempfile.TemporaryDirectory(prefix="conclave-stubs-")
if protoc.main(["protoc", f"--proto_path={conclave.ROOT / 'proto'}", f"--python_out={STUBS.name}",
                f"--grpc_python_out={STUBS.name}", "inference.proto"]) != 0:
    sys.exit("grpc_tools cannot compile proto/inference.proto")
sys.path.insert(0, STUBS.name)
import inference_pb2 as api  # noqa: E402
import inference_pb2_grpc  # noqa: E402

SERVICE = "conclave.v1.InferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PATIENCE_S = 120


def content_part(part: dict) -> api.ContentPart:
    if part["type"] == "text":
        return api.ContentPart(text=part["text"])
    return api.ContentPart(image=base64.b64decode(part["image_url"]["url"].split(",", 1)[1]))


def message(http: dict) -> api.ChatMessage:
    """A message of the HTTP API as one of inference.proto."""
    content = http["content"]
    parts = [api.ContentPart(text=content)] if isinstance(content, str) else [content_part(part) for part in content]
    return api.ChatMessage(role=http["role"], content=parts)


def request(messages: list[dict], **fields) -> api.ChatRequest:
    return api.ChatRequest(messages=[message(one) for one in messages], return_token_ids=True, **fields)


class Client:
    """`tls`: a folder with certificates and the role whose one is shown."""

    def __init__(self, process: conclave.Process, tls: tuple[str, str] | None = None):
        self.address = process.ready["grpc"]
        if tls is None:
            self.channel = grpc.insecure_channel(self.address)
        else:
            folder = pathlib.Path(tls[0])
            pem = [(folder / name).read_bytes() for name in ("ca.pem", f"{tls[1]}-key.pem", f"{tls[1]}.pem")]
            self.channel = grpc.secure_channel(self.address, grpc.ssl_channel_credentials(*pem))
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.health_stub = health_pb2_grpc.HealthStub(self.channel)

    def chat(self, question: api.ChatRequest, timeout: float = PATIENCE_S, **options) -> list[api.ChatResponse]:
        return list(self.stub.Chat(question, timeout=timeout, **options))

    def error(self, question: api.ChatRequest, timeout: float = PATIENCE_S, **options) -> grpc.RpcError:
        try:
            pieces = self.chat(question, timeout, **options)
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"expected an error, found {len(pieces)} pieces")

    def health(self, service: str = "") -> int:
        return self.health_stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S).status

    def wait_for_health(self, service: str = ""):
        """The health follows the ready line and /health/ready by a moment."""
        clusters.wait_until(lambda: self.health(service) == SERVING, f"SERVING of {service or 'the server'}")


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces)


def ids_of(pieces) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


class GrpcTestCase(conclave.TestCase):
    def assert_same_as_http(self, client: Client, process, messages: list[dict], expected: str | None = None, *,
                            http_fields=None, **fields):
        http = process.chat({"model": "demo", "messages": messages, "return_token_ids": True, **(http_fields or {})})
        self.assertEqual(http.status, 200, http)
        choice = http.json()["choices"][0]
        pieces = client.chat(request(messages, **fields))
        self.assertEqual(ids_of(pieces), choice["token_ids"])
        self.assertEqual(text_of(pieces), choice["message"]["content"])
        self.assertEqual(pieces[-1].finish_reason, choice["finish_reason"])
        self.assertEqual([piece.finish_reason for piece in pieces[:-1]], [""] * (len(pieces) - 1))
        usage = http.json()["usage"]
        self.assertEqual(pieces[-1].usage.prompt_tokens, usage["prompt_tokens"])
        self.assertEqual(pieces[-1].usage.completion_tokens, usage["completion_tokens"])
        if expected is not None:
            self.assertEqual(text_of(pieces), expected)


class ServeTest(GrpcTestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = conclave.Server("--grpc-listen", "127.0.0.1:0")
        cls.addClassCleanup(cls.server.kill)
        cls.client = Client(cls.server)
        cls.addClassCleanup(cls.client.channel.close)

    def test_every_recorded_question_has_the_tokens_of_http(self):
        for sample in conclave.samples():
            with self.subTest(question=sample["question"], image=sample["image"]):
                self.assert_same_as_http(self.client, self.server, conclave.sample_messages(sample))

    def test_sampling_with_a_seed_stops_and_lengths_are_those_of_http(self):
        messages = [user("What is in the image?", "four-large.jpg")]
        for http, fields in [
                ({"temperature": 1.5, "seed": 7, "top_p": 0.75, "top_k": 20},
                 {"sampling": api.SamplingParams(temperature=1.5, seed=7, top_p=0.75, top_k=20)}),
                ({"temperature": 1, "seed": 2**63, "min_p": 0.25, "repetition_penalty": 1.25},
                 {"sampling": api.SamplingParams(temperature=1, seed=2**63, min_p=0.25, repetition_penalty=1.25)}),
                ({"presence_penalty": 1, "frequency_penalty": 0.5},
                 {"sampling": api.SamplingParams(presence_penalty=1, frequency_penalty=0.5)}),
                ({"max_tokens": 5}, {"max_tokens": 5}),
                ({"stop": ["square", "circle"]}, {"stop": ["square", "circle"]})]:
            with self.subTest(**http):
                self.assert_same_as_http(self.client, self.server, messages, http_fields=http, **fields)

    def test_many_calls_on_one_connection_have_the_tokens_of_one(self):
        question = request([user("What is in the image?", "four-large.jpg")])
        expected = ids_of(self.client.chat(question))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for pieces in pool.map(lambda _: self.client.chat(question), range(32)):
                self.assertEqual(ids_of(pieces), expected)

    def test_the_model_is_that_of_http(self):
        model = self.client.stub.GetModel(api.GetModelRequest(), timeout=PATIENCE_S)
        listed = self.server.request("GET", "/v1/models").json()["data"][0]
        self.assertEqual((model.id, model.max_model_len, model.has_vision), (listed["id"], listed["max_model_len"], True))
        answer = self.server.chat({"model": "demo", "messages": [user("Hello")]}).json()
        self.assertEqual(model.system_fingerprint, answer["system_fingerprint"])

    def test_errors_have_the_code_word_of_http(self):
        picture = (conclave.SAMPLES / "one.png").read_bytes()
        cut = conclave.bytes_data_uri(picture[:len(picture) // 2])
        svg = conclave.bytes_data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
        hello = [user("Hello")]
        invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
        for what, messages, http, fields, code in [
                ("a cut picture", [user("What?", cut)], {}, {}, invalid),
                ("no picture at all", [user("What?", svg)], {}, {}, invalid),
                ("five pictures", [user("What?", *["one.png"] * 5)], {}, {}, invalid),
                ("an unknown model", hello, {"model": "other"}, {"model": "other"}, missing),
                ("no messages", [], {}, {}, invalid),
                ("an assistant's turn", [*hello, {"role": "assistant", "content": "Hi"}], {}, {}, invalid),
                ("a role", [{"role": "tool", "content": "x"}], {}, {}, invalid),
                ("top_p", hello, {"top_p": 7}, {"sampling": api.SamplingParams(top_p=7)}, invalid),
                ("temperature", hello, {"temperature": -1}, {"sampling": api.SamplingParams(temperature=-1)}, invalid),
                ("max_tokens", hello, {"max_tokens": 100000}, {"max_tokens": 100000}, invalid),
                ("five stops", hello, {"stop": list("abcde")}, {"stop": list("abcde")}, invalid),
                ("a long prompt", [user("word " * 2000)], {}, {}, invalid)]:
            with self.subTest(what):
                refused = self.server.chat({"model": "demo", "messages": messages, **http}).json()["error"]
                error = self.client.error(request(messages, **fields))
                self.assertEqual(error.code(), code, error)
                self.assertEqual(error.details().split(": ", 1)[0], refused["code"])
                self.assertIsNone(conclave.LEAK.search(error.details()))
        self.assertEqual(text_of(self.client.chat(request([user("What shape is the green object?", "one.png")]))),
                         "The green object is a heart.")

    def test_a_late_answer_is_given_up(self):
        question = request([user("What is in the image?", "four-large.jpg")])
        question.deadline_ms = 1
        error = self.client.error(question)
        self.assertEqual(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED, error)
        self.assertEqual(error.details().split(": ", 1)[0], "deadline_exceeded")
        question.deadline_ms = 0
        self.assertEqual(self.client.error(question, timeout=0.001).code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertTrue(self.client.chat(question))

    def test_compressed_and_oversized_messages_are_refused(self):
        question = request([user("Hello")])
        refused = self.client.error(question, compression=grpc.Compression.Gzip)
        self.assertEqual(refused.code(), grpc.StatusCode.UNIMPLEMENTED, refused)
        question.messages[0].content[0].image = b"x" * (33 << 20)
        self.assertEqual(self.client.error(question).code(), grpc.StatusCode.RESOURCE_EXHAUSTED)

    def test_health_and_metrics(self):
        self.client.chat(request([user("Hello")]))
        self.client.wait_for_health()
        self.client.wait_for_health(SERVICE)
        with self.assertRaises(grpc.RpcError) as unknown:
            self.client.health("other.Service")
        self.assertEqual(unknown.exception.code(), grpc.StatusCode.NOT_FOUND)
        page = self.server.request("GET", "/metrics").body.decode()
        self.assertRegex(page, r'conclave_grpc_requests_total\{code="OK",method="Chat"\} \d+')
        self.assertRegex(page, r'conclave_grpc_request_duration_seconds_count\{method="Chat"\} \d+')


class LifeTest(GrpcTestCase):
    def test_a_drain_ends_what_runs_and_tells_the_health(self):
        with conclave.Server("--grpc-listen", "127.0.0.1:0") as server:
            client = Client(server)
            client.wait_for_health()
            watch = client.health_stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            self.assertEqual(next(watch).status, SERVING)
            question = request([user("What is in the image?", "four-large.jpg")])
            expected = text_of(client.chat(question))
            streams = [client.stub.Chat(question, timeout=PATIENCE_S) for _ in range(16)]
            begun = [next(stream) for stream in streams]
            server.send_signal(signal.SIGTERM)
            for first, stream in zip(begun, streams):
                self.assertEqual(first.text + text_of(stream), expected)
            try:
                self.assertEqual(next(watch).status, NOT_SERVING)
            except grpc.RpcError as over:  # the server was faster
                self.assertIn(over.code(), (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED))
            self.assertEqual(server.wait(), 0)

    def test_settings_that_cannot_work_are_refused(self):
        with tempfile.TemporaryDirectory() as folder, socket.socket() as taken:
            made = conclave.run("cluster", "certs", f"{folder}/certs")
            self.assertEqual(made.returncode, 0, made.stderr)
            tls = ["--tls-cert", f"{folder}/certs/frontend.pem", "--tls-key", f"{folder}/certs/frontend-key.pem",
                   "--tls-ca", f"{folder}/certs/ca.pem"]
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            free = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
            for args, code, reason in [
                    (["--grpc-listen", "here"], 2, "usage"),
                    (["--grpc-listen", "0.0.0.0:0"], 2, "usage"),
                    (["--grpc-listen", f"127.0.0.1:{port}", "--listen", f"127.0.0.1:{port}"], 2, "usage"),
                    (tls, 2, "usage"),
                    (["--grpc-listen", "127.0.0.1:0", *tls[:2]], 2, "usage"),
                    (["--grpc-listen", "127.0.0.1:0", *tls[:3], tls[1], *tls[4:]], 3, "tls_config"),
                    ([*free, "--grpc-listen", f"127.0.0.1:{port}"], 5, "bind")]:
                with self.subTest(args=args):
                    result = conclave.run("serve", "--model", str(conclave.MODEL), *args)
                    self.assertEqual(result.returncode, code, result.stderr)
                    self.assertIn(f"error: {reason}: ", result.stderr)

    def test_serve_with_certificates_answers_those_of_its_authority_only(self):
        with tempfile.TemporaryDirectory() as folder:
            certs = f"{folder}/certs"
            self.assertEqual(conclave.run("cluster", "certs", certs).returncode, 0)
            # Not loopback: allowed, since there is TLS.
            with conclave.Server("--grpc-listen", "0.0.0.0:0", "--tls-cert", f"{certs}/frontend.pem", "--tls-key",
                                 f"{certs}/frontend-key.pem", "--tls-ca", f"{certs}/ca.pem") as server:
                server.ready["grpc"] = server.ready["grpc"].replace("0.0.0.0", "127.0.0.1")
                self.assert_same_as_http(Client(server, (certs, "client")), server, [user("Hello")])
                self.assertEqual(Client(server).error(request([user("Hello")])).code(), grpc.StatusCode.UNAVAILABLE)


class ClusterTest(GrpcTestCase):
    def test_a_frontend_with_mutual_tls_answers_as_http_and_through_a_kill(self):
        with clusters.Cluster(workers=3, tls=True, frontend_args=["--grpc-listen", "127.0.0.1:0"]) as cluster:
            frontend = cluster.frontends[0]
            flags = cluster.tls("client")
            certs = str(pathlib.Path(flags[1]).parent)
            client = Client(frontend, (certs, "client"))
            client.wait_for_health(SERVICE)
            for sample in conclave.samples()[:20]:
                with self.subTest(question=sample["question"], image=sample["image"]):
                    self.assert_same_as_http(client, frontend, conclave.sample_messages(sample))
            with self.subTest("plain text is refused"):
                self.assertEqual(Client(frontend).error(request([user("Hello")])).code(), grpc.StatusCode.UNAVAILABLE)
            with self.subTest("a client's certificate is good for asking alone"):
                result = conclave.run("cluster", "status", "--router", cluster.control, *flags)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertIn("peer_identity", result.stderr)
            question = request([user("What is in the image?", "four-large.jpg")])
            expected = ids_of(client.chat(question))
            cluster.wait_for_replicas(2)
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                answers = [pool.submit(client.chat, question) for _ in range(24)]
                cluster.workers["w0"].kill()
                for answer in answers:
                    self.assertEqual(ids_of(answer.result(timeout=PATIENCE_S)), expected)


if __name__ == "__main__":
    unittest.main(verbosity=2)
