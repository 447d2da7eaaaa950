"""Goal: a traced request shows where its time went, in a tree that any collector reads, and no other request costs a span.

Method: `conclave serve`, and a router with workers and a frontend, as real processes that send their spans to a collector
which holds every field against OTLP; requests come with and without a caller's traceparent, over HTTP and gRPC.
"""

import http.client
import json
import re
import socket
import threading
import time
import unittest

import cluster as clusters
import conclave_process as conclave
import grpc_test
import otlp_collector as otlp
from conclave_process import user

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
PATIENCE_S = 60


def traceparent(trace: str = TRACE, is_sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{PARENT}-0{int(is_sampled)}", "tracestate": "vendor=a1,other=b2"}


def body_of(text: str, *images: str, **more) -> dict:
    return {"model": "demo", "messages": [user(text, *images)], "temperature": 0, **more}


class TraceTest(conclave.TestCase):
    def setUp(self):
        self.collector = self.enterContext(otlp.Collector())

    def ask(self, process, body: dict, headers: dict[str, str], status: int = 200) -> conclave.Response:
        response = process.request("POST", "/v1/chat/completions", body, headers)
        self.assertEqual(response.status, status, response)
        return response

    def trace(self, trace: str = TRACE, servers: int = 1) -> list[otlp.Span]:
        """All spans of a trace. A request's own comes last, so that nothing is missing when it is there."""
        def spans():
            return [span for span in self.collector.spans() if span.trace == trace]
        clusters.wait_until(lambda: sum(span.kind == otlp.SERVER for span in spans()) == servers,
                            "the request's own span has come", PATIENCE_S)
        self.assertEqual(self.collector.problems, [])
        return spans()

    def check_tree(self, spans: list[otlp.Span], parent: str = PARENT) -> otlp.Span:
        """One tree, nested in time; returns its root."""
        by_id = {span.id: span for span in spans}
        self.assertEqual(len(by_id), len(spans), "ids come twice")
        roots = [span for span in spans if span.parent == parent]
        self.assertEqual(len(roots), 1, spans)
        self.assertEqual(roots[0].kind, otlp.SERVER)
        for span in spans:
            if span is roots[0]:
                continue
            self.assertIn(span.parent, by_id, f"{span.name} has no parent")
            above = by_id[span.parent]
            self.assertLessEqual(above.start, span.start, f"{span.name} begins before {above.name}")
            self.assertLessEqual(span.end, above.end, f"{span.name} ends behind {above.name}")
        below = {"prepare": "root", "image.preprocess": "prepare", "image.encode": "prepare", "queue": "root",
                 "prefill": "root", "decode": "root", "dispatch": "step", "expert_worker.compute": "dispatch"}
        for span in spans:
            if span.name in below:
                above = by_id[span.parent]
                self.assertEqual("root" if above is roots[0] else above.name, below[span.name], span.name)
            elif span.name == "step":
                self.assertIn(by_id[span.parent].name, ("prefill", "decode"))
            else:
                self.assertIs(span, roots[0])
        return roots[0]

    def check_dispatches(self, spans: list[otlp.Span], workers: set[int]):
        dispatches = named(spans, "dispatch")
        self.assertGreater(len(dispatches), 0)
        for span in dispatches:
            self.assertEqual(span.kind, otlp.CLIENT)
            self.assertIn(span.attributes["conclave.worker.id"], workers)
            self.assertGreater(span.attributes["conclave.rows"], 0)
            self.assertIn(span.attributes["conclave.phase"], ("prefill", "decode"))
            if span.attributes["conclave.result"] == "ok":
                compute = [child for child in spans if child.parent == span.id]
                self.assertEqual([child.name for child in compute], ["expert_worker.compute"])
                self.assertEqual((compute[0].end - compute[0].start) // 1000, span.attributes["conclave.service_us"])
                self.assertEqual(compute[0].attributes["conclave.worker.id"], span.attributes["conclave.worker.id"])

    def test_a_request_about_an_image_is_a_tree_below_its_callers_span(self):
        with conclave.Server("--workers", "2", "--otlp-endpoint", self.collector.url, "--trace-sample", "0") as server:
            response = self.ask(server, body_of("What do you see?", "one.png", max_tokens=40, top_p=0.5),
                                {**traceparent(), "x-request-id": "cat-1"})
            self.assertEqual(response.content, "I see a green heart at the top left.")
            spans = self.trace()
            usage = response.json()["usage"]
            root = self.check_tree(spans)
            self.check_dispatches(spans, {0, 1})
        self.assertEqual(root.name, "POST /v1/chat/completions")
        self.assertEqual(root.state, "vendor=a1,other=b2")
        self.assertEqual(root.flags, 0x301)
        self.assertIsNone(root.error)
        expected = {"http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
                    "gen_ai.request.id": "cat-1", "gen_ai.request.model": "demo", "gen_ai.request.max_tokens": 40,
                    "gen_ai.request.temperature": 0.0, "gen_ai.request.top_p": 0.5, "gen_ai.request.n": 1,
                    "gen_ai.response.finish_reasons": ["stop"],
                    "gen_ai.usage.prompt_tokens": usage["prompt_tokens"],
                    "gen_ai.usage.completion_tokens": usage["completion_tokens"], "conclave.image_tokens": 36}
        self.assertEqual({key: root.attributes.get(key) for key in expected}, expected)
        seconds = (root.end - root.start) / 1e9
        for what in ("time_in_queue", "time_to_first_token", "e2e", "time_in_model_prefill", "time_in_model_decode",
                     "time_in_model_inference"):
            self.assertLessEqual(root.attributes[f"gen_ai.latency.{what}"], seconds, what)
        self.assertEqual(sorted(root.resource), ["conclave.role", "host.name", "service.instance.id", "service.name",
                                                 "service.version"])
        self.assertEqual((root.resource["service.name"], root.resource["conclave.role"]), ("conclave", "serve"))
        for name in ("prepare", "image.preprocess", "image.encode", "queue", "prefill", "decode"):
            self.assertEqual(len(named(spans, name)), 1, name)
        decode = named(spans, "decode")[0]
        self.assertEqual(len([event for event in decode.events if event.name == "token"]),
                         min(usage["completion_tokens"], 16))
        words = json.dumps([[span.name, span.attributes, [event.attributes for event in span.events]] for span in spans])
        self.assertNotIn("heart", words)
        self.assertNotIn("What do you see", words)
        self.assertNotIn("expert_id", words)

    def test_who_is_traced(self):
        def count(*args: str, requests: int = 1, headers=None, body=None) -> list[otlp.Span]:
            before = len(self.collector.spans())
            with conclave.Server("--otlp-endpoint", self.collector.url, *args) as server:
                for _ in range(requests):
                    self.ask(server, body or body_of("Hello", max_tokens=2), headers or {})
                self.assertEqual(server.stop(), 0, server.log())  # sends what is left
            self.assertEqual(self.collector.problems, [])
            return self.collector.spans()[before:]

        with self.subTest("the caller says no"):
            self.assertEqual(count("--trace-sample", "1", headers=traceparent(is_sampled=False)), [])
        with self.subTest("nobody says yes"):
            self.assertEqual(count("--trace-sample", "0", requests=5), [])
        with self.subTest("all"):
            spans = count("--trace-sample", "1", requests=3)
            roots = [span for span in spans if span.kind == otlp.SERVER]
            self.assertEqual(len({root.trace for root in roots}), 3)
            for root in roots:
                self.assertEqual((root.parent, root.flags), ("", 0x101))
                self.check_tree([span for span in spans if span.trace == root.trace], parent="")
        with self.subTest("a traceparent that is none begins a trace of its own"):
            spans = count("--trace-sample", "1", headers={**traceparent(), "traceparent": f"00-{TRACE}-{PARENT}-1"})
            self.assertNotIn(TRACE, {span.trace for span in spans})
            self.assertEqual({span.state for span in spans}, {""})

    def test_several_choices_and_errors(self):
        with conclave.Server("--otlp-endpoint", self.collector.url, "--trace-sample", "0") as server:
            with self.subTest("every choice has its spans"):
                self.ask(server, body_of("Hello", max_tokens=3, n=3, temperature=1.0, ignore_eos=True), traceparent())
                spans = self.trace()
                root = self.check_tree(spans)
                self.assertEqual(root.attributes["gen_ai.response.finish_reasons"], ["length"] * 3)
                self.assertEqual([len(named(spans, name)) for name in ("queue", "prefill", "decode")], [3, 3, 3])
            with self.subTest("what a client did wrong is no error of ours"):
                trace = "1" * 32
                self.ask(server, {"model": "demo"}, traceparent(trace), 400)
                spans = self.trace(trace)
                self.assertEqual([span.attributes["http.response.status_code"] for span in spans], [400])
                self.assertIsNone(spans[0].error)
            with self.subTest("a context that is too long fails while it is prepared"):
                trace = "2" * 32
                self.ask(server, body_of("word " * 5000), traceparent(trace), 400)
                spans = self.trace(trace)
                self.check_tree(spans)
                self.assertEqual(named(spans, "prepare")[0].error, "context_length_exceeded")
            with self.subTest("a client that leaves"):
                trace = "3" * 32
                leave_early(server, body_of("Hello", max_tokens=400, ignore_eos=True, stream=True), traceparent(trace))
                spans = self.trace(trace)
                self.check_tree(spans)
                self.assertEqual(named(spans, "decode")[0].attributes["conclave.finish_reason"], "abort")

    def test_requests_that_share_a_step_are_linked(self):
        traces = [f"{n:032x}" for n in range(1, 5)]
        with conclave.Server("--otlp-endpoint", self.collector.url, "--trace-sample", "0") as server:
            body = body_of("Hello", max_tokens=200, ignore_eos=True)
            threads = [threading.Thread(target=self.ask, args=(server, body, traceparent(trace))) for trace in traces]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            all_spans = [span for trace in traces for span in self.trace(trace)]
        roots = {(span.trace, span.id) for span in all_spans if span.kind == otlp.SERVER}
        linked = [link for span in all_spans for link in span.links]
        self.assertGreater(len(linked), 0, "four requests of 200 tokens shared no recorded step")
        self.assertLessEqual(set(linked), roots)
        for trace in traces:
            spans = [span for span in all_spans if span.trace == trace]
            self.check_tree(spans)
            # 200 tokens: the first prefill step and every 32nd of decode, unless a neighbour told of the step.
            self.assertLessEqual(len(named(spans, "step")), 1 + 200 // 32 + 1)

    def test_a_call_over_grpc(self):
        with conclave.Server("--grpc-listen", "127.0.0.1:0", "--otlp-endpoint", self.collector.url,
                             "--trace-sample", "0") as server:
            client = grpc_test.Client(server)
            question = grpc_test.request([user("What do you see?", "one.png")])
            client.chat(question, metadata=list(traceparent().items()))
            spans = self.trace()
            root = self.check_tree(spans)
            self.assertEqual(root.name, "conclave.v1.InferenceService/Chat")
            expected = {"rpc.system": "grpc", "rpc.service": "conclave.v1.InferenceService", "rpc.method": "Chat",
                        "rpc.grpc.status_code": 0, "gen_ai.request.model": "demo"}
            self.assertEqual({key: root.attributes.get(key) for key in expected}, expected)
            self.assertEqual(root.state, "vendor=a1,other=b2")
            client.chat(question, metadata=list(traceparent("5" * 32, is_sampled=False).items()))
            client.chat(question, metadata=list(traceparent("6" * 32).items()))
            self.trace("6" * 32)
            self.assertNotIn("5" * 32, {span.trace for span in self.collector.spans()})

    def test_a_cluster_names_its_workers_and_shows_what_a_death_costs(self):
        with clusters.Cluster(workers=2, frontends=1, frontend_args=["--otlp-endpoint", self.collector.url,
                                                                     "--trace-sample", "0"]) as cluster:
            cluster.wait_for_replicas(2)
            frontend = cluster.frontends[0]
            ids = {worker["id"]: worker["name"] for worker in cluster.status()["workers"]}
            body = body_of("Hello", max_tokens=120, ignore_eos=True)
            with self.subTest("undisturbed"):
                self.ask(frontend, body, traceparent())
                spans = self.trace()
                root = self.check_tree(spans)
                self.check_dispatches(spans, set(ids))
                self.assertEqual(root.resource["conclave.role"], "frontend")
            with self.subTest("kill -9"):
                trace = "7" * 32
                clusters.arm(cluster.workers["w0"], "w.before_compute=kill9@hit=30")
                self.ask(frontend, body, traceparent(trace))
                self.assertIsNotNone(cluster.workers["w0"].process.poll(), "w0 lives")
                spans = self.trace(trace)
                self.check_tree(spans)
                self.check_dispatches(spans, set(ids))
                lost = [span for span in named(spans, "dispatch") if span.error is not None]
                self.assertEqual({ids[span.attributes["conclave.worker.id"]] for span in lost}, {"w0"})
                self.assertLessEqual({span.attributes["conclave.result"] for span in lost}, {"link_lost", "timeout"})
                again = [span for span in named(spans, "dispatch")
                         if span.attributes["conclave.attempt"] > 0 and span.attributes["conclave.result"] == "ok"]
                self.assertGreater(len(again), 0)
                self.assertEqual({ids[span.attributes["conclave.worker.id"]] for span in again}, {"w1"})
                self.assertEqual({span.parent for span in lost} & {span.parent for span in again},
                                 {span.parent for span in lost}, "lost and repeated in the same step")
            # They are counted when the collector's answer has been read.
            exported = 'conclave_trace_spans_total{result="exported"}'
            clusters.wait_until(lambda: metric(page_of(frontend), exported) == len(self.collector.spans()),
                                "every span is counted", PATIENCE_S)
            page = page_of(frontend)
            waited = re.findall(r'^moe_straggler_calls_total\{worker="(\d+)"\} (\d+)', page, re.MULTILINE)
            self.assertLessEqual({int(worker) for worker, _ in waited}, set(ids))
            self.assertGreater(sum(int(calls) for _, calls in waited), 0)
            self.assertEqual({worker for worker, _ in waited},
                             set(re.findall(r'^moe_straggler_seconds_total\{worker="(\d+)"\}', page, re.MULTILINE)))

    def test_a_collector_that_is_busy_or_away_costs_spans_only(self):
        with self.subTest("busy"), conclave.Server("--otlp-endpoint", self.collector.url, "--trace-sample",
                                                   "1") as server:
            self.collector.answers = [(503, 2), (429, None)]
            self.ask(server, body_of("Hello", max_tokens=2), traceparent())
            self.trace()
            first, second, third = self.collector.times
            self.assertGreaterEqual(second - first, 2)
            self.assertGreaterEqual(third - second, 1)
        with self.subTest("away"), socket.create_server(("127.0.0.1", 0)) as nobody:
            url = f"http://127.0.0.1:{nobody.getsockname()[1]}"  # takes connections and says nothing
            with conclave.Server("--otlp-endpoint", url, "--trace-sample", "1") as server:
                for _ in range(20):
                    self.ask(server, body_of("Hello", max_tokens=2), {})
                begin = time.monotonic()
                self.assertEqual(server.stop(), 0, server.log())
                self.assertLess(time.monotonic() - begin, 10)
                self.assertIn("spans were not taken by the collector", server.log())

    def test_bad_settings(self):
        for value, reason in [("https://collector:4318", "without TLS"), ("collector:4318", "expected http://"),
                              ("http://user:word@collector", "expected http://"), ("http://collector:0", "expected")]:
            with self.subTest(value):
                result = conclave.run("serve", "--otlp-endpoint", value)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertRegex(result.stderr, "^error: usage: --otlp-endpoint: ")
                self.assertIn(reason, result.stderr)
        self.assertEqual(conclave.run("serve", "--trace-sample", "1.5").returncode, 2)


def named(spans: list[otlp.Span], name: str) -> list[otlp.Span]:
    return [span for span in spans if span.name == name]


def page_of(process) -> str:
    return conclave.http_request(process.ready["admin"], "GET", "/metrics").body.decode()


def metric(page: str, series: str) -> float:
    return float(re.search(rf"^{re.escape(series)} (\S+)", page, re.MULTILINE)[1])


def leave_early(server, body: dict, headers: dict[str, str]):
    """Reads the first piece of a streamed answer and closes."""
    host, port = server.api.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
    connection.request("POST", "/v1/chat/completions", json.dumps(body),
                       {"Content-Type": "application/json", **headers})
    connection.getresponse().readline()
    connection.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
