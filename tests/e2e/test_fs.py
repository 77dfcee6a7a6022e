"""Shared directories: POSIX behaviour in real guests, and guests that mean harm.

The behaviour is tested by fs-posix.c in guests of each caching mode, and through `caisson run -v` in the
jail; hostile requests come from fuseclient.py, which needs no guest.
"""

import concurrent.futures
import errno
import fcntl
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import threading
import time

import pytest

import fuseclient as fuse
from devices import HERE, Machine
from fuseclient import FuseClient
from in_testbed import on_kvm

CASES = ["permissions", "sticky", "ownership", "set_user_id", "group_directories", "masks", "acls",
         "errors", "times", "birth", "link_counts", "replacing", "sockets", "appends", "maps", "direct",
         "temporary"]
MODES = ["auto", "never", "always"]
# docs/virtio-fs.md says why: with gathered writes some times are by the guest's clock, some by the host's.
DIFFERENT = {("always", "times")}
# A machine has room for a few shares: two machines, with shares by these options.
BY_MODE = {"auto": ["queues=2"], "never": ["cache=never"], "always": ["cache=always", "writeback", "queues=2"],
           "locks": ["locks"]}
BY_LIMIT = {"map": ["xattrmap"], "few": ["fds=300"], "handles": ["fds=300", "handles"],
            "mounts": ["submounts"]}


@pytest.fixture(scope="module")
def where():
    with tempfile.TemporaryDirectory(prefix="caisson-fs-", dir="/var/tmp") as d:
        for name in [*BY_MODE, *BY_LIMIT]:
            os.mkdir(f"{d}/{name}")
        for name in ["few", "handles"]:
            for i in range(1500):
                pathlib.Path(d, name, f"n{i}").touch()
        os.mkdir(f"{d}/mounts/small")
        yield pathlib.Path(d)


def machine(where, shares, **kw):
    m = Machine([("fs", where / name, *options) for name, options in shares.items()], guest="fs-posix.c", **kw)
    for i, name in enumerate(shares):
        assert m(f"mount share{i + 1} /{name}") == "ok"
    return m


@pytest.fixture(scope="module")
def vm(where):
    with machine(where, BY_MODE, smp=2) as m:
        yield m


@pytest.fixture(scope="module")
def limits(where):
    """On the host, a small tmpfs is mounted beneath the last share."""
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
              f'mount -t tmpfs -o size=1m,mode=755 small {where}/mounts/small && exec "$@"', "sh"]
    with machine(where, BY_LIMIT, prefix=prefix) as m:
        yield m


