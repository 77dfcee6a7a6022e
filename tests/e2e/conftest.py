"""End-to-end tests: the installed programs, real images, real virtual machines.

The whole run moves into a network namespace of its own before the first test, so that no test can
reach or change the network of the machine. Each test has its own CAISSON_RUN; after it nothing may
be left: no process, mount, cgroup, loop device, socket or file.

CAISSON_STAGE names the programs' directory (with bin/ and lib/caisson/), as tools/stage.sh makes it.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

import in_testbed
from patience import BOOT_TIMEOUT, PATIENCE

TOP = pathlib.Path(__file__).resolve().parents[2]


def links():
    with open("/proc/net/dev", encoding="ascii") as f:
        return [line.split(":")[0].strip() for line in f.readlines()[2:]]


def pytest_addoption(parser):
    parser.addoption("--backend", choices=("", "kvm"), default=os.environ.get("CAISSON_TEST_BACKEND", ""),
                     help="kvm: runs the tests on the built-in monitor, in the testbed")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes")
    in_testbed.register(config)
    if os.environ.get("CAISSON_TEST_NETNS") != "1":
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture:
            capture.stop_global_capturing()
        os.environ["CAISSON_TEST_NETNS"] = "1"
        os.execvp("unshare", ["unshare", "--net", "--", "sh", "-c",
                              'ip link set lo up && exec "$@"', "sh", sys.executable, "-m", "pytest",
                              *config.invocation_params.args])
    if links() != ["lo"]:
        pytest.exit("the tests must run in a network namespace of their own", returncode=3)


# Files that take longest, first: whoever hands out files to workers gives these out first.
LONG = ["test_builtin.py", "kvm", "test_network_kinds.py", "test_workloads.py", "test_cri.py", "test_run.py",
        "test_docker.py", "test_shim.py", "test_containerd.py", "test_scale.py", "test_kill.py"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    in_testbed.choose(config, items)
    order = {name: n for n, name in enumerate(LONG)}
    items.sort(key=lambda i: order.get(i.nodeid.partition("::")[0].rpartition("/")[2], len(LONG)))


def stage_dir():
    named = os.environ.get("CAISSON_STAGE")
    if named:
        return pathlib.Path(named).resolve()
    found = [p for p in [TOP / "build/stage", *TOP.glob("build/*/stage")] if (p / "bin").is_dir()]
    return max(found, key=lambda p: (p / "bin").stat().st_mtime) if found else None


@pytest.fixture(scope="session")
def stage():
    d = stage_dir()
    if d is None or not (d / "bin/caisson").exists():
        pytest.fail("no staged build: run tools/stage.sh, or set CAISSON_STAGE")
    return d


def build_image(name):
    """Path of the OCI layout of one of our own images, built once from Debian packages, or named
    by CAISSON_TEST_IMAGE_<name>."""
    if f"CAISSON_TEST_IMAGE_{name}" in os.environ:
        return os.environ[f"CAISSON_TEST_IMAGE_{name}"]
    r = subprocess.run([TOP / "tests/images/build", name], stdout=subprocess.PIPE, text=True,
                       check=False)
    if r.returncode:
        pytest.skip(f"image {name} cannot be built here")
    return r.stdout.split()[-1]


@pytest.fixture(scope="session")
def busybox():
    return f"oci:{build_image('busybox')}:latest"


@pytest.fixture(scope="session")
def image():
    return lambda name: f"oci:{build_image(name)}:latest"


@pytest.fixture(scope="session", autouse=True)
def only_the_builtin_monitor(request):
    """With --backend kvm: the built-in monitor is what `auto` means, and there is no QEMU to fall back to."""
    if not in_testbed.on_kvm():
        return
    qemu = shutil.which("qemu-system-x86_64")
    # Never on a machine that is somebody's.
    assert os.uname().nodename == "testbed" and os.path.ismount("/sys/fs/bpf")
    if qemu:
        subprocess.run(["mount", "--bind", "/dev/null", qemu], check=True)
        request.addfinalizer(lambda: subprocess.run(["umount", qemu], check=True))


class Result:
    """What a command did: exit code, and what it wrote."""

    def __init__(self, args, code, out, err, seconds):
        self.args, self.code, self.out, self.err, self.seconds = args, code, out, err, seconds

    def __repr__(self):
        return (f"caisson {' '.join(map(str, self.args))} -> {self.code} in {self.seconds:.2f}s\n"
                f"--- stdout\n{self.out}\n--- stderr\n{self.err}")

    def ok(self):
        assert self.code == 0, repr(self)
        return self

    def fails(self, code, *words):
        """Failed with @code and one clear line that has all of @words."""
        assert self.code == code, repr(self)
        lines = [x for x in self.err.splitlines() if x.strip()]
        assert len(lines) == 1, f"expected one error line: {self!r}"
        assert lines[0].startswith("caisson: "), repr(self)
        # A control character that was not meant to be there.
        assert not lines[0].endswith("?"), repr(self)
        for w in words:
            assert w.lower() in lines[0].lower(), f"no {w!r} in {lines[0]!r}"
        return self


def patient_config(root):
    """Settings for machines that are busy and emulate: a guest may take its time."""
    f = pathlib.Path(root) / "test-config.yaml"
    if not f.exists():
        f.write_text("vm:\n  boot_timeout: 120s\n", encoding="ascii")
    return f


class Caisson:
    """The command line under test, with directories of its own."""

    def __init__(self, stage, root, run, image=None):
        self.stage, self.root, self.run_dir, self.image = stage, root, run, image
        self.bin = stage / "bin/caisson"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("CAISSON_")}
        self.env.update(CAISSON_ROOT=str(root), CAISSON_RUN=str(run),
                        CAISSON_CONFIG=str(patient_config(root)),
                        # Not the networks that this machine happens to have.
                        NETCONFPATH=str(root / "net.d"))
        if "CAISSON_LIBDIR" in os.environ:
            self.env["CAISSON_LIBDIR"] = os.environ["CAISSON_LIBDIR"]
        self.cgroups = set(cgroup_dirs())
        self.orphans = set(orphan_vms())

    def __call__(self, *args, input=None, timeout=BOOT_TIMEOUT, env=None, text=True, **kw):
        t = time.monotonic()
        kw.setdefault("stdin", subprocess.DEVNULL if input is None else None)
        if input is not None:
            kw.pop("stdin")
            kw["input"] = input
        p = subprocess.run([self.bin, *map(str, args)], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=text, timeout=timeout, check=False,
                           env={**self.env, **(env or {})}, **kw)
        return Result(args, p.returncode, p.stdout, p.stderr, time.monotonic() - t)

    def popen(self, *args, env=None, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        kw.setdefault("stdout", subprocess.PIPE)
        kw.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen([self.bin, *map(str, args)], env={**self.env, **(env or {})}, **kw)

    def run(self, *args, **kw):
        """`caisson run --rm` of the default image."""
        return self("run", "--rm", *args, **kw)

    def ids(self):
        return self("ps", "-a", "-q", "--no-trunc").ok().out.split()

    def ps(self):
        return json.loads(self("ps", "-a", "--json").ok().out)

    def remove_all(self):
        for i in self.ids():
            self("rm", "-f", i)

    def processes(self):
        return processes_of(str(self.run_dir))

    # What must not be left behind.

    def leaks(self):
        found = [f"process {p}" for p in self.processes()]
        found += [f"process {p} (QEMU)" for p in sorted(set(orphan_vms()) - self.orphans)]
        for d in (str(self.run_dir), str(self.root)):
            with open("/proc/self/mountinfo", encoding="utf-8") as f:
                found += [f"mount {line.split()[4]}" for line in f if d in line]
            for b in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
                if d in b.read_text(encoding="utf-8", errors="replace"):
                    found.append(f"loop device {b}")
            with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
                found += [f"socket {line.split()[-1]}" for line in f if d in line]
        found += [f"cgroup {g}" for g in sorted(set(cgroup_dirs()) - self.cgroups)
                  if not cgroup_busy(g)]
        found += [f"file {p}" for p in files_in(self.run_dir)]
        found += [f"file {p}" for p in files_in(self.root / "images/tmp")]
        found += [f"file {p}" for p in files_in(self.root / "scratch")]
        return found

    def assert_clean(self, seconds=10):
        """What a killed command left is reclaimed by its guardian, so it may take a moment."""
        wait_for_none(self.leaks, seconds * PATIENCE)


def wait_for_none(leaks, seconds):
    end = time.monotonic() + seconds
    while found := leaks():
        if time.monotonic() > end:
            raise AssertionError("left behind:\n  " + "\n  ".join(found))
        time.sleep(0.1)


def files_in(d):
    """All but directories, lock files, and what was found out about KVM, which stay. Directories may
    go while they are listed: os.walk leaves those out."""
    found = []
    for top, dirs, files in os.walk(d):
        names = files + [n for n in dirs if os.path.islink(os.path.join(top, n))]
        found += [os.path.join(top, n) for n in names
                  if not n.endswith(".lock") and n != "kvm-probe"]
    return sorted(found)


def cgroup_dirs():
    """Of VMs of the command line's containers: caisson-caisson.ID, wherever the tree is."""
    base = pathlib.Path("/sys/fs/cgroup")
    return [str(p) for d in (base, base / "unified") for p in d.glob("caisson-caisson.*")]


