"""Goal: `conclave top` shows what a server tells it, on a terminal and without one, and gives the terminal back.

Method: a server in this process that plays a snapshot and deltas as docs/live.md has them; the interactive view runs on a
pseudo terminal, whose settings are compared before and after every way to end it.
"""

import fcntl
import http.server
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
import unittest

import conclave_process as conclave

SNAPSHOT = {
    "schema": 1, "seq": 1, "time": 1764526391.0, "role": "router", "version": "0.1.0",
    "model": {"name": "demo", "layers": [{"layer": 0, "experts": 4}, {"layer": 2, "experts": 4}]},
    "cluster": {"epoch": 12884901900, "term": 3, "state": "serving", "blocked": "", "experts_served": 8, "experts_total": 8,
                "replicas_wanted": 2, "replicas_lowest": 2, "imbalance_planned": 1.0, "imbalance_seen": 1.25, "plan": 0},
    "workers": [{"id": 0, "name": "w0", "state": "live", "experts": 8, "memory": 1 << 30, "memory_used": 1 << 29,
                 "busy": 0.5, "queue": 3, "rows_per_second": 1234.5, "call_seconds": [10, 0]}],
    "frontends": [{"running": 1, "waiting": 0}], "rows": [0] * 64,
    "serving": {"prompt_text": 0, "prompt_image": 0, "cached": 0, "generated": 0, "ttft": [0, 0], "itl": [0, 0]},
    "bounds": {"call_seconds": [0.01], "ttft": [0.5], "itl": [0.1]},
    "events": [{"id": 1, "time": 1764526390, "kind": "joined", "name": "w0", "text": "on host a"}],
}


def delta(seq: int) -> dict:
    """Second `seq - 1`: 30 more tokens, and expert 3 of layer 0 gets all rows of images."""
    return {"seq": seq, "time": SNAPSHOT["time"] + seq - 1, "rows": [3 * 8 + 1, 100 * seq, 32, 50 * seq],
            "serving": {"generated": 30 * (seq - 1)}}


class Server:
    """`script` is called with a function that sends one event, in a thread of its own per connection."""

    def __init__(self, script, status: int = 200):
        outer = self
        self.connections = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.connections += 1
                self.send_response(status if self.path == "/moe/events" else 404)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    script(self.send, outer.connections)
                except OSError:
                    pass

            def send(self, event, data):
                text = data if isinstance(data, str) else json.dumps(data)
                self.wfile.write(f": note\nevent: {event}\nid: 1\ndata: {text}\n\n".encode())
                self.wfile.flush()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def play(send, _connection):
    send("snapshot", SNAPSHOT)
    for seq in range(2, 200):
        time.sleep(0.1)
        send("delta", delta(seq))


