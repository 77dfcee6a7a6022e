"""caisson-vmm and vmm.h by way of caisson-vmm-drive: boots, deaths of every party, bad kernels.

PID 1 of the guests is guest-init.c. Nothing of the container side takes part.
"""

import glob
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

import devices

pytestmark = pytest.mark.qemu

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[1]
LIMIT = int(os.environ.get("CAISSON_TEST_TIMEOUT", "60"))


def find_drive():
    named = os.environ.get("CAISSON_VMM_DRIVE")
    found = ([pathlib.Path(named)] if named else
             list(TOP.glob("build*/**/src/vmm/caisson-vmm-drive")))
    found = [p for p in found if p.exists()]
    if not found:
        pytest.skip("caisson-vmm-drive has not been built")
    return max(found, key=lambda p: p.stat().st_mtime)


@pytest.fixture(scope="session")
def initrd():
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("no QEMU")
    d = pathlib.Path(tempfile.mkdtemp(prefix="caisson-guest-"))
    yield devices.build_initrd(HERE / "guest-init.c", d)
    shutil.rmtree(d)


def cgroup_of(name):
    return glob.glob(f"/sys/fs/cgroup/caisson-{name}-*") + \
        glob.glob(f"/sys/fs/cgroup/unified/caisson-{name}-*")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


class VM:
    """One drive process and the VM's directory."""

    def __init__(self, initrd, name):
        self.drive_path = find_drive()
        self.initrd = initrd
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"caisson-vm-{name}-"))
        # User ids that its processes take, and who has which.
        self.uids = "1900000000:65536"
        self.claims = pathlib.Path(tempfile.mkdtemp(prefix="caisson-uids-"))
        self.vmm = self.qemu = None
        self.proc = None
        self.pending = b""
        self.env = {**os.environ, "CAISSON_RUN": "/nonexistent"}
        self.listener = None

    def command(self, *args):
        return [self.drive_path, "--dir", self.dir, "--program",
                self.drive_path.with_name("caisson-vmm"),
                *(["--uids", f"{self.uids}:{self.claims}"] if self.uids else []), *map(str, args)]

    def identity(self):
        st = self.dir.stat()
        return f"{st.st_dev:x}.{st.st_ino:x}"

    def listen(self):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.dir / "vsock.sock_1030"))
        self.listener.listen(4)
        self.listener.settimeout(LIMIT)

    def popen(self, *args):
        self.pending = b""
        self.proc = subprocess.Popen(self.command(*args), stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.env, umask=0o77)

    def start(self, test="", *args, kernel=None, wait=True):
        append = f"test={test}" if test else "none"
        self.popen("--kernel", kernel or devices.find_kernel(), "--initrd", self.initrd,
                   "--memory", 128, "--accel", "tcg", "--append", append, *args)
        self.vmm = int(self.expect("spawned").split()[1])
        if wait:
            started = self.expect("started")
            self.qemu = int(re.search(r"qemu=(\d+)", started).group(1))
        return self

    def line(self, timeout=LIMIT):
        end = time.monotonic() + timeout
        while b"\n" not in self.pending:
            left = end - time.monotonic()
            assert left > 0 and select.select([self.proc.stdout], [], [], left)[0], "nothing said"
            data = os.read(self.proc.stdout.fileno(), 1 << 18)
            assert data, f"drive ended: {self.proc.stderr.read().decode()}"
            self.pending += data
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode(errors="replace")

    def expect(self, word, timeout=LIMIT):
        line = self.line(timeout)
        assert line.startswith(word), line
        return line

    def tell(self, text):
        self.proc.stdin.write(text.encode() + b"\n")
        self.proc.stdin.flush()

    def hello(self):
        self.conn, _ = self.listener.accept()
        self.conn.settimeout(LIMIT)
        self.stream = self.conn.makefile("rw")
        assert self.stream.readline().startswith("hello")
        return self.stream

    def ask(self, text):
        self.stream.write(text + "\n")
        self.stream.flush()
        return self.stream.readline().rstrip("\n").rstrip()

    def exited(self, reason, timeout=LIMIT):
        line = self.expect("exited", timeout)
        assert line.split()[1] == reason, line
        assert self.proc.wait(10) == 0
        return line.split(" ", 2)[2]

    def reclaim(self):
        r = subprocess.run(self.command("--reclaim"), stdout=subprocess.PIPE, text=True, check=False,
                           timeout=30)
        assert r.stdout.startswith("done"), r.stdout

    def assert_gone(self):
        for pid in (self.vmm, self.qemu):
            assert not pid or not alive(pid)
        assert not cgroup_of(self.dir.name)
        assert os.listdir(self.dir) == []
        assert not any(os.readlink(self.claims / n) == self.identity()
                       for n in os.listdir(self.claims))

    def close(self):
        if self.proc and self.proc.poll() is None:
            self.proc.kill()
            self.proc.wait()
        subprocess.run(self.command("--reclaim"), stdout=subprocess.DEVNULL, check=False, timeout=30)
        for d in (self.dir, self.claims):
            shutil.rmtree(d, ignore_errors=True)


