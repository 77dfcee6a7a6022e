#!/usr/bin/python3
"""What documents say is tested is tested: each test and test file that docs/*.md and README.md name in
backticks exists. Prints what does not, and fails then."""

import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parents[1]


def defined():
    """Names of tests, and of the files in tests/ and bench/, with and without their folders."""
    tests, files = set(), set()
    for root in ("tests", "bench"):
        for p in (TOP / root).rglob("*"):
            if p.suffix not in (".py", ".c", ".h", ""):
                continue
            files |= {p.name, str(p.relative_to(TOP))}
            if p.suffix == ".py":
                tests |= set(re.findall(r"^\s*def (test_\w+)", p.read_text(encoding="utf-8"), re.M))
            elif p.suffix == ".c":
                tests |= set(re.findall(r"\b(test_\w+)\(", p.read_text(encoding="utf-8")))
    return tests, files


def main():
    tests, files = defined()
    bad = 0
    for doc in [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]:
        for number, line in enumerate(doc.read_text(encoding="utf-8").splitlines(), 1):
            for word in re.findall(r"`([^`\s]+)`", line):
                name = word.rstrip("/")
                known = name in files or (TOP / name).exists() if re.search(r"\.(py|c)$", name) \
                    else not re.match(r"test_\w+$", name) or name in tests
                if re.match(r"(tests/|bench/|test_|bench_)", name) and "*" not in name and not known:
                    print(f"{doc.relative_to(TOP)}:{number}: there is no {word}")
                    bad += 1
    return bad > 0


sys.exit(main())
