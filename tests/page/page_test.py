"""Goal: the page shows what the counters say, in every view, theme and width, and never anything that its policy forbids.

Method: a made-up cluster behind the real files and headers; figures are computed here from the same rows and compared with the
text on the page. What needs a real cluster is in cluster_page_test.py.
"""

import json
import math
import re
import unittest

import browser
import page_server
import picture as pictures

SIZE_MAX = 150 * 1024
MODALITIES = {"all": (0, 1), "image": (1,), "text": (0,)}
PHASES = {"both": (0, 1), "prefill": (0,), "decode": (1,)}


def loads(rows: list[int], units: range, modality: str = "all", phase: str = "both", ranks=(0, 1)) -> list[int]:
    return [sum(rows[unit * 8 + rank * 4 + p * 2 + m] for rank in ranks for p in PHASES[phase] for m in MODALITIES[modality])
            for unit in units]


def quantile(counts: list[int], bounds: list[float], q: float) -> float:
    """As Prometheus does it: linear within the bucket."""
    rank, below = q * sum(counts), 0
    for index, bound in enumerate(bounds):
        if below + counts[index] >= rank and counts[index]:
            low = bounds[index - 1] if index else 0.0
            return low + (bound - low) * (rank - below) / counts[index]
        below += counts[index]
    return bounds[-1]


