"""No rule of a filter of system calls is unused: what is declared beside the code is what is called.

strace stands between the shim and caisson-vmm, and says which thread made which call.
"""

import collections
import pathlib
import re
import shutil

import pytest

import conftest

LIMIT = 200              # strace makes slow
TOP = pathlib.Path(__file__).resolve().parents[2]
LISTS = {
    "EVLOOP": "src/virtio/evloop.h", "BLK": "src/virtio/blk.h", "VSOCK": "src/virtio/vsock.h",
    "NET": "src/virtio/net.h", "CONSOLE": "src/virtio/console.h", "RNG": "src/virtio/rng.h",
    "BALLOON": "src/virtio/balloon.h", "VCPU": "src/vmm/kvm/vcpu.h", "LOOP": "src/base/loop.h",
    "QEMU": "src/vmm/qemu/qemu.h", "FS": "src/fs/fs.h", "MONITOR": "src/vmm/kvm/monitor.h",
    "RAM": "src/vmm/ram.h", "LIBC": "src/vmm/seccomp.c",
}
# A disk that is held, as for a snapshot, while requests are under way; heap and threads at their largest.
# Disks that outlast their VM, on a host without io_uring, and their reads of what its page cache has not.
RARE = {"BLK": {"poll", "fdatasync", "preadv"}, "LIBC": {"mremap", "brk", "exit"}}
# Which threads have which list.
FILES, VCPU = re.compile(r"fs(-\d+)?$"), re.compile(r"vcpu\d+$")
CALL = re.compile(r"\d+<([^>]*)> (?:<\.\.\. )?(\w+)")


def declared(name):
    text = (TOP / LISTS[name]).read_text(encoding="ascii")
    return set(re.findall(r"SYS_(\w+)", re.search(rf"{name}_SYSCALLS\b(.*?)\n\n", text, re.S).group(1)))


def used(logs):
    """Of files' threads, of vCPUs, and of all others: the calls that they made in the jail."""
    found = collections.defaultdict(set)
    for log in logs.iterdir():
        # What the process does before its filter is there does not count.
        jailed = False
        for line in log.read_text(errors="replace").splitlines():
            m = CALL.match(line)
            if not m or m.group(1).startswith("qemu"):
                continue
            jailed |= "PR_SET_SECCOMP" in line or "SECCOMP_MODE_FILTER" in line
            kind = "files" if FILES.match(m.group(1)) else "vcpu" if VCPU.match(m.group(1)) else "rest"
            if jailed:
                found[kind].add(m.group(2))
    return found


@pytest.fixture
def traced(stage, tmp_path):
    """Has the programs traced; gives where the logs will be."""
    if not shutil.which("strace"):
        pytest.skip("no strace")
    copy, logs = tmp_path / "stage", tmp_path / "logs"
    logs.mkdir()
    (copy / "bin").mkdir(parents=True)
    for p in (stage / "bin").iterdir():
        shutil.copy2(p, copy / "bin")
    (copy / "lib").symlink_to(stage / "lib")
    real = copy / "bin/caisson-vmm"
    real.rename(copy / "bin/caisson-vmm.real")
    real.write_text("#!/bin/sh\nexec strace -f -b execve -qq -Y -s 0 -e signal=none "
                    "${CAISSON_TEST_INJECT:+-e inject=$CAISSON_TEST_INJECT:error=ENOSYS} "
                    f"-o {logs}/$(date +%s%N) {real}.real \"$@\"\n", encoding="ascii")
    real.chmod(0o755)
    return copy, logs


def check(logs, *names, but=()):
    found = used(logs)
    unused = {}
    for name in names:
        left = declared(name) - found[{"FS": "files", "VCPU": "vcpu"}.get(name, "rest")]
        left -= RARE.get(name, set()) | set(but)
        if left:
            unused[name] = sorted(left)
    print({k: " ".join(sorted(v)) for k, v in found.items()})
    assert not unused, unused


def configure(tmp_path, **storage):
    f = tmp_path / f"config{len(storage)}.yaml"
    f.write_text("vm:\n  boot_timeout: 120s\nstorage:\n" +
                 "".join(f"  {k}: {v}\n" for k, v in {"disk_rate": 0, **storage}.items()), encoding="ascii")
    return {"CAISSON_CONFIG": str(f)}


DISK = ("dd if=/dev/zero of=/root/x bs=64k count=40 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; "
        "cat /root/x >/dev/null; rm /root/x; fstrim / 2>/dev/null; sync")


def scenario(caisson, tmp_path, image, logs):
    """What containers do: files of the host and of their own, streams, a template and a copy of it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.copy(TOP / "tests/e2e/fs-calls.py", tmp_path)
    env = configure(tmp_path, share_locks="true", share_file_handles="true")
    caisson("run", "-d", "--name", "box", "-v", f"{shared}:/data", "-v", f"{tmp_path}:/src:ro",
            image("python3"), "sleep", "1000", env=env, timeout=LIMIT).ok()
    assert caisson("exec", "box", "python3", "/src/fs-calls.py", "/data", env=env).ok().out == "done\n"
    caisson("exec", "box", "sh", "-c", DISK, env=env)
    caisson("pause", "box", env=env).ok()
    caisson("unpause", "box", env=env).ok()
    caisson("stop", "-t", "1", "box", env=env).ok()
    # Without io_uring, as on hosts that forbid it; once leaving a template, once from one.
    env = configure(tmp_path)
    for i in range(2):
        caisson("run", "--rm", "--name", f"plain{i}", caisson.image, "sh", "-c", DISK,
                env={**env, "CAISSON_TEST_INJECT": "io_uring_setup"}, timeout=LIMIT).ok()
    assert len(list(logs.iterdir())) == 3


def run(traced, session_root, run_dir, image, busybox, tmp_path):
    stage, logs = traced
    caisson = conftest.Caisson(stage, session_root, run_dir, busybox)
    # Images that are there are not traced.
    caisson("pull", image("python3"), timeout=LIMIT).ok()
    try:
        scenario(caisson, tmp_path, image, logs)
    finally:
        caisson.remove_all()
    caisson.assert_clean()
    return logs


def test_under_qemu(traced, session_root, run_dir, image, busybox, tmp_path):
    logs = run(traced, session_root, run_dir, image, busybox, tmp_path)
    # Devices are made before the filter is there. Handles take a right that containers rarely have.
    check(logs, "EVLOOP", "BLK", "VSOCK", "LOOP", "RAM", "FS", "LIBC",
          but={"epoll_create1", "eventfd2", "name_to_handle_at", "open_by_handle_at"})
