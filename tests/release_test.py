"""Goal: a release binary has nothing of the failpoints and planted bugs. Method: no name of a point, and no word of their settings, is among
the printable strings of the release binary; all of them are among those of the test build's, so that the check can fail.

    release_test.py TEST_BINARY RELEASE_BINARY
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ["libs", "frontend", "expert_worker", "router_service", "cli"]
# The last one: the type of a link with chaos, whose name its RTTI has.
WORDS = ["CONCLAVE_FAILPOINTS", "failpoint_syntax", "/debug/failpoints", "ChaosChannel"]


def points() -> set[str]:
    """Names of all failpoints and planted bugs in the sources of the program."""
    found = set()
    for room in ROOMS:
        for source in (ROOT / room).rglob("*.cc"):
            found |= set(re.findall(r'CONCLAVE_(?:FAILPOINT|PLANTED_BUG)\(\s*"([^"]+)"',
                                    source.read_text(encoding="utf-8")))
    return found


def strings(binary: pathlib.Path) -> bytes:
    """Runs of at least four printable characters, as `strings -a` prints them."""
    return b"\n".join(re.findall(rb"[\x20-\x7e]{4,}", binary.read_bytes()))


def main() -> int:
    test_binary, release_binary = map(pathlib.Path, sys.argv[1:])
    if not release_binary.exists():
        print(f"skipped: {release_binary} is not built; tools/test.sh builds it")
        return 77
    names = points()
    if len(names) < 20:
        print(f"error: expected at least 20 failpoints in the sources, found {len(names)}")
        return 1
    in_test, in_release = strings(test_binary), strings(release_binary)
    lost = [word for word in sorted(names) + WORDS if word.encode() not in in_test]
    left = [word for word in sorted(names) + WORDS if word.encode() in in_release]
    for word in lost:
        print(f"error: expected {word!r} in {test_binary}, so that its absence elsewhere says something; found nothing")
    for word in left:
        print(f"error: expected nothing of the failpoints in {release_binary}, found {word!r}")
    print(f"{len(names)} failpoints and planted bugs: {len(left)} words of them in the release binary")
    return 1 if lost or left else 0


if __name__ == "__main__":
    sys.exit(main())
