"""The rooms and their arrows, read from the table in CONTRIBUTING.md, which is the only place that lists them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent

_ROW = re.compile(r"^\| `(?P<path>(?:libs/)?(?P<room>[a-z_]+))/` \|(?P<purpose>[^|]*)\|(?P<may_include>[^|]*)\|$")


class Rooms:
    """`paths`: room -> folder. `direct`: room -> rooms that its row names, or None where the row says "everything"."""

    def __init__(self, contributing: str):
        self.paths: dict[str, str] = {}
        self.direct: dict[str, list[str] | None] = {}
        for line in contributing.splitlines():
            row = _ROW.match(line)
            if not row:
                continue
            room = row["room"]
            if room in self.paths:
                raise ValueError(f"CONTRIBUTING.md: the room {room} has two rows")
            self.paths[room] = row["path"]
            named = re.findall(r"`([a-z_]+)`", row["may_include"])
            self.direct[room] = None if row["may_include"].strip().startswith("everything") else named
        if not self.paths:
            raise ValueError("CONTRIBUTING.md: no rooms table found; expected rows such as '| `libs/base/` | … | … |'")
        for room, named in self.direct.items():
            for other in named or []:
                if other not in self.paths:
                    raise ValueError(f"CONTRIBUTING.md: the row of {room} names {other}, which has no row of its own")

    def allowed(self, room: str) -> set[str]:
        """What `room` may include: itself, what its row names, and what those may include."""
        seen: set[str] = set()
        pending = [room]
        while pending:
            current = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            named = self.direct[current]
            pending.extend(self.paths if named is None else named)
        return seen

    def cycles(self) -> list[str]:
        """Rooms from which an arrow leads back to themselves."""
        return [room for room in self.paths
                if any(room in self.allowed(other) for other in self.direct[room] or [])]


def load() -> Rooms:
    return Rooms((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
