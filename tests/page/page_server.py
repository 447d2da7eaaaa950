"""The page with a made-up cluster behind it: the paths and headers of the real server (docs/live.md), on a free port.

For looking at the page while working on it: `python tests/page/page_server.py [--large]`.
"""

import http.server
import json
import pathlib
import queue
import sys
import threading
import time
import urllib.parse

import picture as pictures

PAGE = pathlib.Path(__file__).resolve().parent.parent.parent / "page"
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".svg": "image/svg+xml"}
ADMIN_KEY = "open sesame"


class PageServer:
    """Use as a context manager. `tick()` moves the picture on and tells every viewer."""

    def __init__(self, picture: pictures.Picture, prefix: str = ""):
        self.picture = picture
        self.prefix = prefix
        self.lock = threading.Lock()
        self.viewers: list[queue.Queue] = []
        self.connections = 0  # event streams since the start
        self.asked: list[tuple[str, str, dict | None, str | None]] = []  # method, path, body, Authorization
        self.is_refusing = False  # answers event streams with 503
        server = self

        class Handler(_Handler):
            page = server

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}{prefix}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.drop_viewers()
        self.http.shutdown()
        self.http.server_close()

    def tick(self, rows: int = 12, change=None) -> dict:
        with self.lock:
            delta = self.picture.tick(rows, change)
            self.tell(delta)
            return delta

    def tell(self, delta: dict):
        for viewer in self.viewers:
            viewer.put(pictures.sse("delta", delta, delta["seq"]))

    def drop_viewers(self):
        with self.lock:
            for viewer in self.viewers:
                viewer.put(None)

    def join_viewer(self) -> tuple[queue.Queue, bytes]:
        with self.lock:
            viewer: queue.Queue = queue.Queue()
            self.viewers.append(viewer)
            self.connections += 1
            snapshot = self.picture.snapshot()
            return viewer, pictures.sse("snapshot", snapshot, snapshot["seq"])


class _Handler(http.server.BaseHTTPRequestHandler):
    page: PageServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _headers(self, status: int, kind: str, length: int | None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", "default-src 'self'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        if length is None:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, status: int, body: bytes, kind: str = "application/json"):
        self._headers(status, kind, len(body))
        self.wfile.write(body)

    def _json(self, value, status: int = 200):
        self._send(status, json.dumps(value).encode())

    def _fail(self, status: int, code: str, message: str):
        self._json({"error": {"code": code, "message": message}}, status)

    def _path(self) -> str | None:
        path = urllib.parse.urlsplit(self.path).path
        return path[len(self.page.prefix):] if path.startswith(self.page.prefix + "/") else None

    def do_GET(self):
        path = self._path()
        page = self.page
        if path == "/" or (path or "").startswith("/app/"):
            self._file("index.html" if path == "/" else "app/" + path.rsplit("/", 1)[-1])
        elif path == "/moe/events":
            self._events()
        elif path == "/moe/stats":
            with page.lock:
                self._json(page.picture.snapshot())
        elif path == "/moe/history":
            with page.lock:
                self._json(page.picture.history)
        elif path == "/moe/kill-safe":
            page.asked.append(("GET", self.path, None, self.headers.get("Authorization")))
            name = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["worker"][0]
            self._json({"is_safe": name != "w1", "at_risk": [[0, 1], [2, 3]] if name == "w1" else []})
        elif path == "/v1/models":
            self._json({"object": "list", "data": [{"id": "demo", "object": "model"}]})
        else:
            self._fail(404, "not_found", f"{path}: there is no such path")

    def do_POST(self):
        path = self._path()
        page = self.page
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        page.asked.append(("POST", path, body, self.headers.get("Authorization")))
        if path == "/v1/chat/completions":
            self._chat(body)
            return
        is_dry = path == "/moe/rebalance" and body.get("dry_run")
        if not is_dry and not page.picture.state["admin"]["is_enabled"]:
            self._fail(403, "admin_disabled", "no --admin-key-file")
        elif not is_dry and self.headers.get("Authorization") != f"Bearer {ADMIN_KEY}":
            self._fail(401, "admin_key", "Authorization: wrong admin key; expected the key of --admin-key-file")
        elif path == "/moe/rebalance":
            self._json({"moves": [{"layer": 0, "expert": 1, "to": 2, "from": 0}], "bytes": 25165824, "imbalance_before": 1.31,
                        "imbalance_after": 1.04, "plan": 7})
        elif path in ("/moe/drain", "/moe/undrain"):
            self._json({"is_drained": False})
        elif path in ("/moe/pin", "/moe/replicate"):
            self._json({"epoch": page.picture.state["cluster"]["epoch"] + 1})
        else:
            self._fail(404, "not_found", f"{path}: there is no such path")

    def _file(self, name: str):
        path = PAGE / name
        if not path.is_file():
            self._fail(404, "not_found", f"{name}: there is no such file")
            return
        self._send(200, path.read_bytes(), KINDS[path.suffix])

    def _events(self):
        if self.page.is_refusing:
            self._fail(503, "unavailable", "not now")
            return
        viewer, first = self.page.join_viewer()
        self._headers(200, "text/event-stream", None)
        self.close_connection = True
        try:
            self.wfile.write(first)
            while (event := viewer.get()) is not None:
                self.wfile.write(event)
        except OSError:
            pass  # the viewer went
        finally:
            with self.page.lock:
                self.page.viewers.remove(viewer)

    def _chat(self, body: dict):
        has_image = "image_url" in json.dumps(body["messages"])
        self._headers(200, "text/event-stream", None)
        self.close_connection = True
        for chunk in pictures.chat_events(self.page.picture, has_image):
            self.wfile.write(pictures.sse(None, chunk))
            self.wfile.flush()
        self.wfile.write(pictures.sse(None, "[DONE]"))


def main():
    is_large = "--large" in sys.argv
    layers = tuple((layer, 256) for layer in range(61)) if is_large else ((0, 4), (2, 4))
    with PageServer(pictures.Picture(layers=layers, workers=32 if is_large else 3, traffic=not is_large)) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(1)
            server.tick()


if __name__ == "__main__":
    main()