def cgroup_busy(path):
    """Another test run's: it has processes, or is already gone."""
    try:
        return bool(pathlib.Path(path, "cgroup.procs").read_text(encoding="ascii").strip())
    except OSError:
        return True


def processes_of(directory):
    """Processes that mention @directory in environment, command line, cwd, root or open files."""
    found = []
    needle = directory.encode()
    for p in pathlib.Path("/proc").iterdir():
        if not p.name.isdigit() or int(p.name) in (os.getpid(), os.getppid()):
            continue
        try:
            cmdline = (p / "cmdline").read_bytes()
            hit = needle in cmdline or needle in (p / "environ").read_bytes()
            for link in ("cwd", "root", "exe"):
                hit = hit or directory in os.readlink(p / link)
            if not hit:
                hit = any(directory in os.readlink(fd) for fd in (p / "fd").iterdir())
            state = (p / "stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            continue
        if hit and state != "Z":
            found.append(f"{p.name} {cmdline.replace(bytes(1), b' ').decode(errors='replace')[:160]}")
    return found


def parents():
    """pid -> (parent's pid, name), of all processes."""
    table = {}
    for p in pathlib.Path("/proc").iterdir():
        if not p.name.isdigit():
            continue
        try:
            head, _, tail = (p / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
        except OSError:
            continue
        fields = tail.split()
        if fields[0] != "Z":
            table[int(p.name)] = (int(fields[1]), head.partition("(")[2])
    return table


def vms():
    """pid of each QEMU of ours -> pid of its caisson-vmm, None without one. QEMU is in a jail, so
    nothing but its parents tells whose it is."""
    table = parents()
    found = {}
    for pid, (up, name) in table.items():
        if not name.startswith("qemu-system"):
            continue
        try:
            if b"guest=caisson." not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                continue
        except OSError:
            continue
        while up in table and table[up][1] != "caisson-vmm":
            up = table[up][0]
        found[pid] = up if up in table else None
    return found


def orphan_vms():
    return [pid for pid, vmm in vms().items() if vmm is None]


@pytest.fixture(scope="session")
def session_root():
    """An image store for all tests, so that each image is prepared once."""
    d = pathlib.Path(tempfile.mkdtemp(prefix="caisson-root-"))
    yield d
    shutil.rmtree(d, ignore_errors=True)


@pytest.fixture
def run_dir(session_root):
    d = pathlib.Path(tempfile.mkdtemp(prefix="caisson-run-"))
    known = session_root / "kvm-probe"
    if known.exists():
        shutil.copy2(known, d)
    yield d
    if (d / "kvm-probe").exists() and not known.exists():
        shutil.copy2(d / "kvm-probe", known)
    for p in processes_of(str(d)):
        try:
            os.kill(int(p.split()[0]), signal.SIGKILL)
        except ProcessLookupError:
            pass
    shutil.rmtree(d, ignore_errors=True)


@pytest.fixture
def caisson(stage, session_root, run_dir, busybox):
    """The command line; after the test nothing may be left behind."""
    c = Caisson(stage, session_root, run_dir, busybox)
    yield c
    c.remove_all()
    c.assert_clean()


@pytest.fixture
def own_store(stage, run_dir, busybox, tmp_path):
    """The same with an image store of its own, for tests that spoil it."""
    root = tmp_path / "root"
    root.mkdir()
    c = Caisson(stage, root, run_dir, busybox)
    yield c
    c.remove_all()
    c.assert_clean()


@pytest.fixture
def detached(caisson):
    """Starts a container in the background and gives its name."""
    def start(*args, image=None, command=("sleep", "1000"), name=None):
        name = name or f"t{time.monotonic_ns()}"
        caisson("run", "-d", "--name", name, *args, image or caisson.image, *command).ok()
        return name
    return start
