"""A page with a made-up cluster behind it, for the tests beside this file, and what its figures should be."""

import unittest

import browser
import page_server
import picture as pictures

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


class PageCase(unittest.TestCase):
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

    def drop(self, opened: browser.OpenPage, name: str, text: str, kind: str = "application/json"):
        opened.page.evaluate("""([name, text, type]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([text], name, {type}));
          document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""", [name, text, kind])