@pytest.fixture
def vm(initrd, request):
    v = VM(initrd, request.node.name.replace("[", "-").replace("]", "")[:40])
    yield v
    v.close()


def test_boots_and_powers_off(vm):
    vm.start("say,off")
    assert "powered off" in vm.exited("guest")
    vm.assert_gone()


def test_talks_pauses_and_takes_disks(vm, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(f"disk {name}\n".encode().ljust(1 << 20, b"\0"))
    vm.listen()
    vm.start("hello,serve,off", "--disk", f"{tmp_path}/one:root:ro", "--shelf")
    vm.hello()
    assert vm.ask("ping") == "pong"
    assert vm.ask("disks") == f"root:2048 caisson-shelf:{1 << 43}"
    assert vm.ask("read root") == "disk one"
    assert vm.ask("write root x").startswith("error")

    assert vm.ask("read caisson-shelf") == "caisson shelf"
    vm.tell(f"attach {tmp_path}/two second")
    place = vm.expect("done").removeprefix("done ")
    assert place == f"1 {1 << 44} {1 << 20}"
    assert vm.ask(f"part {place}") == "ok"
    assert vm.ask("read part:1") == "disk two"
    assert vm.ask("write part:1 changed") == "ok"
    vm.tell(f"attach {tmp_path}/two second")
    assert "already" in vm.expect("failed")
    vm.tell("detach root")
    assert "no disk 'root'" in vm.expect("failed")
    vm.tell("detach second")
    vm.expect("done")
    assert vm.ask("write part:1 lost").startswith("error")
    assert vm.ask("unpart 1") == "ok"
    for i in range(2, 23):
        vm.tell(f"attach {tmp_path}/one d{i}")
        assert vm.ask("part " + vm.expect("done").removeprefix("done ")) == "ok"
        assert vm.ask(f"read part:{i}") == "disk one"
    assert (tmp_path / "two").read_bytes().startswith(b"changed\n")

    vm.tell("pause")
    vm.expect("done")
    vm.stream.write("ping\n")
    vm.stream.flush()
    assert not select.select([vm.conn], [], [], 0.5)[0]
    vm.tell("resume")
    vm.expect("done")
    assert vm.stream.readline() == "pong\n"

    vm.stream.write("end\n")
    vm.stream.flush()
    vm.exited("guest")
    vm.assert_gone()


def test_jail(vm):
    vm.listen()
    vm.start("hello,serve,off")
    vm.hello()
    assert vm.qemu
    for pid in (vm.vmm, vm.qemu):
        status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        field = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        for cap in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(field[cap], 16) == 0, (pid, cap, field[cap])
        assert field["NoNewPrivs"] == "1"
        for ns in ("mnt", "net", "ipc", "uts", "pid", "cgroup"):
            name = "pid_for_children" if ns == "pid" else ns
            assert os.readlink(f"/proc/{pid}/ns/{ns}") != os.readlink(f"/proc/self/ns/{name}"), ns
        root = sorted(os.listdir(f"/proc/{pid}/root"))
        assert set(root) <= {"dev", "etc", "initrd", "kernel", "lib", "lib64", "ram", "usr",
                             "vm"}, root
        assert sorted(os.listdir(f"/proc/{pid}/root/dev")) == ["null", "urandom"]
        assert os.listdir(f"/proc/{pid}/root/etc") in ([], ["ld.so.cache"])
        with pytest.raises(OSError):
            open(f"/proc/{pid}/root/vm/new", "w", encoding="ascii")
        with open(f"/proc/{pid}/limits", encoding="ascii") as f:
            assert re.search(r"Max core file size +0 +0", f.read())
    qemu = pathlib.Path(f"/proc/{vm.qemu}/status").read_text(encoding="ascii")
    assert "Seccomp:\t2" in qemu
    # One line for each of the VM's processes.
    for group in cgroup_of(vm.dir.name):
        with open(f"{group}/cgroup.procs", encoding="ascii") as f:
            assert sorted(map(int, f)) == sorted([vm.vmm, vm.qemu])
    vm.tell("shutdown")
    assert vm.line() in ("done ", "exited stopped stopped")


def test_two_of_one_id(initrd, tmp_path):
    """An id is unique in one place only: what ends the one leaves the other alone."""
    machines = []
    try:
        for place in ("a", "b"):
            v = VM(initrd, "same")
            v.dir.rmdir()
            v.dir = tmp_path / place / "same"
            v.dir.mkdir(parents=True)
            machines.append(v)
            v.listen()
            v.start("hello,serve,off")
            v.hello()
        first, second = machines
        first.reclaim()
        assert not alive(first.qemu) and not alive(first.vmm)
        assert alive(second.qemu) and second.ask("disks") == ""
    finally:
        for v in machines:
            v.close()


def test_shutdown(vm):
    vm.start("hang")
    vm.tell("shutdown")
    vm.expect("done")
    vm.exited("stopped")
    vm.assert_gone()


def test_kill(vm):
    vm.start("hang")
    vm.tell("kill")
    vm.exited("stopped")
    vm.assert_gone()


def test_qemu_dies(vm):
    vm.start("hang")
    os.kill(vm.qemu, signal.SIGKILL)
    assert "QEMU was killed by signal 9" in vm.exited("crash")
    vm.assert_gone()


def test_caisson_vmm_dies(vm):
    vm.start("hang")
    os.kill(vm.vmm, signal.SIGKILL)
    assert "killed by signal 9" in vm.exited("lost")
    vm.assert_gone()


@pytest.mark.parametrize("delay", [0, 0.003, 0.02, 0.2])
def test_starter_dies(vm, delay):
    """kill -9 of the one that started it, at any moment: reclaim finds everything."""
    vm.popen("--kernel", devices.find_kernel(), "--initrd", vm.initrd, "--append", "test=hang",
             "--accel", "tcg")
    time.sleep(delay)
    vm.proc.kill()
    vm.proc.wait()
    vm.reclaim()
    time.sleep(0.1)
    assert not [p for p in pathlib.Path("/proc").glob("[0-9]*/cwd")
                if str(vm.dir) in (os.readlink(p) if os.access(p, os.R_OK) else "")]
    vm.assert_gone()
    vm.reclaim()


def test_is_attached_to_again(vm):
    vm.listen()
    vm.start("hello,serve,off")
    vm.hello()
    vm.tell("close")
    assert vm.proc.wait(10) == 0
    assert vm.ask("ping") == "pong"
    vm.popen("--attach")
    vm.expect("spawned")
    vm.expect("started")
    vm.tell("pause")
    vm.expect("done")
    vm.tell("resume")
    vm.expect("done")
    vm.stream.write("end\n")
    vm.stream.flush()
    vm.exited("guest")
    vm.assert_gone()
    vm.popen("--attach")
    assert "no VM runs" in vm.expect("failed")


def test_panic(vm):
    vm.start("panic")
    text = vm.exited("panic")
    assert "Attempted to kill init" in text
    vm.assert_gone()


def test_flood(vm, tmp_path):
    """A guest that floods its console gets no more than its share of memory, disk and time."""
    log = tmp_path / "console"
    vm.start("say,flood", "--console", log)
    deadline = time.monotonic() + LIMIT
    while not log.exists() or log.stat().st_size < 100000:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)
    size = log.stat().st_size
    time.sleep(1)
    assert log.stat().st_size - size < 96 * 1024
    vm.tell("console")
    words = vm.expect("console").split()
    assert int(words[1]) == 64 * 1024
    assert b"flood" in bytes.fromhex(words[2])
    with open(f"/proc/{vm.vmm}/statm", encoding="ascii") as f:
        assert int(f.read().split()[5]) * 4096 < 64 << 20
    vm.tell("shutdown")
    vm.expect("done")
    vm.exited("stopped")
    vm.assert_gone()


