"""Keeps true what a compiler and clang-tidy do not check: arrows, lengths, leftovers, dead files, links.

Goal: the tree obeys CONTRIBUTING.md. Method: reads every text file of the project and prints one line per violation,
"path:line: what". With --self-test it plants one violation of every rule in a small tree and expects it to be found.
"""

import collections
import pathlib
import re
import sys
import tempfile

import rooms as rooms_table

CODE = {".h", ".cc", ".cu", ".py", ".sh", ".cmake", ".js"}
TEXT = CODE | {".md", ".txt", ".json", ".yaml", ".yml", ".proto", ".svg", ".css", ".html", ""}
# Built, fetched or recorded, not written.
SKIPPED_FOLDERS = {".venv", ".cache", "__pycache__"}
RECORDED = ("tests/golden/data/", "tests/fuzz/corpus/", "models/demo/")
# Quotes other projects' notes and markers; not code of ours.
SPECIFICATIONS = ("docs/models/",)
FILE_LINES_MAX = 600
LINE_COLUMNS_MAX = 100  # of C++, as in .clang-format

# Spelt in two halves, or this file would find itself.
LEFTOVER = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
# Folders of some machine. System folders that every Debian has (/usr, /etc, /proc, /tmp) are fine.
MACHINE_PATH = re.compile(r"(?<![\w.)}\]:/-])/(?:home|root|work|mnt|media|srv|Users)/[\w.-]")
RELATIVE_PATH = re.compile(r"(?<![\w./])((?:\.\./)+)([\w-][\w./-]*)?")
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]')
LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"')
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)(?:#[^)]*)?\)|<img[^>]*\ssrc=\"([^\"]+)\"")
PAGE = re.compile(r"(?<![\w/.-])((?:[\w-]+/)*[\w-]+\.md)\b")


class Tree:
    """The files of a checkout, read once. Paths are relative, with '/'."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.files: dict[str, list[str]] = {}  # text files -> lines
        self.paths: set[str] = set()  # all files
        self._walk(root)

    def _walk(self, folder: pathlib.Path):
        for entry in sorted(folder.iterdir()):
            relative = entry.relative_to(self.root).as_posix()
            if entry.name == ".git":
                continue  # a folder, or in a linked working tree a file
            if entry.is_dir():
                if entry.name in SKIPPED_FOLDERS or (folder == self.root and entry.name.startswith("build")):
                    continue
                self._walk(entry)
                continue
            self.paths.add(relative)
            if relative.startswith(RECORDED) or entry.suffix not in TEXT:
                continue
            try:
                self.files[relative] = entry.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError:
                pass  # binary without an extension

    def code(self):
        """Files in a programming language, as (path, lines)."""
        for path, lines in self.files.items():
            if pathlib.PurePosixPath(path).suffix in CODE or path.endswith("CMakeLists.txt"):
                yield path, lines

    def cpp(self):
        for path, lines in self.files.items():
            if path.endswith((".h", ".cc", ".cu")):
                yield path, lines


def room_of(path: str, rooms: rooms_table.Rooms) -> str | None:
    for room, folder in rooms.paths.items():
        if path.startswith(folder + "/"):
            return room
    return None


def check_arrows(tree: Tree, rooms: rooms_table.Rooms):
    for room in rooms.cycles():
        yield "CONTRIBUTING.md", 0, f"the arrows of {room} lead back to it"
    for path, lines in tree.cpp():
        room = room_of(path, rooms)
        for number, line in enumerate(lines, 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            header = match[1]
            if header.endswith(".pb.h") and room not in (None, "transport") and not path.endswith("_service.cc"):
                yield path, number, f"{header}: generated messages belong in transport and *_service.cc only"
            if room is None or not header.startswith("conclave/"):
                continue
            other = header.split("/")[1]
            if other not in rooms.paths:
                yield path, number, f"{header}: no such room as {other}"
            elif other not in rooms.allowed(room):
                yield path, number, f"{header}: {room} may not include {other} (table in CONTRIBUTING.md)"
            elif other == "testing" and room != "testing":
                yield path, number, f"{header}: testing is for tests only"


def check_headers(tree: Tree, _rooms):
    for path, lines in tree.cpp():
        if path.endswith(".h"):
            if "#pragma once" not in lines:
                yield path, 1, "no #pragma once"
            for number, line in enumerate(lines, 1):
                if re.match(r"\s*using\s+namespace\b", line):
                    yield path, number, "using namespace in a header"
                if "/include/conclave/" in path and re.match(r"\s*#\s*if(n?def)?\b", line):
                    yield path, number, "a public header has no conditional compilation"


def check_lengths(tree: Tree, _rooms):
    for path, lines in tree.code():
        if len(lines) > FILE_LINES_MAX:
            yield path, len(lines), f"{len(lines)} lines; expected at most {FILE_LINES_MAX}"


def check_width(tree: Tree, _rooms):
    """clang-format wraps code but leaves comments and literals alone."""
    for path, lines in tree.cpp():
        for number, line in enumerate(lines, 1):
            if len(line) <= LINE_COLUMNS_MAX or "://" in line or 'R"' in line:
                continue
            comment = re.match(r"\s*//(.*)", line)
            # Indented: a table, a formula or a command, whose columns mean something.
            if comment and comment[1].startswith("  "):
                continue
            if len(LITERAL.sub('""', line)) > LINE_COLUMNS_MAX or comment:
                yield path, number, f"{len(line)} columns; expected at most {LINE_COLUMNS_MAX}"


def check_leftovers(tree: Tree, _rooms):
    for path, lines in tree.files.items():
        if path.startswith(SPECIFICATIONS) or path == "LICENSE":
            continue
        for number, line in enumerate(lines, 1):
            found = LEFTOVER.search(line)
            if found and path != "tests/tidy_test.py":
                yield path, number, f"{found[0]}: finish it, or open an issue"


def check_forbidden(tree: Tree, _rooms):
    for path, lines in tree.cpp():
        for number, line in enumerate(lines, 1):
            code = line.split("//")[0]
            if re.search(r"std::w?regex|#\s*include\s*<regex>", code) and not path.startswith("tests/"):
                yield path, number, "std::regex recurses on its input; use PCRE2 with limits"
            if re.search(r"\bDISABLED_\w", code):
                yield path, number, "a disabled test; mend it or remove it"
            if re.search(r"\bGTEST_SKIP\(\)\s*;", code):
                yield path, number, "a skipped test says why: GTEST_SKIP() << reason"
            if re.search(r"\b(?:sleep_for|sleep_until|usleep)\b", code) and path.startswith("tests/"):
                yield path, number, "a test that sleeps is slow or flaky; wait for the condition"


def check_paths(tree: Tree, _rooms):
    for path, lines in tree.files.items():
        if path.startswith(SPECIFICATIONS) or path == "LICENSE":
            continue
        depth = path.count("/")
        for number, line in enumerate(lines, 1):
            machine = MACHINE_PATH.search(line)
            if machine and path != "tests/tidy_test.py":
                yield path, number, f"a path of some machine: {machine[0]}…"
            for match in RELATIVE_PATH.finditer(line):
                if match[1].count("../") > depth and path != "tests/tidy_test.py":
                    yield path, number, f"{match[0]} leads out of the checkout"


def check_links(tree: Tree, _rooms):
    names = {path.rsplit("/", 1)[-1] for path in tree.paths}
    for path, lines in tree.files.items():
        if path.startswith(SPECIFICATIONS):
            continue
        for number, line in enumerate(lines, 1):
            if path.endswith(".md"):
                for match in LINK.finditer(line):
                    target = match[1] or match[2]
                    if "://" in target or target.startswith("mailto:"):
                        continue
                    resolved = (tree.root / path).parent / target
                    if not resolved.exists():
                        yield path, number, f"the link to {target} leads nowhere"
            elif path.endswith((".h", ".cc", ".cu", ".sh", ".cmake", "CMakeLists.txt")):
                for match in PAGE.finditer(line):
                    if match[1].rsplit("/", 1)[-1] not in names:
                        yield path, number, f"{match[1]}: there is no such page in the project"


def check_decisions(tree: Tree, _rooms):
    numbers = []
    for path in sorted(path for path in tree.paths if path.startswith("docs/decisions/")):
        name = path.rsplit("/", 1)[-1]
        match = re.fullmatch(r"(\d{4})-[a-z0-9-]+\.md", name)
        if not match:
            yield path, 0, "a decision is named NNNN-title.md"
            continue
        numbers.append(int(match[1]))
        if not tree.files[path] or not tree.files[path][0].startswith("# "):
            yield path, 1, "a decision begins with its title"
    for number, count in collections.Counter(numbers).items():
        if count > 1:
            yield "docs/decisions", 0, f"the number {number:04d} is taken {count} times"
    for missing in sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers)):
        yield "docs/decisions", 0, f"the number {missing:04d} is missing"


def check_dead_files(tree: Tree, _rooms):
    named = []  # patterns of the files that a CMakeLists.txt names
    for path, lines in tree.files.items():
        if not path.endswith("CMakeLists.txt"):
            continue
        folder = path.rsplit("/", 1)[0] + "/" if "/" in path else ""
        for token in re.findall(r"[\w./${}-]+\.(?:cc|cu|S|py)\b", "\n".join(line.split("#")[0] for line in lines)):
            token = re.sub(r"^\$\{(?:CMAKE_CURRENT_SOURCE_DIR)\}/", "", token)
            token = folder + token if not token.startswith("${PROJECT_SOURCE_DIR}/") else token.split("/", 1)[1]
            # A variable within a name stands for any word.
            named.append("".join(r"[\w-]+" if part.startswith("${") else re.escape(part)
                                 for part in re.split(r"(\$\{\w+\})", token)))
    built = re.compile("|".join(named) or "$^")
    included = {match[1].rsplit("/", 1)[-1] for _, lines in tree.cpp() for match in map(INCLUDE.match, lines) if match}
    imported = {word for path, lines in tree.files.items() if path.endswith(".py") for line in lines
                for word in re.findall(r"^\s*(?:import|from)\s+(\w+)", line)}
    for path in sorted(tree.paths):
        name = path.rsplit("/", 1)[-1]
        if path.startswith(RECORDED):
            continue
        if path.endswith((".cc", ".cu")) and not built.fullmatch(path):
            yield path, 0, "no CMakeLists.txt builds this file"
        if path.endswith(".h") and "/include/conclave/" not in path and name not in included:
            yield path, 0, "no file includes this header"
        # A tool that needs more than the test environment has says that it is run by hand.
        is_script = (path.startswith("tests/") and path.endswith(".py")
                     and not any("by hand" in line for line in tree.files[path][:5]))
        if is_script and not built.fullmatch(path) and name[:-3] not in imported:
            yield path, 0, "no CMakeLists.txt runs this script and none imports it"


CHECKS = [check_arrows, check_headers, check_lengths, check_width, check_leftovers, check_forbidden, check_paths, check_links,
          check_decisions, check_dead_files]


def violations(tree: Tree, rooms: rooms_table.Rooms) -> list[str]:
    found = []
    for check in CHECKS:
        for path, number, what in check(tree, rooms):
            found.append(f"{path}:{number}: {what}" if number else f"{path}: {what}")
    return found


def self_test() -> int:
    """One planted violation per line of the table; every one must be found, and the clean tree must stay clean."""
    table = ("| `libs/base/` | ids | – |\n| `libs/tensor/` | views | `base` |\n"
             "| `libs/testing/` | fakes | `base` |\n| `cli/` | main | everything |\n")
    clean = {
        "CONTRIBUTING.md": table,
        "libs/base/include/conclave/base/a.h": "#pragma once\n",
        "libs/tensor/src/b.cc": '#include "conclave/base/a.h"\n' + 'char x[] = "' + 99 * "a" + '";\n'
                                + "//   a table   " + 99 * "b" + "\n",
        "libs/tensor/CMakeLists.txt": "conclave_library(tensor SOURCES src/b.cc)\n",
        "docs/decisions/0001-first.md": "# First\n",
    }
    planted = [
        ("libs/base/src/b.h", '#pragma once\n#include "conclave/tensor/b.h"\n', "may not include tensor"),
        ("libs/tensor/src/b.cc", '#include "conclave/nowhere/b.h"\n', "no such room"),
        ("libs/tensor/src/b.cc", '#include "proto/x.pb.h"\n', "generated messages"),
        ("cli/src/b.h", '#pragma once\n#include "conclave/testing/b.h"\n', "for tests only"),
        ("CONTRIBUTING.md", table.replace("ids | –", "ids | `tensor`"), "lead back"),
        ("libs/base/include/conclave/base/a.h", "struct A {};\n", "no #pragma once"),
        ("libs/base/include/conclave/base/a.h", "#pragma once\nusing namespace std;\n", "using namespace"),
        ("libs/base/include/conclave/base/a.h", "#pragma once\n#ifdef NDEBUG\n", "conditional compilation"),
        ("libs/tensor/src/b.cc", "int x;\n" * 601, "601 lines"),
        ("libs/tensor/src/b.cc", "// " + 50 * "ab " + "\n", "153 columns"),
        ("libs/tensor/src/b.cc", 'int x = f("' + 60 * "a" + '");' + 90 * " " + "// long\n", "columns;"),
        ("libs/tensor/src/b.cc", "// TO" "DO: later\n", "finish it"),
        ("libs/tensor/src/b.cc", "#include <regex>\n", "std::regex"),
        ("libs/tensor/src/b.cc", "TEST(A, DISABLED_B) {}\n", "disabled test"),
        ("libs/tensor/src/b.cc", "GTEST_SKIP();\n", "says why"),
        ("tests/unit/b.cc", "std::this_thread::sleep_for(x);\n", "sleeps"),
        ("libs/tensor/src/b.cc", 'open("/home' '/me/x");\n', "some machine"),
        ("libs/tensor/src/b.cc", 'open("../../../' '../shared/x");\n', "leads out"),
        ("README.md", "[here](docs/none.md)\n", "leads nowhere"),
        ("libs/tensor/src/b.cc", "// see none.md section 3\n", "no such page"),
        ("docs/decisions/0003-third.md", "# Third\n", "0002 is missing"),
        ("docs/decisions/0001-other.md", "# Other\n", "taken 2 times"),
        ("docs/decisions/new.md", "# New\n", "NNNN-title"),
        ("libs/tensor/src/dead.cc", "int x;\n", "no CMakeLists.txt builds"),
        ("libs/tensor/src/dead.h", "#pragma once\n", "no file includes"),
        ("tests/dead.py", "x = 1\n", "none imports it"),
    ]
    failures = 0
    for path, text, expected in [("README.md", "clean\n", None), *planted]:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in {**clean, path: text}.items():
                file = pathlib.Path(folder, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content, encoding="utf-8")
            tree = Tree(pathlib.Path(folder))
            rooms = rooms_table.Rooms("\n".join(tree.files["CONTRIBUTING.md"]))
            found = violations(tree, rooms)
        if expected is None and found:
            print(f"the clean tree is not clean: {found}")
            failures += 1
        if expected is not None and not any(expected in line and line.startswith((path, "docs/decisions", "CONTR"))
                                            for line in found):
            print(f"planted in {path}, not found: {expected!r}; found {found}")
            failures += 1
    print(f"{len(planted)} planted violations, {failures} failures")
    return 1 if failures else 0


def main() -> int:
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    tree = Tree(rooms_table.ROOT)
    found = violations(tree, rooms_table.load())
    for line in found:
        print(line)
    print(f"{len(tree.files)} files, {len(CHECKS)} checks, {len(found)} violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