class Screen:
    """`conclave top` on a terminal of its own."""

    def __init__(self, url: str, size=(30, 100), env=None):
        self.master, self.slave = pty.openpty()
        self.resize(size, None)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            conclave.command("top", "--url", url), stdin=self.slave, stdout=self.slave, stderr=subprocess.PIPE,
            env=conclave.clean_environment({"TERM": "xterm-256color", "NO_COLOR": "", "COLORTERM": "", **(env or {})}),
            start_new_session=True)
        self.output = ""

    def resize(self, size, process):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))
        if process is not None:
            process.send_signal(signal.SIGWINCH)

    def wait_for(self, pattern: str, what: str = "", timeout: float = 30) -> str:
        """What was shown since the last wait, up to the pattern."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self.output, re.DOTALL)):
            left = deadline - time.monotonic()
            if left <= 0 or (self.process.poll() is not None and not select.select([self.master], [], [], 0)[0]):
                raise AssertionError(f"{what or pattern} was not shown; output ends {self.output[-2000:]!r}")
            if select.select([self.master], [], [], min(left, 0.2))[0]:
                self.output += os.read(self.master, 65536).decode()
        seen, self.output = self.output[:found.end()], self.output[found.end():]
        return seen

    def keys(self, text: str):
        os.write(self.master, text.encode())

    def end(self) -> int:
        """Exit code; drains what is written meanwhile."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 65536).decode()
        while select.select([self.master], [], [], 0.1)[0]:
            self.output += os.read(self.master, 65536).decode()
        return self.process.wait(timeout=1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        os.close(self.master)
        os.close(self.slave)


class TopTest(conclave.TestCase):
    def assert_given_back(self, screen: Screen):
        self.assertEqual(termios.tcgetattr(screen.slave), screen.before)
        self.assertTrue(screen.output.endswith("\x1b[0m\x1b[?25h\x1b[?1049l"), repr(screen.output[-200:]))

    def test_one_frame_without_a_terminal(self):
        with Server(play) as server:
            result = conclave.run("top", "--url", server.url)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertNotIn("\x1b", result.stdout)
            for part in ("conclave top  router demo  epoch 3.12  serving", "experts 8/8 served", "generated 30\n",
                         "w0     live       #####.....  50%     3   1.2k", "0      0.00 0.00 0.00 4.00\n",
                         "joined          w0  on host a\n"):
                self.assertIn(part, result.stdout)
            self.assertEqual(conclave.run("top", "--url", server.url, "--once").stdout, result.stdout)
            picture = conclave.run("top", "--url", server.url, "--json")
            self.assertEqual((picture.returncode, json.loads(picture.stdout)), (0, SNAPSHOT))

    def test_keys_choose_what_is_shown(self):
        with Server(play) as server, Screen(server.url) as screen:
            first = screen.wait_for(r"all tokens, prefill and decode.*q quit")
            self.assertTrue(first.startswith("\x1b[?1049h\x1b[?25l"), repr(first[:100]))
            screen.wait_for(r"\x1b\[38;5;15;48;5;196m 4\.00\x1b\[0m", "a hot cell")
            for key, shown in (("i", "images, prefill and decode"), ("p", "images, prefill\x1b"), ("d", "images, decode"),
                               ("t", "text, decode"), ("b", "text, prefill and decode"), ("a", "all tokens, prefill and")):
                screen.keys(key)
                screen.wait_for(shown.replace("\x1b", "\\x1b"))
            screen.keys("?")
            screen.wait_for("a, t, i   rows of all tokens")
            screen.keys("?\x1b[B\x1b[C")
            screen.wait_for("EXPERTS")
            screen.keys("q")
            self.assertEqual(screen.end(), 0)
            self.assert_given_back(screen)

    def test_every_end_gives_the_terminal_back(self):
        with Server(play) as server:
            for what in ("\x03", "\x04", signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT, signal.SIGSEGV):
                with self.subTest(what=what), Screen(server.url) as screen:
                    screen.wait_for("EXPERTS")
                    self.assertNotEqual(termios.tcgetattr(screen.slave), screen.before)
                    if isinstance(what, str):
                        screen.keys(what)
                    else:
                        screen.process.send_signal(what)
                    code = screen.end()
                    is_crash = what in (signal.SIGABRT, signal.SIGSEGV)
                    self.assertEqual(code, -what if is_crash else 0)
                    self.assert_given_back(screen)

    def test_the_window_may_change(self):
        with Server(play) as server, Screen(server.url, size=(30, 100)) as screen:
            screen.wait_for("arrows move  \\? help")
            screen.resize((12, 40), screen.process)
            # Forty columns of the line of keys, and not one more.
            screen.wait_for(r"q quit  a/t/i all, text, images  b/p/d b\x1b")
            screen.resize((4, 30), screen.process)
            screen.wait_for("the window is too small")
            screen.keys("q")
            self.assertEqual(screen.end(), 0)
            self.assert_given_back(screen)

    def test_no_colour_where_it_is_not_wanted(self):
        with Server(play) as server:
            for env, has_colour in (({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"COLORTERM": "truecolor"}, True)):
                with self.subTest(env=env), Screen(server.url, env=env) as screen:
                    shown = screen.wait_for("EXPERTS") + screen.wait_for("4\\.00.*q quit")
                    self.assertEqual("\x1b[38;2;" in shown, has_colour)
                    self.assertEqual(bool(re.search(r"\x1b\[[0-9;]*m", shown)), has_colour)
                    screen.keys("q")
                    self.assertEqual(screen.end(), 0)

    def test_a_gap_and_a_lost_connection_are_mended(self):
        def script(send, connection):
            send("snapshot", {**SNAPSHOT, "version": str(connection)})
            if connection == 1:
                send("delta", delta(9))  # after a gap
                for _ in range(100):
                    time.sleep(0.1)
                    send("delta", delta(10))
            elif connection == 2:
                send("delta", delta(2))
                time.sleep(0.3)  # then the connection ends
            else:
                play(lambda event, data: None if event == "snapshot" else send(event, data), connection)

        with Server(script) as server, Screen(server.url) as screen:
            screen.wait_for("the server ended the stream - trying again")
            screen.wait_for("q quit", "the keys are back")
            self.assertEqual(server.connections, 3)
            screen.keys("q")
            self.assertEqual(screen.end(), 0)

    def test_bad_servers_are_one_error(self):
        def refused(code, reason, *args):
            result = conclave.run("top", *args)
            self.assertEqual((result.returncode, result.stdout), (code, ""), result.stderr)
            self.assertRegex(result.stderr, rf"^error: {reason}: [^\n]+\n$")

        refused(5, "connect", "--url", "http://127.0.0.1:1")
        refused(5, "connect", "--router", "127.0.0.1:1")
        refused(2, "usage", "--url", "ftp://x")
        refused(2, "usage", "--url", "http://127.0.0.1:1", "--router", "127.0.0.1:1")
        with Server(lambda send, _: send("snapshot", "{}"), status=200) as server:
            refused(5, "live_update", "--url", server.url)
        with Server(lambda send, _: None, status=404) as server:
            refused(5, "http", "--url", server.url)
        with Server(lambda send, _: time.sleep(3)) as server:
            refused(5, "connect", "--url", server.url, "--timeout", "500ms")
        with Screen("http://127.0.0.1:1") as screen:
            self.assertEqual(screen.end(), 5)
            self.assertRegex(screen.process.stderr.read().decode(), "^error: connect: ")
            self.assertNotIn("\x1b", screen.output, "nothing was shown, nothing to give back")


if __name__ == "__main__":
    unittest.main()
