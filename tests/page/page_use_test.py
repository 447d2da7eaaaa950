"""Goal: whoever uses the page finds every control working, by mouse and keyboard, in both themes and widths, and it never does
what its policy forbids.

Method: a made-up cluster behind the real files and headers; every complaint of the browser is a failure, and so is a text that
cannot be read or a control without a name.
"""

import re
import unittest

import browser
import page_server
import picture as pictures
from page_case import PageCase, loads

SIZE_MAX = 150 * 1024


class PageUseTest(PageCase):
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
            worst = min(contrast(ink, back) for ink, backs in colours for back in backs)
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


def contrast(a: list[int], b: list[int]) -> float:
    def luminance(channels):
        linear = [value / 255 / 12.92 if value / 255 <= 0.04045 else ((value / 255 + 0.055) / 1.055) ** 2.4
                  for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


if __name__ == "__main__":
    browser.require_chromium()
    unittest.main()
