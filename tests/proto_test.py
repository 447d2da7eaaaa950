"""Goal: the wire contract keeps its style, and a process of this build can talk to one of the last release.

Method: `buf lint`, and `buf breaking` against proto/released.binpb, the descriptors of the last release (written by
tests/proto_test.py --release). A field may be added; none may change its number, type or name.
"""

import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
RELEASED = PROTO / "released.binpb"


def buf(*args: str) -> subprocess.CompletedProcess:
    program = pathlib.Path(sys.executable).with_name("buf")
    return subprocess.run([program, *map(str, args)], capture_output=True, text=True, cwd=PROTO, timeout=120)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--release", action="store_true", help="make the contract of now the one to compare with")
    if parser.parse_args().release:
        result = buf("build", ".", "--as-file-descriptor-set", "-o", RELEASED)
        print(result.stdout + result.stderr, end="")
        return result.returncode

    failures = 0
    for what, args in (("lint", ("lint", ".")), ("breaking", ("breaking", ".", "--against", RELEASED))):
        result = buf(*args)
        print(f"buf {what}: {'ok' if result.returncode == 0 else 'failed'}\n{result.stdout}{result.stderr}", end="")
        failures += result.returncode != 0
    # The check must be able to fail: the same contract with another number for a field is refused.
    changed = (PROTO / "expert.proto").read_text()
    marker = "bytes frame = 1;"
    assert marker in changed
    broken = ROOT / "build" / "proto_test"
    broken.mkdir(parents=True, exist_ok=True)
    for file in ("buf.yaml", "cluster.proto", "inference.proto"):
        (broken / file).write_text((PROTO / file).read_text())
    (broken / "expert.proto").write_text(changed.replace(marker, "bytes frame = 2;"))
    result = buf("breaking", broken, "--against", RELEASED)
    if result.returncode == 0:
        print("buf breaking accepts a field with another number; expected a refusal")
        failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
