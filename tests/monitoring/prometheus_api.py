"""Asks a running Prometheus."""

import http.client
import json
import math
import urllib.parse


class Api:
    """Of the server on that port of the loopback."""

    def __init__(self, port: int = 0):
        self.port = port

    def status_of(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str, **query: str):
        status, body = self.status_of(f"{path}?{urllib.parse.urlencode(query)}")
        answer = json.loads(body)
        if status != 200 or answer["status"] != "success":
            raise AssertionError(f"{path} {query}: {status} {answer}")
        return answer["data"]

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Series that have a value now, with it."""
        found = self.get("/api/v1/query", query=expression)
        return [(series["metric"], float(series["value"][1])) for series in found["result"]]

    def has_data(self, expression: str) -> bool:
        """One value at least is a number: a quotient without calls is none."""
        return any(math.isfinite(value) for _, value in self.ask(expression))