@pytest.mark.parametrize("mode,case", [(m, c) for m in MODES for c in CASES if (m, c) not in DIFFERENT])
def test_posix(vm, where, mode, case):
    assert vm(f"{case} /{mode}") == "ok"
    assert not os.listdir(where / mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_changes(vm, where, mode, seed):
    assert vm(f"fsx /{mode} {seed}") == "ok"
    assert not os.listdir(where / mode)


def requests(vm, mode):
    """How many of each opcode the share has had."""
    device = vm.backends[1 + [*BY_MODE].index(mode)]
    device.stdin.write("requests\n")
    device.stdin.flush()
    return {int(op): int(n) for op, n in (x.split(":") for x in device.stdout.readline().split())}


# Of each small file, besides GETATTR of the directory, which the last one changed. To be made it is LOOKUP, CREATE, GETXATTR for
# capabilities, WRITE, and RELEASE; where writes are gathered its times are set at the end. To be read it is LOOKUP and READ,
# and what an open means where it means anything.
BUDGETS = {"auto": {"make": 5, "read": 4, "remove": 2}, "always": {"make": 6, "read": 2, "remove": 2}}


@pytest.mark.parametrize("mode", BUDGETS)
def test_requests_of_small_files(vm, mode):
    n, costs = 40, {}
    for what in ["make", "read", "list", "list", "remove"]:
        before = requests(vm, mode)
        assert vm(f"{what}_small /{mode} {n}") == "ok"
        after = requests(vm, mode)
        costs[what] = {op: k - before.get(op, 0) for op, k in after.items()
                       if op not in (fuse.FORGET, fuse.BATCH_FORGET) and k > before.get(op, 0)}
    # A second on a slow machine is soon over: then attributes are asked for again.
    for what, budget in BUDGETS[mode].items():
        assert sum(costs[what].values()) - costs[what].get(fuse.GETATTR, 0) <= n * budget + 8, f"{what}: {costs}"
        assert mode == "auto" or costs[what].get(fuse.GETATTR, 0) <= n, f"{what}: {costs}"
        assert costs[what].get(fuse.FLUSH, 0) <= 1, f"{what}: {costs}"
    assert mode == "auto" or not {fuse.OPENDIR, fuse.READDIR, fuse.READDIRPLUS} & set(costs["list"]), costs["list"]


def test_locks_are_the_hosts(vm, where):
    with open(where / "locks/file", "w+", encoding="ascii") as f:
        assert vm("lock /locks file") == "ok"
        with pytest.raises(BlockingIOError):
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert vm("unlock /locks") == "ok"
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert "Resource temporarily unavailable" in vm("lock /locks file")
        fcntl.lockf(f, fcntl.LOCK_UN)
        assert vm("flock /locks file") == "ok"
        with pytest.raises(BlockingIOError):
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert vm("unlock /locks") == "ok"
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_waits_for_a_lock_holds_up_nobody(vm):
    assert vm("waiting_lock /locks") == "ok"


def test_waiting_for_the_hosts_lock(vm, where):
    with open(where / "locks/file", "w+", encoding="ascii") as f:
        fcntl.lockf(f, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, lambda: fcntl.lockf(f, fcntl.LOCK_UN))
        timer.start()
        begin = time.monotonic()
        assert vm("await_lock /locks file") == "ok"
        assert time.monotonic() - begin > 0.4
        timer.join()


def test_attributes_of_the_guests_root(limits, where):
    assert limits("attributes_of_root /map") == "ok"
    assert limits("overlay /map") == "ok"
    found = {n for d, _, files in os.walk(where / "map") for x in [d, *(f"{d}/{f}" for f in files)]
             for n in os.listxattr(x, follow_symlinks=False)}
    assert found and all(n.startswith("user.caisson.trusted.overlay.") for n in found)


def test_mounts_beneath_are_mounts_in_the_guest(limits):
    assert limits("submount /mounts small") == "ok"
    for case in ["permissions", "masks", "acls"]:
        assert limits(f"{case} /mounts/small") == "ok"


def test_a_full_disk(limits):
    assert limits("fill_up /mounts/small") == "ok"


def test_too_many_inodes_is_a_clean_error(limits):
    assert limits("many /few 1000") == "Too many open files in system"
    assert limits("many /few 100") == "ok"
    # By file handle they need no descriptors.
    assert limits("many /handles 1400") == "ok"
    pid = limits.backends[1 + [*BY_LIMIT].index("handles")].pid
    assert len(os.listdir(f"/proc/{pid}/fd")) < 400


def test_the_jail_lets_all_of_it_through(caisson, tmp_path):
    """Every system call that a request leads to must be in the filter."""
    program = tmp_path / "posix"
    subprocess.run(["cc", "-static", "-D_GNU_SOURCE", "-Os", "-o", program, HERE / "fs-posix.c"], check=True)
    data = tmp_path / "data"
    data.mkdir()
    r = caisson.run("-v", f"{data}:/data", "-v", f"{program}:/posix:ro", caisson.image,
                    "/posix", "/data").out
    results = dict(line.split(": ", 1) for line in r.splitlines())
    assert set(results) == {*CASES, "fsx"}
    assert {k: v for k, v in results.items() if v != "ok"} == {}
    assert not os.listdir(data)


def test_settings_reach_the_guest(caisson, tmp_path):
    """Of the shared directories: locks are the host's, and nothing is cached."""
    data = tmp_path / "data"
    data.mkdir()
    subprocess.run(["cc", "-static", "-D_GNU_SOURCE", "-Os", "-o", data / "posix", HERE / "fs-posix.c"], check=True)
    (data / "file").write_text("old")
    config = tmp_path / "config.yaml"
    config.write_text("vm:\n  boot_timeout: 120s\nstorage:\n  share_cache: never\n  share_locks: true\n"
                      "  share_file_handles: true\n")
    with open(data / "file", "r+", encoding="ascii") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        p = caisson.popen("run", "--rm", "-v", f"{data}:/data", caisson.image, "sh", "-c",
                          "/data/posix /data flock file; touch /data/started; "
                          "until [ $(cat /data/file) = new ]; do :; done",
                          env={"CAISSON_CONFIG": str(config)}, text=True)
        while not (data / "started").exists():
            assert p.poll() is None
            time.sleep(0.05)
        (data / "file").write_text("new")
        out, err = p.communicate(timeout=60)
        assert (p.returncode, err) == (0, "") and "Resource temporarily unavailable" in out


def cmdline(p):
    try:
        return (p / "cmdline").read_bytes() + (p / "environ").read_bytes()
    except OSError:
        return b""


def test_no_descriptor_of_the_server_leads_to_the_host(caisson, tmp_path):
    """Even the process itself, taken over, finds nothing but its jail above a share."""
    (tmp_path / "data").mkdir()
    name = caisson("run", "-d", "-v", f"{tmp_path}/data:/data", caisson.image, "sleep", "1000").ok().out.strip()
    try:
        pids = [p.name for p in pathlib.Path("/proc").iterdir() if p.name.isdigit() and
                str(caisson.run_dir).encode() in cmdline(p) and b"/caisson-vmm\0" in cmdline(p)]
        shares = 0
        for link in [f for pid in pids for f in pathlib.Path(f"/proc/{pid}/fd").iterdir() if f.is_dir()]:
            fd = os.open(link, os.O_PATH)
            top = os.open("/".join([".."] * 20), os.O_RDONLY, dir_fd=fd)
            names = os.listdir(top)
            os.close(fd)
            os.close(top)
            assert not {"root", "home", "sys", "boot"} & set(names), (os.readlink(link), names)
            shares += "share0" in names
        assert shares
    finally:
        caisson("rm", "-f", name).ok()


@pytest.mark.both
def test_files_mapped_into_the_guest(caisson, tmp_path):
    """With a window (DAX) the guest of the built-in monitor reads and writes the host's page cache; QEMU has none."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "big").write_bytes(bytes(3 << 20) + b"old" + bytes(1 << 20))
    (data / "small").write_text("small")
    config = tmp_path / "config.yaml"
    config.write_text("vm:\n  boot_timeout: 240s\nstorage:\n  share_dax: 64MiB\n")
    script = ("exec 3</data/big; at() { dd if=/proc/self/fd/3 bs=1 skip=3145728 count=3 2>/dev/null; }; "
              "cat /data/small; at; until [ $(at) = new ]; do sleep 0.1; done; "
              "printf own | dd of=/data/big bs=1 seek=3145728 conv=notrunc 2>/dev/null; "
              "printf tail >>/data/big; truncate -s 3145735 /data/big; wc -c </data/big; "
              "touch /data/wrote; until [ -e /data/end ]; do sleep 0.1; done")
    with open(data / "big", "r+b") as f:
        p = caisson.popen("run", "--rm", "-v", f"{data}:/data", caisson.image, "sh", "-c", script,
                          env={"CAISSON_CONFIG": str(config)}, text=True, stdout=subprocess.PIPE)
        out = p.stdout.read(8)
        assert out == "smallold", p.stderr.read()
        maps = [m for q in pathlib.Path("/proc").iterdir() if str(caisson.run_dir).encode() in cmdline(q)
                for m in (q / "maps").read_text().splitlines()]
        assert bool([m for m in maps if m.endswith("/big")]) == on_kvm()
        assert not [m for m in maps if m.endswith("/small")]
        f.seek(3 << 20)
        f.write(b"new")
        f.flush()
        while not (data / "wrote").exists():
            assert p.poll() is None
            time.sleep(0.05)
        f.seek(3 << 20)
        assert f.read() == b"own" + bytes(4)
        (data / "end").touch()
        assert p.stdout.read().split() == ["3145735"]
        assert p.wait(60) == 0


# ---- hostile guests ----

@pytest.fixture
def share(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    d = tmp_path / "share"
    d.mkdir()
    (d / "file").write_text("content")
    (d / "dir").mkdir()
    os.symlink("../outside", d / "link")
    os.mkfifo(d / "fifo")
    return d


def untouched(share):
    outside = share.parent / "outside"
    return os.listdir(outside) == ["secret"] and (outside / "secret").read_text() == "secret" and \
        sorted(os.listdir(share.parent)) == ["outside", "share"]


def test_requests_that_make_no_sense(share):
    rnd = random.Random(7)
    with FuseClient(share) as c:
        assert c.init()[0] == 0
        assert c.raw(b"") is None or True
        for length in [1, 39, 40, 41]:
            c.raw(bytes(length))
        for opcode in [*range(1, 54), 4096, 0xffffffff]:
            if opcode == fuse.DESTROY:
                continue
            for node in [0, 1, 2, 0xffffffffffffffff]:
                for n in [0, 3, 8, 64, 300]:
                    c.request(opcode, node, rnd.randbytes(n), room=rnd.choice([0, 8, 16, 20, 500, 65536]))
            if opcode == fuse.INIT:
                assert c.init()[0] == 0
        assert c.init()[0] == 0
        node = c.lookup(1, b"file")
        assert c.read(node, c.open(node)) == b"content"
    assert untouched(share)


def test_chains_that_make_no_sense(share):
    for damage in ["loop", "outside", "huge", "head", "indirect", "jump"]:
        with FuseClient(share, "queues=2", queues=2) as c:
            assert c.init()[0] == 0
            base = fuse.STRIDE + fuse.DATA
            if damage == "loop":
                c.descriptor(1, 0, base, 40, 1, 1)
                c.descriptor(1, 1, base, 40, 1, 0)
            elif damage == "outside":
                c.descriptor(1, 0, fuse.MEMORY - 8, 64, 0, 0)
            elif damage == "huge":
                c.descriptor(1, 0, base, 0xffffffff, 0, 0)
            elif damage == "indirect":
                c.descriptor(1, 0, base, 15, 4, 0)
            elif damage == "jump":
                c.descriptor(1, 0, base, 40, 1, 999)
            c.offer(1, 5000 if damage == "head" else 0)
            time.sleep(0.05)
            # That queue is lost; the other goes on, and so does the device.
            assert c.request(fuse.GETATTR, 1, bytes(16), q=2)[0] == 0
    assert untouched(share)


@pytest.mark.parametrize("name", [b"..", b".", b"", b"/", b"../outside", b"dir/..", b"/etc/passwd",
                                  b"dir/../../outside/secret", b"link/secret"])
def test_names_that_lead_out(share, name):
    with FuseClient(share) as c:
        c.init()
        old, new = b"file", b"moved"
        for op, node, args in [
                (fuse.LOOKUP, 1, name + b"\0"), (fuse.UNLINK, 1, name + b"\0"),
                (fuse.RMDIR, 1, name + b"\0"), (fuse.MKDIR, 1, struct.pack("<II", 0o755, 0) + name + b"\0"),
                (fuse.MKNOD, 1, struct.pack("<IIII", 0o100644, 0, 0, 0) + name + b"\0"),
                (fuse.SYMLINK, 1, name + b"\0target\0"),
                (fuse.CREATE, 1, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + name + b"\0"),
                (fuse.RENAME, 1, struct.pack("<Q", 1) + old + b"\0" + name + b"\0"),
                (fuse.RENAME, 1, struct.pack("<Q", 1) + name + b"\0" + new + b"\0"),
                (fuse.LINK, 1, struct.pack("<Q", c.lookup(1, b"file")) + name + b"\0")]:
            assert c.request(op, node, args)[0] == errno.EINVAL
    assert untouched(share)


def test_links_and_pipes_are_not_opened(share):
    with FuseClient(share) as c:
        c.init()
        link = c.lookup(1, b"link")
        with pytest.raises(OSError) as e:
            c.lookup(link, b"secret")
        assert e.value.errno == errno.ENOTDIR
        for name in [b"link", b"fifo"]:
            with pytest.raises(OSError) as e:
                c.open(c.lookup(1, name))
            assert e.value.errno == errno.ENXIO
    assert untouched(share)


def test_a_host_that_renames_directories_meanwhile(share):
    """A directory of the share turns into a link that leads out, and back, thousands of times."""
    outside = share.parent / "outside"
    (share / "dir/secret").write_text("inside")
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.rename(share / "dir", share / "aside")
            os.symlink("../outside", share / "dir")
            os.unlink(share / "dir")
            os.rename(share / "aside", share / "dir")
    with FuseClient(share) as c:
        c.init()
        t = threading.Thread(target=swap)
        t.start()
        seen = set()
        try:
            end = time.monotonic() + 3
            while time.monotonic() < end:
                try:
                    d = c.lookup(1, b"dir")
                    f = c.lookup(d, b"secret")
                    fh = c.open(f, os.O_RDWR)
                    seen.add(c.read(f, fh))
                    c.write(f, fh, b"inside")
                    c.request(fuse.CREATE, d, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"made\0")
                    c.request(fuse.UNLINK, d, b"made\0")
                except OSError as e:
                    seen.add(e.errno)
                c.request(fuse.DESTROY, 0)
                c.init()
        finally:
            stop.set()
            t.join()
        assert seen <= {b"inside", errno.ENOENT, errno.ENOTDIR}
        assert b"inside" in seen
    assert sorted(os.listdir(outside)) == ["secret"] and (outside / "secret").read_text() == "secret"


def test_a_guest_that_wants_all_descriptors(share):
    for i in range(200):
        (share / f"n{i}").touch()
    with FuseClient(share, "fds=100") as c:
        c.init()
        idle, node = c.fds(), c.lookup(1, b"file")
        handles = []
        with pytest.raises(OSError) as e:
            while True:
                handles.append(c.open(node))
        assert e.value.errno == errno.ENFILE and len(handles) < 100
        with pytest.raises(OSError) as e:
            c.lookup(1, b"n1")
        assert e.value.errno == errno.ENFILE
        assert c.fds() <= idle + 100
        for fh in handles:
            c.request(fuse.RELEASE, node, struct.pack("<QIIQ", fh, 0, 0, 0))
        nodes = [c.lookup(1, b"n%d" % i) for i in range(50)]
        for n in nodes:
            c.forget(n, 1 << 60)
        c.forget(1, 1 << 60)
        c.forget(node, 1)
        end = time.monotonic() + 5
        while c.fds() != idle:
            assert time.monotonic() < end, (c.fds(), idle)
        c.request(fuse.DESTROY, 0)
        assert c.fds() == idle


def test_several_queues_at_once(share):
    """All threads work on the same few inodes, which are forgotten under each other's feet."""
    with FuseClient(share, "queues=4", "locks", "handles", queues=4) as c:
        c.init()

        def work(q):
            rnd = random.Random(q)
            for _ in range(400):
                name = b"q%d" % rnd.randrange(3)
                op = rnd.randrange(7)
                args = {0: (fuse.LOOKUP, 1, name + b"\0"),
                        1: (fuse.CREATE, 1, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + name + b"\0"),
                        2: (fuse.UNLINK, 1, name + b"\0"),
                        3: (fuse.GETATTR, rnd.randrange(12), bytes(16)),
                        4: (fuse.READ, 1, struct.pack("<QQIIQII", rnd.randrange(20), 0, 100, 0, 0, 0, 0)),
                        5: (fuse.RELEASE, 1, struct.pack("<QIIQ", rnd.randrange(20), 0, 0, 0)),
                        6: (fuse.FORGET, rnd.randrange(12), struct.pack("<Q", 2))}[op]
                data = struct.pack("<IIQQIIIHH", 40 + len(args[2]), args[0], 9, args[1], 0, 0, 1, 0, 0) + args[2]
                c.raw(data, q=q, room=0 if op == 6 else 4096)
            return True
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(1, 5)))
        assert c.init()[0] == 0
        assert c.request(fuse.GETATTR, 1, bytes(16))[0] == 0
    assert untouched(share)
