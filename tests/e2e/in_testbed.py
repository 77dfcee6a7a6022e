"""Tests that run in the testbed (tests/testbed): those marked

    @pytest.mark.testbed                      or
    @pytest.mark.testbed(cpus=2, load=("kvm_amd", "nbd"), vfio=True)

run as they are, fixtures included, in a virtual machine of their own kernel. Tests of one file with
the same options share one machine, which is started for the first of them. Where there is no testbed
to be had they are skipped, with the reason. Within a testbed the mark means nothing.

What takes a processor's time is better done outside: a file's function prepare_testbed(), if it has one,
runs there first and gives a dictionary of environment variables for the tests.

The same tests on the other back-end: with --backend kvm, whatever has no such mark runs in the testbed too, where
the built-in monitor is what `auto` means. Tests marked `qemu` are about QEMU and have no part in that. The tests
marked `both` have a second run there in an ordinary run of all, together in one machine.
"""

import io
import json
import os
import pathlib
import sys
import threading

import pytest

TESTBED = pathlib.Path(__file__).resolve().parents[1] / "testbed"
INSIDE = os.environ.get("CAISSON_IN_TESTBED") == "1"
PREFIX = b"@report "
DEFAULT_TIMEOUT = 300
# Of a machine for the back-end: guests of guests are slow, and so is all that is emulated beside them.
BACKEND = {"memory": 4096, "cpus": 2, "timeout": 3600, "load": ("kvm_amd", "loop", "erofs", "ext4", "tun")}
IMAGES = ("busybox",)

sys.path.insert(0, str(TESTBED))
import testbed as machine  # noqa: E402  pylint: disable=wrong-import-position

CONFIG = []


def backend():
    """kvm: the built-in monitor, in the testbed; "": whatever the host has."""
    return CONFIG[0].getoption("--backend") if CONFIG else ""


def on_kvm():
    """Does this run inside the machine for the built-in monitor?"""
    return INSIDE and backend() == "kvm"


def vm_process():
    """Name of the process that holds the virtual machine."""
    return "caisson-vmm" if on_kvm() else "qemu-system"


def options_of(item):
    """The options of the machine the test runs in, or None."""
    if INSIDE:
        return None
    if isinstance(item, OnKvm):
        return BACKEND
    mark = item.get_closest_marker("testbed")
    if mark:
        return dict(mark.kwargs)
    return BACKEND if backend() == "kvm" else None


def environment(items, options):
    env = dict(os.environ)
    if options is BACKEND:
        from conftest import build_image  # pylint: disable=import-outside-toplevel
        # The root is an overlay, on which no other can be put: what tests make is in memory.
        env.update(CAISSON_TEST_BACKEND="kvm", CAISSON_TEST_TIMEOUT="240", TMPDIR="/dev/shm")
        env.update((f"CAISSON_TEST_IMAGE_{n}", str(build_image(n))) for n in IMAGES)
    for module in {test_of(i).module: None for i in items}:
        env.update(getattr(module, "prepare_testbed", dict)())
    return env


KVM = "tests/e2e/kvm::"


class OnKvm(pytest.Item):
    """A test's second run, in the machine for the built-in monitor."""

    def __init__(self, *, inner, **kw):
        super().__init__(**kw)
        self.inner = inner
        # A file of its own for those who hand out tests by file.
        self._nodeid = KVM + inner.nodeid.rpartition("/")[2]

    def runtest(self):
        raise NotImplementedError

    def reportinfo(self):
        path, line, name = self.inner.location
        return pathlib.Path(path), line, f"{name} on kvm"


def choose(config, items):
    """What runs here, on which back-end: from conftest's pytest_collection_modifyitems."""
    if INSIDE:
        return
    if backend() == "kvm":
        rest = [i for i in items if i.get_closest_marker("qemu")]
        if rest:
            config.hook.pytest_deselected(items=rest)
            items[:] = [i for i in items if i not in rest]
        return
    items += [OnKvm.from_parent(i.parent, name=f"{i.name} on kvm", inner=i)
              for i in items if i.get_closest_marker("both")]


