"""Goal: an include against the arrows of CONTRIBUTING.md does not compile, and one along them does.

Method: for every pair of rooms compiles a file that includes one public header of the second with exactly the include
path that the build gives to the first. Expects the compiler to fail for want of that file where the table forbids the
pair, and to succeed where a row names it.
"""

import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import rooms as rooms_table  # noqa: E402


def first_header(paths: dict[str, str], room: str) -> str | None:
    include = rooms_table.ROOT / paths[room] / "include"
    headers = sorted(include.rglob("*.h"))
    return headers[0].relative_to(include).as_posix() if headers else None


def compile_include(compiler: str, directories: list[str], header: str, preprocess_only: bool) -> tuple[bool, str]:
    """Whether a file with that one include compiles, and what the compiler says."""
    # An allowed include need only be found: that the header compiles alone is the business of header_check.
    mode = ["-E", "-o", os.devnull] if preprocess_only else ["-fsyntax-only"]
    result = subprocess.run(
        [compiler, "-std=c++20", *mode, *(f"-I{directory}" for directory in directories), "-x", "c++", "-"],
        input=f'#include "{header}"\n', capture_output=True, text=True, timeout=120,
        env={**os.environ, "LC_ALL": "C"})
    return result.returncode == 0, result.stderr


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--include-paths", required=True, help="room, then its include directories, tab-separated")
    args = parser.parse_args()

    rooms = rooms_table.load()
    include_paths: dict[str, list[str]] = {}
    for line in pathlib.Path(args.include_paths).read_text().splitlines():
        room, *directories = line.split("\t")
        include_paths[room] = [directory for directory in directories if directory]
    headers = {room: first_header(rooms.paths, room) for room in include_paths}

    cases = []  # (room, included room, header, expected to compile)
    for room in include_paths:
        for other, header in headers.items():
            if header is None:
                continue
            if other not in rooms.allowed(room):
                cases.append((room, other, header, False))
            elif other == room or other in (rooms.direct[room] or []):
                cases.append((room, other, header, True))

    def run(case):
        room, _, header, expected = case
        return compile_include(args.compiler, include_paths[room], header, preprocess_only=expected)

    failures = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        for (room, other, header, expected), (compiled, errors) in zip(cases, pool.map(run, cases)):
            if expected and not compiled:
                failures.append(f"{room} may include {header} of {other}, but it does not compile: {errors.strip()}")
            elif not expected and compiled:
                failures.append(f"{room} must not include {header} of {other}, but that compiles: what does {room} link?")
            elif not expected and not any(
                    phrase in errors for phrase in (f"{header}: No such file", f"'{header}' file not found")):
                failures.append(f"{room} including {header}: fails for another reason than a missing file: {errors}")

    forbidden = sum(1 for case in cases if not case[3])
    allowed = len(cases) - forbidden
    if forbidden < 50 or allowed < 20:
        failures.append(f"only {forbidden} forbidden and {allowed} allowed pairs were tried: this proves little")

    # One allowed include compiled in full, so that the probe itself is known to be able to succeed.
    header = headers["placement"]
    compiled, errors = compile_include(args.compiler, include_paths["transport"], header, preprocess_only=False)
    if not compiled:
        failures.append(f"transport including {header} does not compile: {errors}")

    for failure in failures:
        print(failure)
    print(f"{len(cases)} pairs of rooms: {forbidden} forbidden, {allowed} allowed, {len(failures)} wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
