"""Counts test results: prints "passed failed skipped".

count.py meson testlog.json
count.py junit results.xml [results-of-the-second-run.xml]
count.py failed results.xml      exit 0 if anything failed, 1 if nothing did
A results file that is missing or empty counts as one failure.
"""
import json
import os
import sys
import xml.etree.ElementTree as ET


def meson(path):
    passed = failed = skipped = 0
    with open(path) as f:
        for line in f:
            result = json.loads(line)["result"]
            if result in ("OK", "EXPECTEDFAIL"):
                passed += 1
            elif result == "SKIP":
                skipped += 1
            else:
                failed += 1
    return passed, failed + (passed + failed + skipped == 0), skipped


def cases(path):
    """name -> passed, failed or skipped"""
    if not os.path.exists(path):
        return {}
    found = {}
    for case in ET.parse(path).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            found[name] = "failed"
        elif case.find("skipped") is not None:
            found[name] = "skipped"
        else:
            found.setdefault(name, "passed")
    return found


def junit(paths):
    first = cases(paths[0])
    again = cases(paths[1]) if len(paths) > 1 else {}
    total = dict(first)
    for name, result in again.items():
        if first.get(name) == "failed" and result == "passed":
            print(f"passed at the second try: {name}", file=sys.stderr)
            total[name] = result
    results = list(total.values())
    return results.count("passed"), results.count("failed") + (not results), \
        results.count("skipped")


def main():
    kind, paths = sys.argv[1], sys.argv[2:]
    if kind == "failed":
        found = cases(paths[0])
        sys.exit(0 if "failed" in found.values() else 1)
    print(*(meson(paths[0]) if kind == "meson" else junit(paths)))


try:
    main()
except (OSError, ValueError, ET.ParseError) as e:
    print(f"count.py: {e}", file=sys.stderr)
    print(0, 1, 0)