def test_of(item):
    return item.inner if isinstance(item, OnKvm) else item


class Group(io.RawIOBase):
    """Tests that run in one machine, in a thread of its own; what they write is this file."""

    def __init__(self, items, options):
        super().__init__()
        self.options, self.reports, self.ended = options, {}, None
        self.changed = threading.Condition()
        self.line, self.rest = b"", []
        tests = [test_of(i) for i in items]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                   *(f"{i.config.rootpath}/{i.nodeid}" for i in tests)]
        self.bed = machine.Testbed(command, machine.Options(
            **{"timeout": DEFAULT_TIMEOUT, "env": environment(items, options), **options}))
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        end = ("failed", "the testbed has no report of this test")
        try:
            self.bed.run(self, self)
        except machine.Unavailable as e:
            end = ("skipped", f"no testbed: {e}")
        except (RuntimeError, TimeoutError, OSError) as e:
            end = ("failed", f"testbed: {e}")
        with self.changed:
            self.ended = end
            self.changed.notify_all()

    def writable(self):
        return True

    def write(self, data):
        *lines, self.line = (self.line + bytes(data)).split(b"\n")
        for line in lines:
            if line.startswith(PREFIX):
                self.add(json.loads(line[len(PREFIX):]))
            elif line:
                self.rest = [*self.rest[-39:], line]
        return len(data)

    def add(self, data):
        # A skip's place and reason, which JSON has no tuple for.
        if isinstance(data["longrepr"], list):
            data["longrepr"] = tuple(data["longrepr"])
        with self.changed:
            self.reports.setdefault(data["nodeid"], []).append(data)
            self.changed.notify_all()

    def results(self, item):
        """Reports of @item, in JSON, as soon as they are there."""
        name = test_of(item).nodeid
        with self.changed:
            while not self.ended and not any(
                    r["when"] == "teardown" for r in self.reports.get(name, ())):
                self.changed.wait()
            found = self.reports.get(name)
            if found and any(r["when"] == "teardown" for r in found):
                return found
            outcome, text = self.ended
            said = b"\n".join(self.rest).decode(errors="replace")
            return [*(found or ()), made_up(item, outcome, f"{text}\n{said}".strip())]


_groups = {}


def group_of(item, options):
    """Tests of one file with the same options; second runs are one group in all."""
    second = isinstance(item, OnKvm)
    key = (None if second else item.path, repr(options))
    if key not in _groups:
        _groups[key] = Group([i for i in item.session.items
                              if options_of(i) == options and isinstance(i, OnKvm) == second and
                              (second or i.path == item.path)], options)
    return _groups[key]


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
    try:
        found = group_of(item, options).results(item)
    except pytest.skip.Exception as e:
        found = [made_up(item, "skipped", str(e))]
    for data in found:
        data["nodeid"] = item.nodeid
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # What an earlier test of the file has set up here ends with the file's last one.
    item.session._setupstate.teardown_exact(nextitem)  # pylint: disable=protected-access
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    for g in _groups.values():
        g.thread.join(30)
    # For --last-failed: a second run is made from the first one's test.
    last = session.config.pluginmanager.get_plugin("lfplugin")
    for name in [n for n in getattr(last, "lastfailed", ()) if n.startswith(KVM)]:
        last.lastfailed["tests/e2e/" + name[len(KVM):]] = True


if INSIDE:
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(report):
        data = CONFIG[0].hook.pytest_report_to_serializable(config=CONFIG[0], report=report)
        sys.__stdout__.write(f"\n{PREFIX.decode()}{json.dumps(data)}\n")
        sys.__stdout__.flush()


def register(config):
    """From conftest's pytest_configure."""
    CONFIG[:] = [config]
    config.addinivalue_line("markers", "testbed(**options): runs in the testbed's machine")
    config.addinivalue_line("markers", "both: runs on the built-in monitor, too")
    config.addinivalue_line("markers", "qemu: is about QEMU")
    config.pluginmanager.register(sys.modules[__name__], "in_testbed")
