"""Goal: the page that a router serves shows what a real cluster did: rows, a lost worker, a chat with its patches.

Method: a router, three workers and a frontend with the demo model. Every request asks for its routed experts, and the heat map
of every filter must equal, exactly, the counts made of them. CONCLAVE_PAGE_SCREENSHOTS=FOLDER keeps pictures of every view.
"""

import collections
import io
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
import unittest

import browser

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import cluster as clusters  # noqa: E402
import conclave_process as conclave  # noqa: E402
import routed  # noqa: E402

SCREENSHOTS = os.environ.get("CONCLAVE_PAGE_SCREENSHOTS", "")
WAIT_MS = 30_000
KEY = "a-key-of-operators-0123456789"
FILTERS = [(modality, phase) for modality in ("all", "image", "text") for phase in ("both", "prefill", "decode")]


def drawing(number: int) -> dict:
    """A picture that no frontend has seen: the prefix cache would answer for one that it knows, and no expert be chosen."""
    from PIL import Image, ImageDraw
    picture = Image.new("RGB", (144, 144), (230, 235, 230))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((12 + 3 * number, 16, 52 + 3 * number, 56), fill=(214, 40, 40))
    pen.rectangle((84, 80 - 5 * number, 124, 120 - 5 * number), fill=(29, 95, 209))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"name": f"drawing{number}.png", "mimeType": "image/png", "buffer": file.getvalue()}


class Counts:
    """(index of the MoE layer, expert, modality, phase) -> rows, over both choices, of all answers so far."""

    def __init__(self):
        self.rows = collections.Counter()
        self.cached = 0

    def add(self, choice: dict, prompt_tokens: int):
        (positions, num_layers, top_k), _, values = routed.npy(choice["routed_experts"])
        images = {row for first, count in choice["conclave"]["image_rows"] for row in range(first, first + count)}
        for position in range(positions):
            modality = "image" if position in images else "text"
            phase = "prefill" if position < prompt_tokens else "decode"
            for layer in range(num_layers):
                for choice in range(top_k):
                    expert = values[(position * num_layers + layer) * top_k + choice]
                    if expert < 0:
                        self.cached += 1  # a kept KV block: nothing was computed
                    else:
                        self.rows[layer, expert, modality, phase] += 1

    def loads(self, layer: int, experts: int, modality: str, phase: str) -> list[int]:
        return [sum(count for (at, which, m, p), count in self.rows.items()
                    if (at, which) == (layer, expert) and modality in ("all", m) and phase in ("both",
                                                                                               p)) for expert in range(experts)]


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def chunks_of(body: str) -> list[dict]:
    data = [line[5:].strip() for line in body.splitlines() if line.startswith("data:")]
    return [json.loads(text) for text in data if text != "[DONE]"]


