"""Counts test results: prints "passed failed skipped".

count.py meson testlog.json [testlog-of-the-second-run.json]
count.py meson-failed testlog.json   names of those that failed, one a line
count.py junit results.xml [results-of-the-second-run.xml]
count.py failed results.xml      exit 0 if anything failed, 1 if nothing did
count.py slowest results.xml     the slowest files and tests, in seconds
A results file that is missing or empty counts as one failure.
"""
import json
import os
import sys
import xml.etree.ElementTree as ET


def meson_results(path):
    """name -> passed, failed or skipped"""
    if not os.path.exists(path):
        return {}
    words = {"OK": "passed", "EXPECTEDFAIL": "passed", "SKIP": "skipped"}
    with open(path) as f:
        tests = [json.loads(line) for line in f]
    return {t["name"]: words.get(t["result"], "failed") for t in tests}


def merged(first, again):
    """Counts, of a first run and of a second one of what failed in it."""
    total = dict(first)
    for name, result in again.items():
        if first.get(name) == "failed" and result == "passed":
            print(f"passed at the second try: {name}", file=sys.stderr)
            total[name] = result
    results = list(total.values())
    return results.count("passed"), results.count("failed") + (not results), \
        results.count("skipped")


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


def slowest(path):
    files, tests = {}, []
    for case in ET.parse(path).iter("testcase"):
        seconds, file = float(case.get("time") or 0), case.get("classname").split(".Test")[0].rsplit(".", 1)[-1]
        files[file] = files.get(file, 0) + seconds
        tests.append((seconds, f"{file}::{case.get('name')}"))
    for title, rows in (("files", [(t, f) for f, t in files.items()]), ("tests", tests)):
        print(f"slowest {title}:")
        for seconds, name in sorted(rows, reverse=True)[:15]:
            print(f"{seconds:8.1f} s  {name}")


def main():
    kind, paths = sys.argv[1], sys.argv[2:]
    if kind == "failed":
        found = cases(paths[0])
        sys.exit(0 if "failed" in found.values() else 1)
    if kind == "slowest":
        slowest(paths[0])
        return
    if kind == "meson-failed":
        print("\n".join(name.split(" / ")[-1] for name, result in meson_results(paths[0]).items()
                        if result == "failed"))
        return
    results = [(meson_results if kind == "meson" else cases)(p) for p in paths]
    print(*merged(results[0], results[1] if len(results) > 1 else {}))


try:
    main()
except (OSError, ValueError, ET.ParseError) as e:
    print(f"count.py: {e}", file=sys.stderr)
    print(0, 1, 0)
