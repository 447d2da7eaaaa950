"""Goal: every reason that the code gives an error is explained in docs/errors.md, and every word there is one that exists.

Method: collects the string literals that are passed as reasons, and the words in backticks of the page's section
"Reasons". With --self-test it checks that a reason which is missing on either side is found.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ["libs", "frontend", "expert_worker", "router_service", "cli"]
MAKERS = re.compile(
    r'\b(?:Error|InvalidArgument|NotFound|Fail|ProtocolError)\(\s*(?:absl::StatusCode::k\w+,\s*)?'
    r'"([a-z0-9_]+)"')


def used_in(text: str) -> set[str]:
    return set(MAKERS.findall(text))


def literals_in(text: str) -> set[str]:
    return set(re.findall(r'"([a-z0-9_]+)"', text))


def problems(sources: list[str], page: str) -> list[str]:
    section = page[page.index("## Reasons"):]
    documented = set(re.findall(r"`([a-z0-9_]+)`", section))
    used = set().union(*map(used_in, sources))
    literals = set().union(*map(literals_in, sources))
    found = [f"docs/errors.md: the reason {reason} is not explained" for reason in sorted(used - documented)]
    found += [f"docs/errors.md: no code gives the reason {reason}" for reason in sorted(documented - literals)]
    return found


def main() -> int:
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for room in ROOMS for path in sorted((ROOT / room).rglob("*"))
               if path.suffix in {".h", ".cc", ".cu"}]
    if "--self-test" in sys.argv[1:]:
        planted = problems([*sources, 'Error(absl::StatusCode::kInternal, "planted_reason", "x")'],
                           page + " `planted_word`")
        expected = {"docs/errors.md: the reason planted_reason is not explained",
                    "docs/errors.md: no code gives the reason planted_word"}
        print("\n".join(sorted(expected - set(planted))))
        return 0 if expected <= set(planted) else 1
    found = problems(sources, page)
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
