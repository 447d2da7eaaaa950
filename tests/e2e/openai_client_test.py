"""Goal: the official OpenAI client works against `conclave serve` without any special handling.

Method: one server with the demo model; the client's own types and exceptions are what is asserted on. Right answers are
those recorded in models/demo/samples.
"""

import ast
import base64
import concurrent.futures
import time
import unittest

import openai

import conclave_process as conclave
from conclave_process import user

# A question whose answer takes several tokens, and the answer.
DESCRIBE = user("What is in the image?", "four-large.jpg")
DESCRIBED = ("I see an orange star at the top left, a red square at the left, a yellow circle at the center and a blue "
             "circle at the bottom right.")


class OpenAiClientTest(conclave.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = conclave.Server()
        cls.addClassCleanup(cls.server.kill)
        cls.client = cls.make_client()
        cls.addClassCleanup(cls.client.close)

    @classmethod
    def make_client(cls) -> openai.OpenAI:
        # No retries: a second attempt must not hide the first one's failure.
        return openai.OpenAI(base_url=cls.server.api + "/v1", api_key="unused", max_retries=0, timeout=60)

    def ask(self, messages, **options):
        return self.client.chat.completions.create(
            model="demo", messages=messages, **{"temperature": 0, **options})

    def wait_until_idle(self):
        """Until the engine runs and queues no request; fails after ten seconds."""
        deadline = time.monotonic() + 10
        while True:
            text = self.server.request("GET", "/metrics").body.decode()
            loads = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                     if line.startswith(("conclave_num_requests_running", "conclave_num_requests_waiting"))]
            self.assertTrue(loads, text)
            if sum(loads) == 0:
                return
            self.assertLess(time.monotonic(), deadline, f"still busy: {loads}")
            time.sleep(0.01)

    def test_models_lists_the_served_model(self):
        models = self.client.models.list().data
        self.assertEqual([model.id for model in models], ["demo"])
        self.assertEqual(models[0].object, "model")
        self.assertEqual(models[0].max_model_len, 512)

    def test_routed_experts_come_as_positions_by_layers_by_choices(self):
        reply = self.ask([user("How many shapes are there?")], max_tokens=2, extra_body={"return_routed_experts": True})
        data = base64.b64decode(reply.choices[0].routed_experts)
        self.assertEqual(data[:6], b"\x93NUMPY")
        header = ast.literal_eval(data[10:10 + int.from_bytes(data[8:10], "little")].decode())
        # The demo has two MoE layers of four experts, two of which see each token.
        positions = reply.usage.prompt_tokens + reply.usage.completion_tokens - 1
        self.assertEqual(header["shape"], (positions, 2, 2))
        values = memoryview(data[-2 * positions * 4:]).cast("h")
        self.assertTrue(all(-1 <= value < 4 for value in values), list(values))

    def test_text_only_chat(self):
        sample = next(sample for sample in conclave.samples() if not sample["image"] and not sample["history"])
        answer = self.ask(conclave.sample_messages(sample))
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.model, "demo")
        self.assertTrue(answer.id)
        self.assertAlmostEqual(answer.created, time.time(), delta=3600)
        self.assertEqual(len(answer.choices), 1)
        self.assertEqual(answer.choices[0].index, 0)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].message.content, sample["answer"])
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertGreater(answer.usage.completion_tokens, 0)

    def test_image(self):
        answer = self.ask([DESCRIBE])
        self.assertEqual(answer.choices[0].message.content, DESCRIBED)
        # 36 patches of the picture are part of the prompt.
        self.assertGreater(answer.usage.prompt_tokens, 36)

    def test_two_images_are_both_seen(self):
        one = self.ask([user("How many objects are there?", "two.png")])
        two = self.ask([user("How many objects are there?", "two.png", "three.png")])
        again = self.ask([user("How many objects are there?", "two.png", "three.png")])
        swapped = self.ask([user("How many objects are there?", "three.png", "two.png")], logprobs=True)
        straight = self.ask([user("How many objects are there?", "two.png", "three.png")], logprobs=True)
        self.assertGreaterEqual(two.usage.prompt_tokens, one.usage.prompt_tokens + 36)
        self.assertEqual(two.choices[0].message.content, again.choices[0].message.content)
        self.assertIn(two.choices[0].finish_reason, ("stop", "length"))
        # Their order matters to the model, so it shows in the numbers.
        self.assertNotEqual([token.logprob for token in swapped.choices[0].logprobs.content],
                            [token.logprob for token in straight.choices[0].logprobs.content])

    def test_multi_turn(self):
        sample = max(conclave.samples(), key=lambda sample: len(sample["history"]))
        self.assertGreaterEqual(len(sample["history"]), 2)
        self.assertEqual(self.ask(conclave.sample_messages(sample)).choices[0].message.content, sample["answer"])

    def test_stream_is_the_answer_in_pieces(self):
        chunks = list(self.ask([DESCRIBE], stream=True))
        self.assertTrue(all(chunk.object == "chat.completion.chunk" and len(chunk.choices) == 1 for chunk in chunks))
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), DESCRIBED)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        self.assertEqual([reason for reason in reasons if reason], ["stop"])
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")
        self.assertTrue(all(chunk.usage is None for chunk in chunks))

    def test_tokens_arrive_while_others_are_made(self):
        # The demo makes thousands of tokens a second and the server sends what has gathered, so on a busy machine one
        # answer may come in few pieces, but not every one.
        pieces = []
        while len(pieces) < 10 and max(pieces, default=0) <= 10:
            chunks = self.ask([DESCRIBE], stream=True, max_tokens=300, extra_body={"ignore_eos": True})
            pieces.append(sum(1 for chunk in chunks if chunk.choices[0].delta.content))
        self.assertGreater(max(pieces), 10, pieces)

    def test_usage_chunk_comes_last_and_has_no_choice(self):
        chunks = list(self.ask([DESCRIBE], stream=True, stream_options={"include_usage": True}))
        whole = self.ask([DESCRIBE]).usage
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.prompt_tokens, whole.prompt_tokens)
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.completion_tokens)
        self.assertTrue(all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks[:-1]))

    def test_max_tokens_ends_with_length(self):
        for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
            answer = self.ask([DESCRIBE], **limit)
            self.assertEqual(answer.choices[0].finish_reason, "length")
            self.assertEqual(answer.usage.completion_tokens, 3)
            self.assertTrue(DESCRIBED.startswith(answer.choices[0].message.content.strip()))

    def test_stop_string_ends_the_answer_and_is_not_in_it(self):
        for stream in (False, True):
            answer = self.ask([DESCRIBE], stop=["red square"], stream=stream)
            if stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
            else:
                text = answer.choices[0].message.content
                self.assertEqual(answer.choices[0].finish_reason, "stop")
            self.assertEqual(text.rstrip(), DESCRIBED[:DESCRIBED.index("red square")].rstrip())

    def test_several_choices(self):
        answer = self.ask([DESCRIBE], n=2)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1])
        self.assertEqual([choice.message.content for choice in answer.choices], [DESCRIBED, DESCRIBED])

    def test_a_seed_repeats_a_sampled_answer(self):
        def sampled(seed):
            return self.ask([DESCRIBE], temperature=1.5, seed=seed, max_tokens=20).choices[0].message.content
        answers = {seed: sampled(seed) for seed in range(8)}
        self.assertEqual(answers, {seed: sampled(seed) for seed in range(8)})
        self.assertGreater(len(set(answers.values())), 1, "eight seeds at temperature 1.5 gave one answer")

    def test_logprobs(self):
        answer = self.ask([DESCRIBE], logprobs=True, top_logprobs=5).choices[0]
        self.assertTrue(answer.logprobs.content)
        for token in answer.logprobs.content:
            self.assertEqual(len(token.top_logprobs), 5)
            self.assertEqual(token.top_logprobs[0].token, token.token)  # greedy
            ordered = [top.logprob for top in token.top_logprobs]
            self.assertEqual(ordered, sorted(ordered, reverse=True))
            self.assertLessEqual(ordered[0], 0.0)
        spelled = b"".join(bytes(token.bytes) for token in answer.logprobs.content).decode()
        self.assertIn(DESCRIBED, spelled)

    def test_request_id_is_there_and_is_echoed(self):
        raw = self.client.chat.completions.with_raw_response.create(
            model="demo", messages=[DESCRIBE], extra_headers={"X-Request-Id": "trace-42"})
        self.assertEqual(raw.headers["x-request-id"], "trace-42")
        self.assertTrue(self.client.models.with_raw_response.list().headers["x-request-id"])

    def test_errors_become_the_clients_exceptions(self):
        cases = [
            (openai.BadRequestError, {"temperature": 3}, 400, "temperature"),
            (openai.BadRequestError, {"max_tokens": -1}, 400, "max_tokens"),
            (openai.BadRequestError, {"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs"),
            (openai.NotFoundError, {"model": "gpt-9"}, 404, "model"),
        ]
        for kind, options, status, param in cases:
            with self.subTest(options=options), self.assertRaises(kind) as caught:
                self.client.chat.completions.create(**{"model": "demo", "messages": [DESCRIBE], **options})
            error = caught.exception
            self.assertEqual(error.status_code, status)
            self.assertEqual(error.param, param)
            self.assertEqual(error.type, conclave.ERROR_TYPES[status])
            self.assertRegex(error.code, r"^[a-z_]+$")
            self.assertTrue(error.request_id)

    def test_an_image_address_is_refused_with_its_place(self):
        message = {"role": "user", "content": [conclave.image_part("https://example.org/a.png"),
                                               {"type": "text", "text": "What is it?"}]}
        with self.assertRaises(openai.BadRequestError) as caught:
            self.ask([message])
        self.assertEqual(caught.exception.code, "image_url_fetch_disabled")
        self.assertEqual(caught.exception.param, "messages[0].content[0].image_url.url")

    def test_a_disconnect_in_mid_stream_frees_the_sequence(self):
        with self.make_client() as client:
            stream = client.chat.completions.create(
                model="demo", messages=[DESCRIBE], temperature=0, stream=True, max_tokens=350,
                extra_body={"ignore_eos": True})
            pieces = 0
            for chunk in stream:
                pieces += bool(chunk.choices[0].delta.content)
                if pieces == 3:
                    break
            stream.close()
        self.assertEqual(pieces, 3)
        self.wait_until_idle()
        self.assertEqual(self.ask([DESCRIBE]).choices[0].message.content, DESCRIBED)

    def test_eight_clients_at_once_get_their_own_answers(self):
        samples = [sample for sample in conclave.samples() if sample["image"]][::8][:8]
        self.assertEqual(len(samples), 8)
        clients = [self.make_client() for _ in samples]
        for client in clients:
            self.addCleanup(client.close)

        def ask(client, sample):
            stream = client.chat.completions.create(
                model="demo", messages=conclave.sample_messages(sample), temperature=0, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
            answers = list(pool.map(ask, clients, samples))
        self.assertEqual(answers, [sample["answer"] for sample in samples])


if __name__ == "__main__":
    unittest.main(verbosity=2)