def bad(vm, *args):
    vm.popen("--initrd", vm.initrd, "--accel", "tcg", *args)
    text = vm.expect("failed")
    assert vm.proc.wait(10) == 1
    vm.assert_gone()
    return text


def test_missing_kernel(vm):
    assert "/no/kernel" in bad(vm, "--kernel", "/no/kernel")


def test_garbage_kernel(vm, tmp_path):
    (tmp_path / "text").write_text("not a kernel")
    assert "ELF" in bad(vm, "--kernel", tmp_path / "text")
    (tmp_path / "empty").write_text("")
    assert "empty" in bad(vm, "--kernel", tmp_path / "empty")


def test_elf_that_is_no_kernel(vm):
    vm.start("off", kernel=vm.drive_path, wait=False)
    assert "PVH" in vm.exited("start")
    vm.assert_gone()


def test_damaged_kernel(vm, tmp_path):
    """The head of a kernel and then nothing: whatever it does, it ends or is ended."""
    (tmp_path / "vmlinux").write_bytes(devices.find_kernel().read_bytes()[:1 << 20])
    vm.start("off", kernel=tmp_path / "vmlinux", wait=False)
    line = vm.line()
    if line.startswith("started"):
        vm.tell("kill")
        line = vm.line()
    assert line.startswith("exited")
    vm.proc.wait(10)
    vm.assert_gone()


