"""The page in Debian's Chromium: opening it, what it complains about, and checks that hold for every view."""

import decimal
import os
import pathlib
import sys

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")

# Before any script of the page: what it costs, and what its policy refused.
_WATCH = """
window.costs = {apply: [], render: []};
window.refused = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.costs[entry.name.split('.')[1]]?.push(entry.duration);
}).observe({entryTypes: ['measure']});
addEventListener('securitypolicyviolation', (event) => window.refused.push(`${event.violatedDirective}: ${event.blockedURI}`));
"""

# Contrast of every visible text with what is behind it, as WCAG 2 defines it. A text of an SVG stands on the shape before it in
# its group, if there is one. Disabled controls are exempt.
_CONTRAST = """
() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const luminance = (colour) => {
    const [r, g, b] = colour.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(luminance(a), luminance(b)) + 0.05) / (Math.min(luminance(a), luminance(b)) + 0.05);
  const behind = (node) => {
    if (!node) return [1, 1, 1, 1];
    const colour = channels(getComputedStyle(node).backgroundColor);
    return colour[3] === 1 ? colour : over(colour, behind(node.parentElement));
  };
  const faults = [];
  const check = (name, front, back, least) => {
    const found = ratio(over(front, back), back);
    if (found < least) faults.push(`${name}: contrast ${found.toFixed(2)}, expected at least ${least}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility({visibilityProperty: true})) continue;
    if (parent.closest('[disabled], option, title, script, noscript, .hidden')) continue;
    const style = getComputedStyle(parent);
    const least = parent.matches('.mark, .event-mark') ? 4.5 : 7;
    const name = `${parent.tagName.toLowerCase()}.${parent.getAttribute('class') ?? ''} "${node.data.trim().slice(0, 40)}"`;
    const drawing = parent.closest('svg');
    if (drawing) {
      const shape = parent.previousElementSibling;
      const ground = behind(drawing.parentElement);
      const isOn = shape?.tagName === 'rect' && (parent.parentElement.matches('.chip, .piece'));
      let back = ground;
      if (isOn) {
        const paint = channels(getComputedStyle(shape).fill);
        paint[3] *= Number(getComputedStyle(shape).fillOpacity);
        back = over(paint, ground);
      }
      check(name, channels(style.fill), back, least);
    } else {
      check(name, channels(style.color), behind(parent), least);
    }
  }
  for (const fill of document.querySelectorAll('.bar-fill')) {
    if (fill.checkVisibility() && !fill.closest('[data-dim=true]')) {
      check('bar', channels(getComputedStyle(fill).backgroundColor), behind(fill.parentElement), 4.5);
    }
  }
  for (const line of document.querySelectorAll('.spark, .traces line, .epoch')) {
    if (line.checkVisibility()) check('line', channels(getComputedStyle(line).stroke),
                                      behind(line.closest('svg').parentElement), 4.5);
  }
  return [...new Set(faults)];
}
"""

