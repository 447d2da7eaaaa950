"""Goal: a server starts with one ready line, says how it is, drains on a signal and leaves with exit code 0.

Method: one process per test, signalled and watched from outside; streams are read with a plain socket, so that the
moment of a signal is known.
"""

import concurrent.futures
import http.client
import json
import re
import signal
import time
import unittest
import urllib.parse

import conclave_process as conclave
from cluster import wait_until
from conclave_process import user

# Metrics of vLLM that there are here too, by their type, without the prefix.
VLLM = {
    "gauge": ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"],
    "counter": ["prompt_tokens_total", "prompt_tokens_cached_total", "generation_tokens_total", "prefix_cache_queries_total",
                "prefix_cache_hits_total", "mm_cache_queries_total", "mm_cache_hits_total", "num_preemptions_total",
                "request_success_total"],
    "histogram": ["time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
                  "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
                  "request_decode_time_seconds", "request_inference_time_seconds", "iteration_tokens_total",
                  "request_prompt_tokens", "request_generation_tokens"]}

LONG = {"model": "demo", "messages": [user("Describe the image.", "four.png")], "temperature": 0, "stream": True,
        "max_tokens": 300, "ignore_eos": True, "stream_options": {"include_usage": True}}


class Stream:
    """An answer being streamed over its own connection."""

    def __init__(self, server: conclave.Server, body: dict):
        url = urllib.parse.urlsplit(server.api)
        self.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        self.response = self.connection.getresponse()

    def events(self):
        """Payloads of the events, the final "[DONE]" included."""
        for line in self.response:
            line = line.rstrip(b"\r\n")
            if line.startswith(b"data: "):
                yield line[len("data: "):].decode()

    def close(self):
        self.response.close()
        self.connection.close()


