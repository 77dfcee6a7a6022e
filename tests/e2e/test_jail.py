"""The jail of a VM's processes, tried from within: jail-probe.c takes QEMU's place there."""

import ctypes
import errno
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

import test_vmm
from test_vmm import initrd  # noqa: F401  pylint: disable=unused-import

SYS_LANDLOCK_CREATE_RULESET = 444
FIRST, N = 1900000000, 65536
libc = ctypes.CDLL(None, use_errno=True)


def landlock():
    """The version that the host has, 0: none."""
    return max(0, libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, 0, 1))


@pytest.fixture(scope="module")
def probe():
    with tempfile.TemporaryDirectory(prefix="caisson-probe-") as d:
        os.chmod(d, 0o755)
        path = pathlib.Path(d) / "probe"
        subprocess.run(["cc", "-static", "-O1", "-o", path, test_vmm.HERE / "jail-probe.c"], check=True)
        yield path


@pytest.fixture
def vm(initrd):  # noqa: F811  pylint: disable=redefined-outer-name
    v = test_vmm.VM(initrd, "jail")
    yield v
    v.close()


def found(vm, probe, *args):
    vm.listen()
    vm.start("off", "--qemu", probe, *args, wait=False)
    words = vm.exited("start").split(": ")[-1].split()
    vm.assert_gone()
    return {k: int(v) for k, v in (w.split("=") for w in words)}


def test_from_within(vm, probe):
    got = found(vm, probe)
    print(got)
    assert FIRST <= got["uid"] < FIRST + N and got["gid"] == got["uid"] and got["groups"] == 0
    for name in ("kernel", "memory", "library", "null", "hello"):
        assert got[name] == 0, (name, got)
    # Its own end of the wire, but not what steers caisson-vmm, and nothing that is not there for it.
    assert got["control"] == errno.EACCES
    assert got["kvm"] in (errno.ENOENT, errno.EACCES)
    assert got["kernel-write"] and got["vm-new"] and got["mount"] and got["memory-new"]
    assert got["core"] == 0 and got["fds"] <= 8192 and got["threads"] <= 1024
    assert 128 << 20 <= got["file"] <= 1 << 30 and got["beyond"] == errno.EFBIG
    if landlock() < 1:
        pytest.skip("the host's kernel has no Landlock")
    assert got["vm"] == got["root"] == errno.EACCES
    if landlock() >= 4:
        assert got["tcp"] == errno.EACCES
    if landlock() >= 6:
        assert got["kill"] == 0          # caisson-vmm and QEMU are of one domain


def test_as_root(vm, probe):
    """Without user ids of its own a VM's processes are root's, without rights: the rest holds."""
    vm.uids = None
    got = found(vm, probe)
    assert got["uid"] == 0 and got["memory"] == 0 and got["hello"] == 0
    assert got["kernel-write"] and got["vm-new"] and got["mount"]


def test_two_machines_are_two_users(vm, initrd):  # noqa: F811  pylint: disable=redefined-outer-name
    other = test_vmm.VM(initrd, "jail2")
    shutil.rmtree(other.claims)
    other.claims = vm.claims
    try:
        uids = []
        for v in (vm, other):
            v.start("hang")
            for pid in (v.vmm, v.qemu):
                text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
                ids = next(x for x in text.splitlines() if x.startswith("Uid:")).split()[1:]
                assert len(set(ids)) == 1, text
                uids.append(int(ids[0]))
        assert uids[0] == uids[1] != uids[2] == uids[3]
        assert sorted(os.listdir(vm.claims)) == sorted(map(str, set(uids)))
        # Whoever is killed, and when: reclaiming gives the user id back.
        for v in (vm, other):
            v.proc.kill()
            v.proc.wait()
            v.reclaim()
            v.assert_gone()
        assert os.listdir(vm.claims) == []
    finally:
        other.close()


def test_a_kernel_that_others_may_not_read(vm, tmp_path):
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(test_vmm.devices.find_kernel().read_bytes())
    kernel.chmod(0o600)
    vm.start("off", kernel=kernel, wait=False)
    assert "cannot be read by the VM's own user" in vm.exited("start")
    vm.assert_gone()
