"""A collector of spans for the end-to-end tests: takes OTLP over HTTP as JSON and holds every field against the protocol."""

import base64
import dataclasses
import http.server
import json
import re
import threading
import time

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

HEX32 = re.compile(r"[0-9a-f]{32}")
HEX16 = re.compile(r"[0-9a-f]{16}")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)")
SPAN_KEYS = {"traceId", "spanId", "parentSpanId", "traceState", "flags", "name", "kind", "startTimeUnixNano",
             "endTimeUnixNano", "attributes", "events", "links", "status"}
SPAN_KEYS_ALWAYS = {"traceId", "spanId", "flags", "name", "kind", "startTimeUnixNano", "endTimeUnixNano", "attributes"}
INTERNAL, SERVER, CLIENT = 1, 2, 3
ERROR = 2


def require(is_so: bool, what):
    if not is_so:
        raise ValueError(what)


def keys_of(message: dict, allowed: set[str], always: set[str] = frozenset()):
    require(isinstance(message, dict), f"expected an object, found {message!r}")
    require(set(message) <= allowed, f"unknown fields {set(message) - allowed}")
    require(set(message) >= always, f"missing fields {always - set(message)}")


def value_of(message: dict):
    """The value of an AnyValue of the types that conclave uses."""
    require(isinstance(message, dict) and len(message) == 1, f"expected one value, found {message!r}")
    kind, value = next(iter(message.items()))
    if kind == "boolValue":
        require(isinstance(value, bool), message)
        return value
    if kind == "intValue":
        require(isinstance(value, str) and NUMBER.fullmatch(value), f"expected 64 bits as text, found {message!r}")
        return int(value)
    if kind == "doubleValue":
        require(isinstance(value, (int, float)) and not isinstance(value, bool), message)
        return float(value)
    if kind == "stringValue":
        require(isinstance(value, str), message)
        return value
    require(kind == "arrayValue", f"unknown kind of value {kind}")
    keys_of(value, {"values"}, {"values"})
    return [value_of(one) for one in value["values"]]


def attributes_of(messages: list) -> dict:
    attributes = {}
    for message in messages:
        keys_of(message, {"key", "value"}, {"key", "value"})
        require(message["key"] and message["key"] not in attributes, f"key {message['key']!r} twice, or empty")
        attributes[message["key"]] = value_of(message["value"])
    return attributes


def time_of(text) -> int:
    require(isinstance(text, str) and NUMBER.fullmatch(text) and len(text) == 19, f"expected ns as text, found {text!r}")
    return int(text)


@dataclasses.dataclass
class Event:
    name: str
    time: int
    attributes: dict


@dataclasses.dataclass
class Span:
    trace: str
    id: str
    parent: str  # "": none
    state: str
    flags: int
    name: str
    kind: int
    start: int
    end: int
    attributes: dict
    events: list[Event]
    links: list[tuple[str, str]]
    error: str | None
    resource: dict


def span_of(message: dict, resource: dict) -> Span:
    keys_of(message, SPAN_KEYS, SPAN_KEYS_ALWAYS)
    require(HEX32.fullmatch(message["traceId"]) and HEX16.fullmatch(message["spanId"]), f"ids of {message!r}")
    parent = message.get("parentSpanId", "")
    require(parent == "" or HEX16.fullmatch(parent), f"parent {parent!r}")
    require(message["kind"] in (INTERNAL, SERVER, CLIENT) and type(message["kind"]) is int, f"kind {message['kind']!r}")
    require(type(message["flags"]) is int and message["flags"] & 1, f"flags {message['flags']!r}")
    require(isinstance(message["name"], str) and message["name"], f"name {message['name']!r}")
    start, end = time_of(message["startTimeUnixNano"]), time_of(message["endTimeUnixNano"])
    require(start <= end, f"{message['name']} ends {start - end} ns before it starts")
    events = []
    for event in message.get("events", []):
        keys_of(event, {"timeUnixNano", "name", "attributes"}, {"timeUnixNano", "name"})
        events.append(Event(event["name"], time_of(event["timeUnixNano"]), attributes_of(event["attributes"])))
        require(start <= events[-1].time <= end, f"event {event['name']} outside of {message['name']}")
    links = []
    for link in message.get("links", []):
        keys_of(link, {"traceId", "spanId"}, {"traceId", "spanId"})
        require(HEX32.fullmatch(link["traceId"]) and HEX16.fullmatch(link["spanId"]), f"link {link!r}")
        links.append((link["traceId"], link["spanId"]))
    error = None
    if "status" in message:
        keys_of(message["status"], {"code", "message"}, {"code"})
        require(message["status"]["code"] in (0, 1, 2), f"status {message['status']!r}")
        error = message["status"].get("message", "") if message["status"]["code"] == ERROR else None
    return Span(message["traceId"], message["spanId"], parent, message.get("traceState", ""), message["flags"],
                message["name"], message["kind"], start, end, attributes_of(message["attributes"]), events, links, error,
                resource)


def read_request(body: bytes) -> list[Span]:
    """The spans of one POST; ValueError says what is wrong with it."""
    request = json.loads(body)
    keys_of(request, {"resourceSpans"}, {"resourceSpans"})
    spans = []
    for resource_spans in request["resourceSpans"]:
        keys_of(resource_spans, {"resource", "scopeSpans"}, {"resource", "scopeSpans"})
        keys_of(resource_spans["resource"], {"attributes"}, {"attributes"})
        resource = attributes_of(resource_spans["resource"]["attributes"])
        for scope_spans in resource_spans["scopeSpans"]:
            keys_of(scope_spans, {"scope", "spans"}, {"scope", "spans"})
            keys_of(scope_spans["scope"], {"name", "version"}, {"name"})
            spans.extend(span_of(span, resource) for span in scope_spans["spans"])
    # The real messages know no other fields. OTLP writes ids in hexadecimal where protobuf expects base64.
    ids = re.compile(rb'"((?:trace|span|parentSpan)Id)":"([0-9a-f]*)"')
    as_base64 = ids.sub(lambda m: b'"%s":"%s"' % (m[1], base64.b64encode(bytes.fromhex(m[2].decode()))), body)
    parsed = json_format.Parse(as_base64, trace_service_pb2.ExportTraceServiceRequest())
    found = sum(len(scope.spans) for resource in parsed.resource_spans for scope in resource.scope_spans)
    require(found == len(spans), f"expected {len(spans)} spans, found {found}")
    return spans


class Collector:
    """Use as a context manager. `url` is for --otlp-endpoint; `problems` are requests that were none.

    `answers` are statuses with Retry-After (or None), given to the next requests in turn; then 200.
    """

    def __init__(self):
        self.problems: list[str] = []
        self.answers: list[tuple[int, int | None]] = []
        self.times: list[float] = []  # of requests
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, retry_after = collector.take(self.path, self.headers, body)
                try:
                    self.answer(status, retry_after)
                except ConnectionError:
                    pass  # a process that was killed meanwhile

            def answer(self, status: int, retry_after: int | None):
                answer = b"{}"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                if retry_after is not None:
                    self.send_header("Retry-After", str(retry_after))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, path: str, headers, body: bytes) -> tuple[int, int | None]:
        with self._lock:
            self.times.append(time.monotonic())
            if self.answers:
                return self.answers.pop(0)
            try:
                require(path == "/v1/traces", f"path {path}")
                require(headers["Content-Type"] == "application/json", f"content type {headers['Content-Type']}")
                self._spans.extend(read_request(body))
            except (ValueError, json_format.ParseError) as problem:
                self.problems.append(str(problem))
                return 400, None
            return 200, None

    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)