class LifecycleTest(conclave.TestCase):
    def stream(self, server: conclave.Server, body: dict) -> Stream:
        stream = Stream(server, body)
        self.addCleanup(stream.close)
        return stream

    def test_ready_line_is_the_only_output(self):
        with conclave.Server() as server:
            self.assertRegex(server.ready_line, r"^ready role=\w+ api=http://127\.0\.0\.1:\d+ .*pid=\d+$")
            self.assertEqual(int(server.ready["pid"]), server.process.pid)
            self.assert_good(server)
            self.assertEqual(server.stop(signal.SIGINT), 0, server.log())
            self.assertEqual(server.rest_of_stdout(), "")

    def test_health_metrics_and_version(self):
        with conclave.Server() as server:
            self.assertEqual(server.request("GET", "/health/live").status, 200)
            self.assertEqual(server.request("GET", "/health/ready").status, 200)
            self.assert_good(server)
            metrics = server.request("GET", "/metrics")
            self.assertEqual(metrics.status, 200)
            self.assertTrue(metrics.headers["content-type"].startswith("text/plain"), metrics.headers)
            text = metrics.body.decode()
            for name in ("conclave_prompt_tokens", "conclave_generation_tokens", "moe_expert_tokens_total"):
                self.assertRegex(text, rf"(?m)^{name}\w*\{{?.*\}}? [0-9.e+]+$")

    def test_the_names_of_vllm_are_there_when_they_are_wanted(self):
        finished = r'(?m)^vllm:request_success_total\{engine="0",finished_reason="(stop|length)",model_name="demo"\} [1-9]'
        with conclave.Server("--metrics-compat", "vllm") as server:
            self.assert_good(server)
            # Whoever reads the answer may ask before it is counted.
            wait_until(lambda: re.search(finished, server.request("GET", "/metrics").body.decode()), "the answer is counted", 10)
            text = server.request("GET", "/metrics").body.decode()
        for kind, names in VLLM.items():
            for name in names:
                with self.subTest(name=name):
                    self.assertIn(f"# TYPE vllm:{name} {kind}\n", text)
                    sample = name + ("_count" if kind == "histogram" else "")
                    self.assertRegex(text, rf'(?m)^vllm:{sample}\{{.*engine="0".*model_name="demo".*\}} [0-9.e+-]+$')
        self.assertEqual(text.count("# TYPE vllm:"), sum(map(len, VLLM.values())))
        self.assertRegex(text, finished)
        with conclave.Server() as server:
            self.assertNotIn("vllm:", server.request("GET", "/metrics").body.decode())

    def test_without_counting_the_answers_are_the_same(self):
        with conclave.Server() as server, conclave.Server("--metrics", "off") as plain:
            body = {"model": "demo", "messages": [conclave.user("What is this?")], "temperature": 0}
            choices = [where.chat(body).json()["choices"] for where in (server, plain)]
            self.assertEqual(*choices)
            self.assertIn("moe_dispatch_seconds", server.request("GET", "/metrics").body.decode())
            page = plain.request("GET", "/metrics").body.decode()
            self.assertIn("process_resident_memory_bytes", page)
            self.assertNotIn("moe_", page)

    def test_sse_is_well_formed(self):
        with conclave.Server() as server:
            stream = self.stream(server, {**LONG, "max_tokens": 20})
            self.assertEqual(stream.response.status, 200)
            self.assertTrue(stream.response.headers["Content-Type"].startswith("text/event-stream"))
            self.assertIn("no-cache", stream.response.headers["Cache-Control"])
            events = list(stream.events())
            self.assertEqual(events[-1], "[DONE]")
            chunks = [json.loads(event) for event in events[:-1]]
            self.assertTrue(all("choices" in chunk for chunk in chunks))
            self.assertEqual(chunks[0]["choices"][0]["delta"].get("role"), "assistant")
            self.assertEqual(chunks[-2]["choices"][0]["finish_reason"], "length")
            self.assertEqual(chunks[-1]["choices"], [])
            self.assertEqual(chunks[-1]["usage"]["completion_tokens"], 20)

    def test_a_drain_finishes_what_runs_and_takes_nothing_new(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number), conclave.Server() as server:
                stream = self.stream(server, LONG)
                events = stream.events()
                seen = [next(events) for _ in range(3)]
                server.send_signal(number)
                seen.extend(events)
                self.assertEqual(seen[-1], "[DONE]", server.log())
                usage = json.loads(seen[-2])["usage"]
                self.assertEqual(usage["completion_tokens"], LONG["max_tokens"])
                self.assertEqual(server.wait(), 0, server.log())
                with self.assertRaises(OSError):
                    server.request("GET", "/health/live", timeout=5)

    def test_a_second_signal_ends_at_once(self):
        with conclave.Server("--drain-timeout", "60s") as server:
            stream = self.stream(server, {**LONG, "max_tokens": 400, "n": 4})
            next(stream.events())
            server.send_signal(signal.SIGINT)
            server.send_signal(signal.SIGTERM)
            began = time.monotonic()
            server.wait(timeout=10)
            self.assertLess(time.monotonic() - began, 5)

    def test_the_drain_timeout_bounds_a_drain(self):
        with conclave.Server("--drain-timeout", "10ms") as server:
            streams = [self.stream(server, {**LONG, "n": 4, "max_tokens": 400}) for _ in range(4)]
            for stream in streams:
                next(stream.events())
            began = time.monotonic()
            server.send_signal(signal.SIGINT)
            server.wait(timeout=10)
            self.assertLess(time.monotonic() - began, 5)

    def test_many_disconnects_leave_a_healthy_server(self):
        with conclave.Server() as server:
            for pieces in range(12):
                stream = self.stream(server, LONG)
                events = stream.events()
                for _ in range(pieces):
                    next(events)
                stream.close()
            self.assert_good(server)
            self.assertEqual(server.stop(), 0, server.log())

    def test_the_number_of_workers_cannot_be_seen_in_the_numbers(self):
        body = {"model": "demo", "messages": [user("What is in the image?", "four-large.jpg")], "temperature": 0,
                "logprobs": True, "top_logprobs": 3}
        answers = {}
        for options in (("--workers", "1"), ("--workers", "2"), ("--workers", "4", "--threads", "2")):
            with conclave.Server(*options) as server:
                answers[options] = json.dumps(server.chat(body).json()["choices"])
        self.assertEqual(len(set(answers.values())), 1, answers)

    def test_mixed_load_gives_every_request_its_own_answer(self):
        samples = [sample for sample in conclave.samples() if not sample["history"]]
        with conclave.Server("--workers", "2", "--prefill-chunk", "16") as server:
            def ask(sample):
                return server.chat({"model": "demo", "messages": conclave.sample_messages(sample), "temperature": 0,
                                    "logprobs": True}).json()["choices"]
            chosen = samples[::5]
            alone = [ask(sample) for sample in chosen]
            with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
                together = list(pool.map(ask, chosen))
        self.assertEqual(alone, together)

    def test_a_port_in_use(self):
        with conclave.Server() as server:
            address = urllib.parse.urlsplit(server.api).netloc
            result = conclave.run("serve", "--model", str(conclave.MODEL), "--listen", address,
                                  "--admin-listen", "127.0.0.1:0")
        self.assertEqual(result.returncode, 5, result)
        self.assertIn(address, result.stderr)
        self.assertEqual(result.stdout, "")

    def test_logs_as_json(self):
        with conclave.Server("--log-format", "json") as server:
            self.assert_good(server)
            self.assertEqual(server.stop(), 0)
            lines = [line for line in server.log().splitlines() if line.strip()]
        self.assertTrue(lines)
        for line in lines:
            self.assertIsInstance(json.loads(line), dict, line)

    def test_ready_only_when_it_can_answer(self):
        # The first request is sent the moment the line is read.
        with conclave.Server() as server:
            self.assert_good(server)

    def test_stdout_closed_after_start_does_not_matter(self):
        with conclave.Server() as server:
            server.process.stdout.close()
            self.assert_good(server)
            self.assertEqual(server.stop(), 0, server.log())


if __name__ == "__main__":
    unittest.main(verbosity=2)
