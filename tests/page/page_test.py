"""Goal: the page shows what the counters say, in every view, and says so when it does not know.

Method: a made-up cluster behind the real files and headers; figures are computed here from the same rows and compared with the
text on the page. What needs a real cluster is in cluster_page_test.py, how the page is used in page_use_test.py.
"""

import json
import math
import unittest

import browser
import picture as pictures
from page_case import MODALITIES, PHASES, PageCase, duration, loads, quantile


class PageTest(PageCase):
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


if __name__ == "__main__":
    browser.require_chromium()
    unittest.main()