def duration(seconds: float) -> str:
    value, unit = (seconds * 1e3, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


class PageTest(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.browser = browser.Browser().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.browser.__exit__()

    def setUp(self):
        self.picture = pictures.Picture()
        self.server = page_server.PageServer(self.picture)
        self.addCleanup(self.server.__exit__)

    def open(self, fragment: str = "", **options) -> browser.OpenPage:
        opened = self.browser.open(self.server.url + fragment, **options)
        self.addCleanup(opened.context.close)
        return opened

    def assert_faultless(self, opened: browser.OpenPage):
        self.assertEqual(opened.faults(), [])

    def tick(self, opened: browser.OpenPage, times: int = 1, change=None):
        """Moves on and waits until the page shows it."""
        before = opened.page.evaluate("() => window.costs.apply.length")
        for _ in range(times):
            self.server.tick(change=change)
        opened.wait_for("(n) => window.costs.apply.length >= n", before + times)
        opened.frame()

    # units of a layer, by its place
    def units(self, index: int) -> range:
        first = sum(experts for _, experts in self.picture.layers[:index])
        return range(first, first + self.picture.layers[index][1])

    def expected_map(self, rows: list[int], modality: str, phase: str) -> list[list[str]]:
        table = []
        for index, (layer, experts) in enumerate(self.picture.layers):
            found = loads(rows, self.units(index), modality, phase)
            table.append([f"L{layer}", *(f"{n:,} ({browser.fixed(n * experts / sum(found))})" for n in found)])
        return table

    # The figures

    def test_the_map_is_share_over_fair_share_of_every_filter(self):
        opened = self.open("#tables=heat")
        self.tick(opened, 3)
        for modality in MODALITIES:
            for phase in ("both", "prefill") if modality == "image" else PHASES:
                with self.subTest(modality=modality, phase=phase):
                    opened.page.click(f".panel-heat .choice [data-value={modality}]")
                    opened.page.click(f".panel-heat .choice [data-value={phase}]")
                    opened.frame()
                    self.assertEqual(opened.cells(".panel-heat table"), self.expected_map(self.picture.rows, modality, phase))

    def test_a_window_holds_what_came_in_it(self):
        opened = self.open("#tables=heat")
        rows = [list(self.picture.rows)]
        for _ in range(70):
            self.server.tick(rows=4)
            rows.append(list(self.picture.rows))
        opened.wait_for("() => window.costs.apply.length >= 71")
        for seconds in (10, 60):
            with self.subTest(seconds=seconds):
                opened.page.click(f".panel-heat [data-value='{seconds}']")
                opened.frame()
                gained = [now - then for now, then in zip(rows[-1], rows[-1 - seconds])]
                self.assertEqual(opened.cells(".panel-heat table"), self.expected_map(gained, "all", "both"))
                self.assertIn(f"in the last {seconds} s", opened.text(".panel-heat > .note"))

    def test_a_young_page_says_how_much_of_the_window_it_has_seen(self):
        opened = self.open("#window=60")
        self.tick(opened, 2)
        self.assertIn("in the last 60 s (this page has seen 2.00 s of them)", opened.text(".panel-heat > .note"))

    def test_the_pinned_expert_in_figures(self):
        opened = self.open("#pin=2:1")
        picture, units, unit = self.picture, self.units(1), self.units(1)[1]
        found = loads(picture.rows, units)
        image, text = loads(picture.rows, units, "image"), loads(picture.rows, units, "text")
        share = {name: rows[1] / sum(rows) for name, rows in (("image", image), ("text", text))}
        firsts = loads(picture.rows, units, ranks=(0,))
        loss = 4 * sum(first / sum(firsts) * picture.probabilities[u] / sum(firsts) for first, u in zip(firsts, units))
        weights = [picture.weights[unit * 2 + m] / rows[1] for m, rows in ((0, text), (1, image))]
        self.assertEqual(opened.texts(".panel-pinned dd"), [
            f"{found[1] / sum(found):.1%} ({found[1]:,} of {sum(found):,})".replace("%", " %"),
            f"{4 * found[1] / sum(found):.2f}",
            f"{image[1] / found[1]:.1%} ({image[1]:,} of {found[1]:,})".replace("%", " %"),
            f"{share['image'] / (share['image'] + share['text']):.2f}", f"{weights[0]:.3f}, {weights[1]:.3f}, since the start",
            f"{loss:.3f}, since the start", ", ".join(f"w{id_}" for id_ in picture.state["placement"]["experts"][unit])])

    def test_imbalance_rates_and_workers(self):
        opened = self.open()
        self.tick(opened, 12)
        expected = [browser.fixed(max(found) * len(found) / sum(found)) for found in (loads(self.picture.rows, self.units(i))
                                                                                for i in (0, 1))]
        self.assertEqual(opened.texts(".imbalance strong"), expected)
        serving = self.picture.state["serving"]
        rates = {row[0]: row[1:] for row in opened.cells(".rates")}
        self.assertEqual(rates["Prompt rows, image"], ["36.0 /s", f"{serving['prompt_image']:,}"])
        self.assertEqual(rates["Generated tokens"], ["6.00 /s", f"{serving['generated']:,}"])
        share = serving["cached"] / (serving["cached"] + serving["prompt_text"] + serving["prompt_image"])
        self.assertEqual(rates["Prompt rows from the cache"][1], f"{browser.fixed(100 * share, 0)} %")
        for name, key in (("Time to first token", "ttft"), ("Between two tokens", "itl")):
            for q in (50, 99):
                self.assertEqual(rates[f"{name}, p{q}"][1], duration(quantile(serving[key], pictures.BOUNDS, q / 100)))
        for worker, text in zip(self.picture.state["workers"], opened.texts(".workers li")):
            self.assertIn(f"{worker['name']} live {100 * worker['busy']:.0f} % busy", text)
            self.assertIn(f"p99 {duration(quantile(worker['call_seconds'], pictures.BOUNDS, 0.99))}", text)

    def test_a_straggler_is_named(self):
        opened = self.open()

        def slow(picture):
            picture.state["workers"][2]["call_seconds"][12] += 2000

        self.tick(opened, 1, slow)
        self.assertEqual(["straggler" in text for text in opened.texts(".workers li")], [False, False, True])

    def test_paths_beside_what_independent_layers_would_do(self):
        opened = self.open("#tab=pathways&paths=8")
        for name, modality in (("text", 0), ("image", 1)):
            top = self.picture.pathways()[name]
            expected = []
            for path in top["top"][:8]:
                independent = 1.0
                for index, expert in enumerate(path["experts"]):
                    firsts = loads(self.picture.rows, self.units(index), name, ranks=(0,))
                    independent *= firsts[expert] / sum(firsts)
                share = path["rows"] / top["rows"]
                expected.append([" → ".join(map(str, path["experts"])), "", f"{browser.fixed(100 * share, 1)} %",
                                 browser.fixed(share / independent, 1)])
            self.assertEqual(opened.cells(f"[data-kind={name}] .paths"), expected)
        self.assertEqual(opened.page.locator("[data-kind=image] .ribbon").count(), 8)

    def test_divergence_in_bits(self):
        opened = self.open("#tab=pathways")
        expected = []
        for index in (0, 1):
            p, q = ([n / sum(found) for n in found] for found in (loads(self.picture.rows, self.units(index), kind)
                                                                  for kind in ("image", "text")))
            bits = sum(x * math.log2(2 * x / (x + y)) / 2 + y * math.log2(2 * y / (x + y)) / 2 for x, y in zip(p, q))
            expected.append(f"{browser.fixed(bits, 3)} bits")
        self.assertEqual(opened.texts(".bits strong"), expected)

    def test_the_slider_replays_the_history(self):
        opened = self.open("#tables=heat")
        opened.wait_for("() => !document.querySelector('.panel-heat input[type=range]').disabled")
        history = self.picture.history
        rows = list(history["rows"])
        for step in history["steps"][:45]:
            for index, gained in zip(step[::2], step[1::2]):
                rows[index] += gained
        opened.page.eval_on_selector(".panel-heat input[type=range]",
                                     "(slider) => { slider.value = 45; slider.dispatchEvent(new Event('input')); }")
        opened.frame()
        self.assertEqual(opened.cells(".panel-heat table"), self.expected_map(rows, "all", "both"))
        self.assertIn("as of", opened.text(".panel-heat > .note"))
        self.assertIn(f"at={history['times'][45]:.0f}", opened.page.url)
        self.tick(opened, 11)  # another step: the moment stays
        self.assertEqual(opened.cells(".panel-heat table"), self.expected_map(rows, "all", "both"))
        opened.page.click("text=Live")
        opened.frame()
        self.assertEqual(opened.cells(".panel-heat table"), self.expected_map(self.picture.rows, "all", "both"))

    def test_a_lost_worker_in_every_view(self):
        opened = self.open("#tab=placement")
        self.tick(opened, 1, lambda picture: pictures.lose_worker(picture, 1))
        self.assertGreater(opened.page.locator(".chip.glides").count(), 0)
        self.assertGreater(opened.page.locator(".traces line").count(), 0)
        self.assertEqual(opened.page.locator(".chip").count(), 16)
        self.assertIn("2 of 3 workers", opened.text("#header"))
        self.assertIn("epoch 2", opened.text("#header"))
        self.assert_faultless(opened)
        opened.page.eval_on_selector(".panel-placement input",
                                     "(slider) => { slider.value = 0; slider.dispatchEvent(new Event('input')); }")
        opened.frame()
        self.assertIn("epoch=1", opened.page.url)
        self.assertEqual(opened.page.locator(".placement .name").all_text_contents(), ["w0", "w1", "w2"])
        opened.tab("failover")
        incident = self.picture.state["incidents"][0]
        row = opened.cells(".cards")[0]
        self.assertEqual(row[:2] + row[3:7], ["w1", "lost", "210 ms", "14 rows in 6 calls", "4", "0"])
        self.assertEqual(row[7:], [duration(quantile(incident["recovery"], pictures.BOUNDS, q))
                                   for q in (0.5, 0.99)] + ["not yet", "1 → 2"])
        states = opened.page.eval_on_selector_all(".piece", "(pieces) => pieces.map((piece) => piece.dataset.state)")
        self.assertEqual(states, ["joining", "live", "joining", "live", "suspect", "dead", "joining", "live"])
        self.assertEqual(opened.page.locator(".event-mark").count(), 1)
        self.assertIn("dead", opened.text(".events"))
        self.assert_faultless(opened)

        def restore(picture):
            picture.state["incidents"] = [{**picture.state["incidents"][0], "restored_after": 1.5}]

        self.tick(opened, 1, restore)
        self.assertEqual(opened.cells(".cards")[0][9], "1.50 s")

    def test_motion_stops_where_it_is_unwanted(self):
        opened = self.open("#tab=placement", reduced_motion="reduce")
        self.tick(opened, 1, lambda picture: pictures.lose_worker(picture, 1))
        self.assertEqual(opened.page.locator(".chip.glides").count(), 0)

    # The stream

    def test_a_gap_brings_a_new_snapshot(self):
        opened = self.open("#tables=heat")
        with self.server.lock:
            self.picture.tick()  # nobody is told
        self.server.tick()
        opened.wait_for("() => window.costs.apply.length >= 3")
        opened.frame()
        self.assertEqual(self.server.connections, 2)
        self.assertEqual(opened.cells(".panel-heat table"), self.expected_map(self.picture.rows, "all", "both"))
        opened.page.click(".panel-heat [data-value='10']")
        self.tick(opened)
        self.assertNotEqual(opened.cells(".panel-heat table"), self.expected_map(self.picture.rows, "all", "both"))

    def test_a_lost_stream_says_since_when_and_comes_back(self):
        opened = self.open()
        self.server.is_refusing = True
        self.server.drop_viewers()
        opened.page.wait_for_selector("#banner button")
        self.assertRegex(opened.text("#banner"), r"No news from the server since \d\d:\d\d:\d\d; .* (Next try at|Trying)")
        opened.complaints.clear()  # that it was refused is on the console
        self.assert_faultless(opened)
        self.server.is_refusing = False
        # Or it has tried by itself already, and there is no button any more.
        opened.page.evaluate("() => document.querySelector('#banner button')?.click()")
        opened.page.wait_for_selector("#banner", state="hidden")
        opened.complaints.clear()
        self.tick(opened)
        self.assert_faultless(opened)

    def drop(self, opened: browser.OpenPage, name: str, text: str, kind: str = "application/json"):
        opened.page.evaluate("""([name, text, type]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([text], name, {type}));
          document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""", [name, text, kind])

    def test_a_saved_picture_is_shown_without_a_stream(self):
        saved = pictures.Picture(layers=((1, 3), (4, 5)), seed=7)
        pictures.lose_worker(saved, 0)
        opened = self.open("#tables=heat")
        self.drop(opened, "night.json", json.dumps(saved.snapshot()))
        opened.page.wait_for_selector("#banner button")
        self.assertIn("Saved picture night.json", opened.text("#banner"))
        opened.frame()
        self.picture = saved
        self.assertEqual([row[:1 + experts] for row, (_, experts) in zip(opened.cells(".panel-heat table"), saved.layers)],
                         self.expected_map(saved.rows, "all", "both"))
        for tab in ("placement", "failover", "pathways", "chat", "load"):
            opened.tab(tab)
            self.assert_faultless(opened)
        opened.page.click("#banner button")
        opened.page.wait_for_selector("#banner", state="hidden")
        self.assertEqual(len(opened.cells(".panel-heat table")[0]), 5)

    def test_a_file_that_is_no_picture_is_refused_with_the_reason(self):
        opened = self.open()
        good = self.picture.snapshot()
        for name, text, reason in [
                ("a.json", "{", "a.json: not JSON"), ("b.json", "3", "schema: expected 1"),
                ("c.json", '{"schema": 2}', "schema: expected 1, found 2"),
                ("d.json", json.dumps({**good, "rows": good["rows"][1:]}), "rows: expected 64 numbers"),
                ("e.json", json.dumps({**good, "rows": ["x"] * 64}), "rows: expected 64 numbers"),
                ("f.json", json.dumps({**good, "model": {"layers": [{"layer": 0, "experts": 10**9}]}}), "1000000000 experts"),
                ("g.json", json.dumps({**good, "workers": [{}]}), "workers: expected"),
                ("h.json", json.dumps({**good, "bounds": {}}), "bounds.call_seconds"),
                ("i.json", json.dumps({**good, "placement": {"epoch": 1, "experts": [1]}}), "placement.experts")]:
            with self.subTest(name=name):
                self.drop(opened, name, text)
                opened.wait_for("(reason) => document.getElementById('banner').textContent.includes(reason)", reason)
                opened.page.click("#banner button")
        self.assert_faultless(opened)

    def test_names_from_outside_stay_text(self):
        hostile = "<img src=x onerror=alert(1)>"
        self.picture.state["workers"][0]["name"] = hostile
        self.picture.state["model"]["name"] = hostile
        self.picture.event("joined", 0, hostile)
        opened = self.open()
        for tab in ("load", "placement", "failover", "pathways", "chat"):
            opened.tab(tab)
            self.assertEqual(opened.page.locator("img").count(), 0)
        self.assertIn(hostile, opened.text("#header"))
        self.assert_faultless(opened)

    # Doing something

    def test_plans_are_shown_before_anything_happens(self):
        opened = self.open("#tab=placement")
        opened.page.select_option("select >> nth=0", "w1")
        opened.page.click("text=Safe to kill?")
        opened.page.wait_for_selector(".plan li")
        self.assertIn("Not safe: 2 experts would have no replica: L0 expert 1, L2 expert 3.", opened.text(".plan"))
        opened.page.click("text=Rebalance …")
        opened.wait_for("() => document.querySelector('.plan').textContent.includes('1 move')")
        self.assertIn("24.0 MiB", opened.text(".plan"))
        self.assertIn("Imbalance 1.31 before, 1.04 after", opened.text(".plan"))
        self.assertTrue(opened.page.locator(".plan .strong").is_disabled(), "without a key nothing can be carried out")
        opened.page.click("text=Drain … >> nth=0")
        opened.wait_for("() => document.querySelector('.plan h3').textContent === 'Drain w1'")
        self.assertEqual([body for _, path, body, _ in self.server.asked if path == "/moe/drain"], [])
        opened.page.fill("input[type=password]", "wrong")
        opened.page.click(".plan .strong")
        opened.page.wait_for_selector(".plan .warn")
        self.assertIn("wrong admin key", opened.text(".plan"))
        opened.complaints.clear()  # the answer 401 is on the console
        opened.page.click("text=Drain … >> nth=0")
        opened.page.fill("input[type=password]", page_server.ADMIN_KEY)
        opened.page.click(".plan .strong")
        opened.wait_for("() => document.querySelector('.plan').textContent.includes('finishes what is in flight')")
        self.assertEqual(self.server.asked[-1], ("POST", "/moe/drain", {"worker": "w1"}, f"Bearer {page_server.ADMIN_KEY}"))
        for button, path, body in [("Undrain …", "/moe/undrain", {"worker": "w1"}),
                                   ("Replicate …", "/moe/replicate", {"layer": 0, "expert": 0, "replicas": 3}),
                                   ("Rebalance …", "/moe/rebalance", {"dry_run": False, "full": False})]:
            opened.page.fill("input[type=number]", "3")
            opened.page.click(f"text={button} >> nth=0")
            opened.page.wait_for_selector(".plan .strong")
            self.assert_faultless(opened)
            opened.page.click(".plan .strong")
            opened.page.wait_for_selector(".plan .strong", state="detached")
            self.assertEqual(self.server.asked[-1][1:3], (path, body))
        kept = opened.page.evaluate("() => JSON.stringify({...localStorage, ...sessionStorage})")
        self.assertNotIn("sesame", opened.page.url + kept)

    def test_without_an_admin_key_changes_are_off_with_the_reason(self):
        self.picture.state["admin"] = {"is_enabled": False, "reason": "no --admin-key-file"}
        opened = self.open("#tab=placement")
        self.assertIn("Changes are off: no --admin-key-file.", opened.text(".whatif"))
        for button in ("Drain …", "Undrain …", "Replicate …"):
            self.assertTrue(opened.page.get_by_role("button", name=button, exact=True).is_disabled())
        self.assertTrue(opened.page.get_by_role("button", name="Rebalance …").is_enabled())
        self.assert_faultless(opened)

    def test_a_chat_with_a_picture_shows_what_its_patches_chose(self):
        opened = self.open("#tab=chat&pin=2:0")
        opened.page.click("text=Draw …")
        opened.page.click(".drawing [data-value=circle]")
        opened.page.click("[aria-label=green]")
        opened.page.click(".drawing canvas", position={"x": 80, "y": 90})
        opened.page.focus(".drawing canvas")
        opened.page.keyboard.press("ArrowRight")
        opened.page.keyboard.press(" ")
        opened.page.click("text=Use this picture")
        opened.page.wait_for_selector(".preview:not([hidden])")
        opened.page.fill("textarea", "What do you see?")
        opened.page.keyboard.press("Enter")
        opened.page.wait_for_selector(".patches")
        _, _, body, _ = self.server.asked[-1]
        self.assertEqual({key: body[key] for key in ("model", "stream", "stream_options", "return_routed_experts", "conclave")},
                         {"model": "demo", "stream": True, "stream_options": {"include_usage": True},
                          "return_routed_experts": True, "conclave": {"return_gate_probabilities": True}})
        part, question = body["messages"][0]["content"]
        self.assertTrue(part["image_url"]["url"].startswith("data:image/png;base64,"))
        self.assertEqual(question["text"], "What do you see?")
        self.assertEqual(opened.texts(".turn-text"), ["What do you see?", "I see an orange star at the top left."])
        self.assertIn("41 prompt rows (36 image, 0 cached) · 8 tokens · queue 100 µs · image 3.20 ms · prefill 12.5 ms "
                      "· first token after 16.0 ms "
                      "· decode 40.3 ms · 174 tokens /s · here after", opened.text(".turn >> nth=1"))
        self.assertIn("First choices in L2", opened.text(".patch-legend"))
        self.assertIn("expert 0: 9 rows", opened.text(".patch-legend"))
        box = opened.page.locator(".patches canvas").bounding_box()
        opened.page.mouse.move(box["x"] + box["width"] * 2.5 / 6, box["y"] + box["height"] * 1.5 / 6)
        # Patch 8 of layer index 1: expert (8 + 1) mod 4.
        self.assertEqual(opened.text(".patches .readout"),
                         "Patch row 1, column 2: expert 1 70.0 %, expert 0 10.0 %, expert 2 10.0 %, expert 3 10.0 %")
        opened.page.mouse.move(0, 0)
        opened.page.focus(".patches canvas")
        opened.page.keyboard.press("ArrowDown")
        self.assertRegex(opened.text(".patches .readout"), "^Patch row 1, column 0: expert 3 70.0 %")
        self.assert_faultless(opened)
        opened.page.fill("textarea", "And now?")
        opened.page.click(".chat-form > .controls .strong")
        opened.wait_for("() => document.querySelectorAll('.turn').length === 4")
        opened.wait_for("() => !document.querySelector('.chat-form .strong').disabled")
        messages = self.server.asked[-1][2]["messages"]
        self.assertEqual([message["role"] for message in messages], ["user", "assistant", "user"])
        opened.page.click("text=New conversation")
        self.assertEqual(opened.page.locator(".turn").count(), 0)

    def test_pictures_come_by_paste_and_drop_too(self):
        opened = self.open("#tab=load")
        self.drop(opened, "x.png", "not a picture", "image/png")
        opened.wait_for("() => document.querySelector('.chat .warn').textContent.includes('cannot decode')")
        opened.page.evaluate("""async () => {
          const canvas = new OffscreenCanvas(8, 8);
          canvas.getContext('2d').fillRect(0, 0, 8, 8);
          const transfer = new DataTransfer();
          transfer.items.add(new File([await canvas.convertToBlob()], 'y.png', {type: 'image/png'}));
          document.querySelector('textarea').dispatchEvent(new ClipboardEvent('paste',
                                                                              {clipboardData: transfer, bubbles: true}));
        }""")
        opened.page.wait_for_selector(".preview:not([hidden])")
        opened.page.click("text=Remove picture")
        opened.page.wait_for_selector(".preview", state="hidden")
        self.assert_faultless(opened)

    # Using it

    def test_keys_walk_pin_and_switch(self):
        opened = self.open()
        opened.page.focus(".heat canvas")
        for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
            opened.page.keyboard.press(key)
        found = loads(self.picture.rows, self.units(1))
        self.assertEqual(opened.text(".heat .readout"), f"L2 expert 2: {4 * found[2] / sum(found):.2f} × fair share, "
                         f"{100 * found[2] / sum(found):.1f} % of {sum(found):,} rows, {found[2]:,}")
        opened.page.keyboard.press("Enter")
        opened.frame()
        self.assertIn("pin=2%3A2", opened.page.url)
        self.assertEqual(opened.text(".panel-pinned h2"), "Pinned: L2 expert 2")
        for key, expected in (("Escape", "#"), ("i", "modality=image"), ("t", "modality=text"), ("a", "#"),
                              ("c", "compare=on"), ("2", "tab=placement"), ("5", "tab=chat"), ("1", "compare=on")):
            opened.page.keyboard.press(key)
            self.assertIn(expected, opened.page.url)
        opened.page.keyboard.press("?")
        self.assertTrue(opened.page.locator("dialog").is_visible())
        opened.page.keyboard.press("Escape")
        opened.page.focus("#tab-load")
        opened.page.keyboard.press("ArrowRight")
        self.assertEqual(opened.page.evaluate("() => document.activeElement.id"), "tab-placement")
        theme = opened.page.evaluate("() => document.documentElement.dataset.theme")
        opened.page.keyboard.press("d")
        self.assertNotEqual(opened.page.evaluate("() => document.documentElement.dataset.theme"), theme)
        self.assert_faultless(opened)

    def test_a_link_shows_the_same_view(self):
        opened = self.open("#tab=load&modality=image&phase=prefill&compare=on&pin=0:3&tables=workers")
        self.assertEqual(opened.text(".panel-pinned h2"), "Pinned: L0 expert 3")
        self.assertTrue(opened.page.locator(".panel-workers table").is_visible())
        pressed = opened.page.eval_on_selector_all(".panel-heat [aria-pressed=true][data-value]",
                                                   "(all) => all.map((one) => one.dataset.value)")
        self.assertEqual(pressed, ["image", "prefill", "start", "on"])
        self.assertEqual(opened.page.locator(".heat-compare canvas:visible").count(), 3)
        garbage = self.open("#tab=x&pin=a:b&modality=%3Cb%3E&at=-1&epoch=1e9&tables=,,%22")
        self.assertTrue(garbage.page.locator("#view-load").is_visible())
        self.assert_faultless(garbage)

    def test_every_control_of_every_tab_in_both_themes_and_widths(self):
        for theme in ("light", "dark"):
            for width in (1280, 380):
                with self.subTest(theme=theme, width=width):
                    self.walk(theme, width)

    def walk(self, theme: str, width: int):
        opened = self.open(theme=theme, width=width)
        is_whole = self.picture.state["workers"][1]["state"] == "live"
        self.tick(opened, 1, (lambda picture: pictures.lose_worker(picture, 1)) if is_whole else None)
        for tab in ("load", "placement", "failover", "pathways", "chat"):
            opened.tab(tab)
            self.assert_faultless(opened)
            kinds = ("button", "select", "input[type=range]")
            controls = opened.page.locator(", ".join(f"#view-{tab} {kind}:visible" for kind in kinds))
            for index in range(controls.count()):
                control = controls.nth(index)
                if index >= controls.count() or not control.is_visible() or not control.is_enabled():
                    continue
                kind = control.evaluate("(node) => node.tagName")
                if kind == "SELECT":
                    control.select_option(index=0)
                elif kind == "INPUT":
                    control.press("ArrowLeft")
                elif control.inner_text() != "Picture …":  # opens a window of the browser
                    control.click()
                self.assertEqual(opened.complaints, [])
            self.tick(opened)
            self.assert_faultless(opened)
        for button in ("Keys", "theme"):
            opened.page.locator(f"#header button[aria-label*='{button}']").click()
            self.assert_faultless(opened)
            opened.page.keyboard.press("Escape")
        self.assert_faultless(opened)

    def test_an_empty_cluster_says_what_to_do(self):
        for workers, has_model, expected in ((0, False, "No member has said yet what the model is"),
                                             (3, True, "No traffic yet")):
            self.server.__exit__()
            self.picture = pictures.Picture(workers=workers, has_model=has_model, traffic=False)
            self.server = page_server.PageServer(self.picture)
            opened = self.open()
            self.assertIn(expected, " ".join(opened.texts(".panel-heat .empty:visible")))
            for tab in ("placement", "failover", "pathways", "chat"):
                opened.tab(tab)
                self.assert_faultless(opened)
        opened.tab("load")
        self.tick(opened, 1, lambda picture: picture.rows.__setitem__(slice(0, 8), [5] * 8))
        self.assertEqual(opened.texts(".panel-heat .empty:visible"), [])

    # What it is made of

    def test_cells_and_experts_can_be_read_on_their_colours(self):
        for theme in ("light", "dark"):
            opened = self.open(theme=theme)
            colours = opened.page.evaluate("""async () => {
              const module = await import('./app/colour.js');
              const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
              const channels = (colour) => {
                pen.fillStyle = colour;
                pen.fillRect(0, 0, 1, 1);
                return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
              };
              const cells = Array.from({length: 81}, (_, i) => module.diverging(i / 40 - 1));
              const experts = Array.from({length: 72}, (_, i) => module.expertColour(0, i, 72));
              return [[module.ink(), cells], [module.PATCH_INK, experts]].map(([ink, backs]) => [channels(ink),
                                                                                                 backs.map(channels)]);
            }""")
            worst = min(browser.contrast(ink, back) for ink, backs in colours for back in backs)
            self.assertGreaterEqual(worst, 7, theme)

    def test_it_is_small_and_asks_nobody_else(self):
        files = [path for path in page_server.PAGE.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(f"the page is {size} bytes in {len(files)} files")
        self.assertLessEqual(size, SIZE_MAX)
        for path in files:
            text = path.read_text(encoding="utf-8")
            with self.subTest(path=path.name):
                self.assertEqual(re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function",
                                            text), [])
                foreign = [url for url in re.findall(r"https?://[^\s\"']+", text) if url != "http://www.w3.org/2000/svg"]
                self.assertEqual(foreign, [])
                if path.suffix == ".html":
                    self.assertEqual(re.findall(r"(?:src|href)=\"/|\sstyle=|\son\w+=|<script>", text), [])

    def test_it_works_behind_a_path(self):
        with page_server.PageServer(self.picture, prefix="/some/where") as server, self.browser.open(server.url) as opened:
            server.tick()
            opened.wait_for("() => window.costs.apply.length >= 2")
            opened.tab("chat")
            opened.wait_for("() => document.querySelector('.chat select').value === 'demo'")
            self.assert_faultless(opened)

    def test_a_tick_of_a_large_model_is_cheap(self):
        self.server.__exit__()
        self.picture = pictures.Picture(layers=tuple((layer, 256) for layer in range(61)), workers=32, traffic=False, top_k=8)
        draw = self.picture.random
        self.picture.rows = [draw.randrange(1000) for _ in self.picture.rows]
        self.server = page_server.PageServer(self.picture)
        opened = self.open()

        def serve(picture):
            for unit in range(picture.units):  # every expert gets text rows of decode, as first and as second choice
                picture.rows[unit * 8 + 2] += draw.randrange(1, 20)
                picture.rows[unit * 8 + 6] += draw.randrange(1, 20)
                picture.weights[unit * 2] += 0.5
                picture.probabilities[unit] += 0.25

        for _ in range(10):
            self.tick(opened, 1, serve)
        costs = opened.page.evaluate("() => window.costs")
        ticks = sorted(apply + render for apply, render in zip(costs["apply"][-9:], costs["render"][-9:]))
        print(f"61 x 256, every expert changed: script per tick {ticks[0]:.1f} ms at best, {ticks[4]:.1f} ms in the median")
        # The goal is 4 ms on an idle machine; tests run beside others.
        self.assertLess(ticks[0], 40)
        self.assert_faultless(opened)


if __name__ == "__main__":
    browser.require_chromium()
    unittest.main()
