"""Tests that run in the testbed (tests/testbed): those marked

    @pytest.mark.testbed                      or
    @pytest.mark.testbed(cpus=2, load=("kvm_amd", "nbd"), vfio=True)

run as they are, fixtures included, in a virtual machine of their own kernel. Tests of one file with
the same options share one machine, which is started for the first of them. Where there is no testbed
to be had they are skipped, with the reason. Within a testbed the mark means nothing.

What takes a processor's time is better done outside: a file's function prepare_testbed(), if it has one,
runs there first and gives a dictionary of environment variables for the tests.
"""

import io
import json
import os
import pathlib
import sys

import pytest

TESTBED = pathlib.Path(__file__).resolve().parents[1] / "testbed"
INSIDE = os.environ.get("CAISSON_IN_TESTBED") == "1"
PREFIX = b"@report "
DEFAULT_TIMEOUT = 300

sys.path.insert(0, str(TESTBED))
import testbed as machine  # noqa: E402  pylint: disable=wrong-import-position

_reports = {}


def options_of(item):
    """The mark's options, or None."""
    mark = item.get_closest_marker("testbed")
    return dict(mark.kwargs) if mark and not INSIDE else None


def run_inside(items, options):
    """Runs @items in one machine. Gives their reports by node, and what was written besides."""
    out, err = io.BytesIO(), io.BytesIO()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               *(f"{i.config.rootpath}/{i.nodeid}" for i in items)]
    prepare = getattr(items[0].module, "prepare_testbed", dict)
    bed = machine.Testbed(command, machine.Options(
        **{"timeout": DEFAULT_TIMEOUT, "env": {**os.environ, **prepare()}, **options}))
    bed.run(out, err)
    found = {}
    for line in out.getvalue().splitlines():
        if line.startswith(PREFIX):
            data = json.loads(line[len(PREFIX):])
            # A skip's place and reason, which JSON has no tuple for.
            if isinstance(data["longrepr"], list):
                data["longrepr"] = tuple(data["longrepr"])
            found.setdefault(data["nodeid"], []).append(data)
    rest = [x for x in (out.getvalue() + err.getvalue()).splitlines() if not x.startswith(PREFIX)]
    return found, b"\n".join(rest[-40:]).decode(errors="replace")


def results(item, options):
    """Reports of @item, in JSON; of the whole group the first time."""
    if item.nodeid not in _reports:
        group = [i for i in item.session.items if i.path == item.path and options_of(i) == options]
        found, text = {}, ""
        outcome = "failed"
        try:
            found, text = run_inside(group, options)
            text = f"the testbed has no report of this test:\n{text}"
        except machine.Unavailable as e:
            outcome, text = "skipped", f"no testbed: {e}"
        except pytest.skip.Exception as e:
            outcome, text = "skipped", str(e)
        except (RuntimeError, TimeoutError) as e:
            text = f"testbed: {e}"
        for i in group:
            _reports[i.nodeid] = found.get(i.nodeid) or [made_up(i, outcome, text)]
    return _reports[item.nodeid]


def made_up(item, outcome, text):
    path, line, name = item.location
    return {"nodeid": item.nodeid, "location": (path, line, name), "keywords": {}, "outcome": outcome,
            "longrepr": (path, (line or 0) + 1, f"Skipped: {text}") if outcome == "skipped" else text,
            "when": "setup", "sections": [], "duration": 0, "user_properties": [],
            "$report_type": "TestReport"}


def pytest_runtest_protocol(item, nextitem):
    options = options_of(item)
    if options is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in results(item, options):
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # What an earlier test of the file has set up here ends with the file's last one.
    item.session._setupstate.teardown_exact(nextitem)  # pylint: disable=protected-access
    return True


if INSIDE:
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(report):
        data = CONFIG[0].hook.pytest_report_to_serializable(config=CONFIG[0], report=report)
        sys.__stdout__.write(f"\n{PREFIX.decode()}{json.dumps(data)}\n")
        sys.__stdout__.flush()

CONFIG = []


def register(config):
    """From conftest's pytest_configure."""
    CONFIG[:] = [config]
    config.addinivalue_line("markers", "testbed(**options): runs in the testbed's machine")
    config.pluginmanager.register(sys.modules[__name__], "in_testbed")
