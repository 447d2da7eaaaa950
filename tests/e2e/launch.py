"""Runs a test script with the Python of .venv, which tools/test.sh makes from tests/requirements.txt.

Exit code 77, which ctest shows as skipped, when there is no such environment.
"""

import os
import pathlib
import sys

root = pathlib.Path(__file__).resolve().parent.parent.parent
python = root / ".venv" / "bin" / "python"
if not (root / ".venv" / "pins").exists():
    print("skipped: no Python environment in .venv; tools/test.sh makes it from tests/requirements.txt")
    sys.exit(77)
os.execv(python, [str(python), *sys.argv[1:]])