class ClusterPageTest(conclave.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.resources = []
        try:
            key = tempfile.NamedTemporaryFile("w", encoding="ascii")
            cls.resources.append(key)
            key.write(KEY + "\n")
            key.flush()
            cls.cluster = clusters.Cluster(workers=3, frontends=1, router_args=["--admin-key-file", key.name])
            cls.resources.append(cls.cluster)
            cls.cluster.wait_for_replicas(2)
            cls.browser = browser.Browser().__enter__()
            cls.resources.append(cls.browser)
        except BaseException:
            cls.tearDownClass()
            raise
        cls.url = cls.cluster.router.ready["admin"] + "/"
        cls.frontend = cls.cluster.frontends[0]
        cls.counts = Counts()
        stats = conclave.http_request(cls.cluster.router.ready["admin"], "GET", "/moe/stats").json()
        cls.layers = [(entry["layer"], entry["experts"]) for entry in stats["model"]["layers"]]

    @classmethod
    def tearDownClass(cls):
        for resource in reversed(cls.resources):
            resource.__exit__(None, None, None)

    def open(self, fragment: str = "", **options) -> browser.OpenPage:
        opened = self.browser.open(self.url + fragment, **options)
        self.addCleanup(opened.context.close)
        return opened

    def stats(self) -> dict:
        return conclave.http_request(self.cluster.router.ready["admin"], "GET", "/moe/stats").json()

    def ask(self, sample: dict):
        answer = self.frontend.chat({"model": "demo", "messages": conclave.sample_messages(sample), "temperature": 0,
                                     "return_routed_experts": True})
        self.assertEqual(answer.status, 200, answer)
        body = answer.json()
        self.counts.add(body["choices"][0], body["usage"]["prompt_tokens"])

    def assert_map(self, opened: browser.OpenPage):
        """The table of the heat map says, for every filter, what the answers said. Counts arrive a moment after the answers."""
        for modality, phase in FILTERS:
            with self.subTest(modality=modality, phase=phase):
                opened.page.click(f".panel-heat .choice [data-value={modality}]")
                opened.page.click(f".panel-heat .choice [data-value={phase}]")
                expected = []
                for index, (layer, experts) in enumerate(self.layers):
                    found = self.counts.loads(index, experts, modality, phase)
                    ratio = [browser.fixed(n * experts / sum(found)) if sum(found) else "–" for n in found]
                    expected.append([f"L{layer}", *(f"{n:,} ({share})" for n, share in zip(found, ratio))])
                deadline = time.monotonic() + WAIT_MS / 1000
                while (found := opened.cells(".panel-heat table")) != expected and time.monotonic() < deadline:
                    opened.page.wait_for_timeout(100)
                self.assertEqual(found, expected)

    # The three parts follow one another: each looks at the same cluster.
    def test_the_page_shows_what_the_cluster_did(self):
        with_image = [sample for sample in conclave.samples() if sample["image"]][:8]
        without = [sample for sample in conclave.samples() if not sample["image"]][:8]
        for pair in zip(with_image, without):
            for sample in pair:
                self.ask(sample)
        opened = self.open("#tables=heat")
        self.assert_map(opened)
        self.chat_with_a_picture(opened)
        opened.tab("load")
        self.assert_map(opened)
        self.plan_and_replicate(opened)
        self.lose_a_worker(opened)
        self.assertEqual(opened.complaints, [])
        self.look_at_every_view()

    def chat_with_a_picture(self, opened: browser.OpenPage):
        opened.tab("chat")
        opened.wait_for("() => document.querySelector('.chat select').value === 'demo'")
        opened.page.set_input_files("input[type=file]", drawing(0))
        opened.page.wait_for_selector(".preview:not([hidden])")
        opened.page.fill("textarea", "What is in the image?")
        with opened.page.expect_response("**/v1/chat/completions") as waiting:
            opened.page.keyboard.press("Enter")
        opened.page.wait_for_selector(".patches", timeout=WAIT_MS)
        chunks = chunks_of(waiting.value.text())
        end = next(choice for chunk in chunks for choice in chunk["choices"] if "routed_experts" in choice)
        usage = next(chunk["usage"] for chunk in chunks if chunk.get("usage"))
        answer = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
        self.assertEqual(opened.texts(".turn-text")[1], " ".join(answer.split()))
        self.counts.add(end, usage["prompt_tokens"])
        (_, num_layers, top_k), _, values = routed.npy(end["routed_experts"])
        first, count = end["conclave"]["image_rows"][0]
        chosen = collections.Counter(values[(first + patch) * num_layers * top_k] for patch in range(count))
        for expert, rows in chosen.items():
            if expert >= 0:
                self.assertIn(f"expert {expert}: {rows} row", opened.text(".patch-legend"))
        opened.page.focus(".patches canvas")
        (_, _, most), _, probabilities = routed.npy(end["conclave"]["gate_probabilities"])
        best = max(probabilities[first * num_layers * most:first * num_layers * most + self.layers[0][1]])
        self.assertIn(f"{100 * best:.1f} %", opened.text(".patches .readout"))

    def plan_and_replicate(self, opened: browser.OpenPage):
        opened.tab("placement")
        opened.page.select_option("select >> nth=0", "w1")
        opened.page.click("text=Safe to kill?")
        opened.page.wait_for_selector(".plan li")
        self.assertIn("Every expert stays served without w1.", opened.text(".plan"))
        opened.page.click("text=Rebalance … >> nth=0")
        opened.wait_for("() => document.querySelector('.plan').textContent.includes('Imbalance')")
        before = self.stats()["placement"]
        opened.page.fill("input[type=password]", KEY)
        opened.page.fill("input[type=number]", "3")
        opened.page.click("text=Replicate … >> nth=0")
        opened.page.wait_for_selector(".plan .strong")
        self.assertEqual(self.stats()["placement"]["experts"][0], before["experts"][0], "it was not confirmed yet")
        opened.page.click(".plan .strong")
        clusters.wait_until(lambda: len(self.stats()["placement"]["experts"][0]) == 3, "a third replica of the first expert")
        opened.page.wait_for_function("() => document.querySelectorAll('.chip').length >= 17")
        self.assertEqual(opened.faults(), [])

    def lose_a_worker(self, opened: browser.OpenPage):
        opened.tab("failover")
        load = clusters.Load([self.frontend], clusters.bodies_of(conclave.samples()[:20]), clients=3)
        try:
            load.wait_for(6)
            self.cluster.workers["w1"].kill()
            load.wait_for(20)
        finally:
            load.stop()
        self.assertEqual(load.failures, [])
        opened.page.wait_for_function("""() => [...document.querySelectorAll('.cards tbody tr')].some((row) =>
          row.cells[0].textContent === 'w1' && row.cells[9].textContent !== 'not yet')""", timeout=WAIT_MS)
        incident = next(incident for incident in self.stats()["incidents"] if incident["name"] == "w1")
        self.assertEqual((incident["kind"], incident["requests_failed"]), ("dead", 0))
        row = next(row for row in opened.cells(".cards") if row[0] == "w1")
        resent = f"{plural(incident['rows_resent'], 'row')} in {plural(incident['calls_resent'], 'call')}"
        self.assertEqual((row[1], row[4], row[6]), ("lost", resent, "0"))
        self.assertEqual(row[10], f"{incident['epoch_before']} → {incident['epoch_after']}")
        self.assertIn("2 of 3 workers", opened.text("#header"))
        states = opened.page.eval_on_selector_all(".piece", "(pieces) => pieces.map((piece) => piece.dataset.state)")
        self.assertIn("dead", states)

    def look_at_every_view(self):
        for number, (theme, width) in enumerate(itertools.product(("light", "dark"), (1280, 380)), 1):
            with self.subTest(theme=theme, width=width):
                opened = self.open("#pin=2:1", theme=theme, width=width)
                for tab in ("load", "placement", "failover", "pathways", "chat"):
                    opened.tab(tab)
                    if tab == "chat":
                        opened.wait_for("() => document.querySelector('.chat select').value === 'demo'")
                        opened.page.set_input_files("input[type=file]", drawing(number))
                        opened.page.wait_for_selector(".preview:not([hidden])")
                        opened.page.fill("textarea", "What do you see?")
                        opened.page.keyboard.press("Enter")
                        opened.page.wait_for_selector(".patches", timeout=WAIT_MS)
                    self.assertEqual(opened.faults(), [])
                    if SCREENSHOTS:
                        pathlib.Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
                        opened.page.screenshot(path=f"{SCREENSHOTS}/{tab}-{theme}-{width}.png", full_page=True)


if __name__ == "__main__":
    browser.require_chromium()
    unittest.main()
