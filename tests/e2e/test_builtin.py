"""The built-in monitor, in the testbed: what test_vmm.py asks of any machine, and containers.

Guests of guests under emulation are slow: few tests, and one testbed for them all.
"""

import atexit
import os
import pathlib
import re
import shutil
import tempfile
import time

import pytest

import devices
import test_network as net
import test_vmm
from conftest import build_image, stage_dir
from test_network import host, image, pod, templates  # noqa: F401  pylint: disable=unused-import

OPTIONS = {"memory": 2048, "timeout": 400}


def prepare_testbed():
    d = pathlib.Path(tempfile.mkdtemp(prefix="caisson-guest-"))
    atexit.register(shutil.rmtree, d, ignore_errors=True)
    env = {"CAISSON_TEST_INITRD": str(devices.build_initrd(test_vmm.HERE / "guest-init.c", d)),
           "CAISSON_TEST_TIMEOUT": "120", "CAISSON_TEST_IMAGE_busybox": build_image("busybox")}
    # Sanitizers under two layers of emulation are no test of anything.
    drive = stage_dir().parent / "src/vmm/caisson-vmm-drive" if stage_dir() else None
    if drive and drive.exists():
        env["CAISSON_VMM_DRIVE"] = str(drive)
    return env


class Builtin(test_vmm.VM):
    """As any other, but without a QEMU."""

    def start(self, test="", *args, wait=True, **kw):
        super().start(test, *args, "--accel", "kvm", "--machine", "builtin", wait=wait, **kw)
        assert not self.qemu
        return self


def resident_besides_guest(pid):
    """KiB."""
    total, guest = 0, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text(encoding="ascii").splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            guest = "/memory" in line
        elif line.startswith("Rss:") and not guest:
            total += int(line.split()[1])
    return total


def qemus():
    return [p for p in pathlib.Path("/proc").glob("[0-9]*/comm")
            if p.read_text(encoding="utf-8").startswith("qemu")]


@pytest.fixture
def vm():
    v = Builtin(os.environ["CAISSON_TEST_INITRD"], "builtin")
    yield v
    v.close()


@pytest.mark.testbed(**OPTIONS)
class TestMachine:
    def test_talks_pauses_and_takes_disks(self, vm, tmp_path):
        test_vmm.test_talks_pauses_and_takes_disks(vm, tmp_path)

    def test_is_attached_to_again_and_jailed(self, vm):
        """The jail of a machine without QEMU holds the VM's directory and its memory, no more."""
        vm.start("hang")
        status = pathlib.Path(f"/proc/{vm.vmm}/status").read_text(encoding="ascii")
        field = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        for cap in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(field[cap], 16) == 0, (cap, field[cap])
        assert sorted(os.listdir(f"/proc/{vm.vmm}/root")) == ["ram", "vm"]
        for task in pathlib.Path(f"/proc/{vm.vmm}/task").iterdir():
            text = (task / "status").read_text(encoding="ascii")
            assert "Seccomp:\t2" in text, text
            assert "CapEff:\t0000000000000000" in text, text
        assert resident_besides_guest(vm.vmm) <= 3 << 10
        vm.tell("close")
        assert vm.proc.wait(10) == 0
        vm.popen("--attach")
        vm.expect("spawned")
        vm.expect("started machine=builtin accel=kvm")
        vm.tell("pause")
        vm.expect("done")
        vm.tell("shutdown")
        vm.expect("done")
        vm.exited("stopped")
        vm.assert_gone()

    def test_boots_with_few_exits(self, vm):
        """From the first instruction to the end; a small guest's boot has no business with us."""
        vm.start("say,off", "--debug")
        vm.exited("guest")
        log = vm.proc.stderr.read().decode(errors="replace")
        found = re.search(r"exits: io (\d+), mmio (\d+), interrupted (\d+), other (\d+)", log)
        assert found, log
        io, mmio, interrupted, other = map(int, found.groups())
        assert io <= 40 and mmio <= 600 and interrupted <= 40 and other == 0, found.group(0)

    def test_panic(self, vm):
        test_vmm.test_panic(vm)

    def test_caisson_vmm_dies(self, vm):
        test_vmm.test_caisson_vmm_dies(vm)

    def test_what_it_cannot_hold_is_said(self, vm):
        vm.popen("--kernel", devices.find_kernel(), "--machine", "builtin", "--accel", "tcg")
        assert "the built-in monitor cannot run this: it needs KVM" in vm.expect("failed")


@pytest.mark.testbed(**OPTIONS)
def test_a_container(caisson, tmp_path):
    """Two processors, a shared directory, exit codes; no QEMU in sight."""
    config = tmp_path / "config.yaml"
    config.write_text("vm:\n  machine: builtin\n  boot_timeout: 120s\n", encoding="ascii")
    env = {"CAISSON_CONFIG": str(config)}
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "in").write_text("from the host", encoding="ascii")
    script = "nproc; cat /data/in; echo from the guest >/data/out; exit 5"
    r = caisson("run", "--rm", "--cpus", "2", "-v", f"{shared}:/data", caisson.image, "sh", "-c",
                script, env=env)
    assert r.code == 5, r
    assert r.out.split("\n") == ["2", "from the host"], r
    assert (shared / "out").read_text(encoding="ascii") == "from the guest\n"
    assert not qemus()


def images_of(caisson):
    d = pathlib.Path(caisson.root) / "templates"
    return sorted(p.name for p in d.iterdir()) if d.exists() else []


@pytest.mark.testbed(**OPTIONS)
def test_a_template(own_store, tmp_path):
    """The first container's machine is saved, others go on from it; each is one of its own."""
    config = tmp_path / "config.yaml"
    config.write_text("vm:\n  machine: builtin\n  boot_timeout: 120s\n", encoding="ascii")
    env = {"CAISSON_CONFIG": str(config)}
    script = "cat /proc/sys/kernel/random/uuid /etc/hostname; date +%s; nproc"
    seen = []
    for n in range(3):
        before = time.time()
        r = own_store.run("--name", f"c{n}", "--cpus", "2", own_store.image, "sh", "-c", script,
                          env=env).ok()
        uuid, name, now, cpus = r.out.split()
        assert cpus == "2" and before - 2 <= float(now) <= time.time() + 2, r
        seen += [uuid, name]
        assert len(images_of(own_store)) == 1
    assert len(set(seen)) == len(seen), seen
    assert not qemus()


@pytest.mark.testbed(**OPTIONS)
def test_a_network_card(host, pod):  # noqa: F811  pylint: disable=redefined-outer-name
    """The pod's network as CNI left it, over a tap with its offloads; two vCPUs, so two queues."""
    net.configure(host, "  machine: builtin\n  vcpus: 2\n")
    pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
    pod.do("ip route add default via 10.9.0.1")
    t = net.start(host, pod)
    net.ping(t, "10.9.0.1")
    net.upload(t, "10.9.0.1", 1 << 18)
    assert not qemus()
    net.stop(t)
    net.clean(pod, "eth0")