def test_qemu_that_is_none(vm, tmp_path):
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    vm.start("off", "--qemu", fake, wait=False)
    assert str(fake) in vm.exited("start")
    vm.assert_gone()


def test_q35(vm, tmp_path):
    (tmp_path / "one").write_bytes(b"disk one\n".ljust(1 << 20, b"\0"))
    vm.listen()
    vm.start("hello,serve,off", "--machine", "q35", "--disk", f"{tmp_path}/one:root:ro", "--shelf")
    vm.hello()
    assert vm.ask("read root") == "disk one"
    vm.stream.write("end\n")
    vm.stream.flush()
    vm.exited("guest")
    vm.assert_gone()


def test_memory(vm):
    """Idle, without the guest's memory, half of what shim and caisson-vmm may have together."""
    vm.listen()
    vm.start("hello,serve,off")
    vm.hello()
    with open(f"/proc/{vm.vmm}/smaps", encoding="ascii") as f:
        smaps = f.read()
    if "libasan" in smaps:
        pytest.skip("a build with sanitizers")
    pss = 0
    guest = False
    for line in smaps.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            guest = line.rstrip().endswith("/ram/memory")
        elif line.startswith("Pss:") and not guest:
            pss += int(line.split()[1])
    print(f"PSS of caisson-vmm: {pss} KiB")
    assert pss < 2048


def test_share(vm, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "here").write_text("text")
    vm.listen()
    vm.start("hello,serve,off", "--share", f"{shared}:data")
    vm.hello()
    assert vm.ask("list data") == "here"
    assert vm.ask("list other").startswith("error")
    # The main thread and QEMU have no capabilities all the same, and there is no /proc.
    for pid in (vm.vmm, vm.qemu):
        with open(f"/proc/{pid}/status", encoding="ascii") as f:
            assert "CapEff:\t0000000000000000" in f.read()
    assert os.listdir(f"/proc/{vm.qemu}/root/proc") == []
    vm.stream.write("end\n")
    vm.stream.flush()
    vm.exited("guest")
    vm.assert_gone()