# Names, roles, ids, headings and landmarks.
_NAMES = """
() => {
  const faults = [];
  const shown = (selector) => [...document.querySelectorAll(selector)].filter((node) => node.checkVisibility());
  const nameOf = (node) => {
    const byId = document.getElementById(node.getAttribute('aria-labelledby') ?? '')?.textContent ?? '';
    const label = node.id && document.querySelector(`label[for="${node.id}"]`)?.textContent;
    const isTextName = node.matches('button, a, [role=tab], summary');
    return [node.getAttribute('aria-label'), byId.trim(), label, isTextName && node.textContent.trim(),
            node.querySelector(':scope > caption')?.textContent,
      node.getAttribute('title')].find(Boolean);
  };
  const named = 'button, a, input, select, textarea, canvas, table, section, nav, dialog, [role=img], [role=application], ' +
    '[role=tab], [role=tabpanel], [role=group], [role=region], [role=log], [role=tablist]';
  for (const node of shown(named)) if (!nameOf(node)) faults.push(`no name: ${node.outerHTML.slice(0, 90)}`);
  const ids = [...document.querySelectorAll('[id]')].map((node) => node.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push(`the id ${id} is there twice`);
  for (const attribute of ['aria-labelledby', 'aria-describedby', 'aria-controls', 'for']) {
    for (const node of document.querySelectorAll(`[${attribute}]`)) {
      const target = document.getElementById(node.getAttribute(attribute));
      if (!target) faults.push(`${attribute} names nothing: ${node.outerHTML.slice(0, 90)}`);
    }
  }
  let level = 0;
  for (const heading of shown('h1, h2, h3')) {
    const now = Number(heading.tagName[1]);
    if (now > level + 1) faults.push(`a heading of level ${now} after ${level}: ${heading.textContent}`);
    level = now;
  }
  for (const landmark of ['header', 'nav', 'main', 'footer', 'h1', '[aria-live=polite]', '[role=tab][aria-selected=true]']) {
    if (shown(landmark).length === 0) faults.push(`there is no ${landmark}`);
  }
  if (!document.documentElement.lang) faults.push('no language');
  for (const canvas of shown('canvas[role=application]')) {
    if (canvas.tabIndex !== 0) faults.push('a canvas cannot be reached by keyboard');
  }
  return faults;
}
"""

_CELLS = "(table) => [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent))"

# Wider than the window, but what may scroll by itself.
_WIDTH = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"


def fixed(value: float, digits: int = 2) -> str:
    """As JavaScript's toFixed, which rounds halves up where Python rounds them to even."""
    return str(decimal.Decimal(value).quantize(decimal.Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP))


def require_chromium():
    """Ends the script as skipped where there is no browser."""
    if not pathlib.Path(CHROMIUM).exists():
        print(f"skipped: no Chromium at {CHROMIUM}; tools/setup.sh test installs Debian's package chromium")
        sys.exit(77)


class Browser:
    """One Chromium for a whole script. Use as a context manager."""

    def __enter__(self):
        from playwright.sync_api import sync_playwright
        self._playwright = sync_playwright().start()
        self._chromium = self._playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        return self

    def __exit__(self, *_):
        self._chromium.close()
        self._playwright.stop()

    def open(self, url: str, theme: str = "light", width: int = 1280, height: int = 900, **options) -> "OpenPage":
        return OpenPage(self._chromium.new_context(viewport={"width": width, "height": height}, color_scheme=theme, **options),
                        url)


class OpenPage:
    """A page in a context of its own. `complaints` are console errors and warnings, exceptions, and failed requests."""

    def __init__(self, context, url: str):
        self.context = context
        self.complaints: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)  # others may use the machine
        self.page.add_init_script(_WATCH)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.goto(url)
        self.page.wait_for_selector("[role=tabpanel]:not([hidden])")

    def _on_console(self, message):
        if message.type in ("error", "warning", "assert"):
            self.complaints.append(f"{message.type}: {message.text}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def tab(self, name: str):
        self.page.click(f"#tab-{name}")
        self.page.wait_for_selector(f"#view-{name}:not([hidden])")

    def frame(self):
        """Until what was asked for has been drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def texts(self, selector: str) -> list[str]:
        return [" ".join(text.split()) for text in self.page.locator(selector).all_inner_texts()]

    def text(self, selector: str) -> str:
        return " ".join(self.page.locator(selector).first.inner_text().split())

    def cells(self, selector: str) -> list[list[str]]:
        """A table's body, row by row."""
        return self.page.eval_on_selector(selector, _CELLS)

    def wait_for(self, expression: str, argument=None):
        self.page.wait_for_function(expression, arg=argument)

    def faults(self) -> list[str]:
        """Everything wrong with what shows now, as sentences."""
        self.frame()
        wide, width = self.page.evaluate(_WIDTH)
        found = [*(fault for check in (_CONTRAST, _NAMES, "() => window.refused") for fault in self.page.evaluate(check)),
                 *self.complaints]
        if wide > width:
            found.append(f"it scrolls sideways: {wide} wide in {width}")
        return found
