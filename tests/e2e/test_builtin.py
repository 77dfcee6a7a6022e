"""The built-in monitor, in the testbed: what test_vmm.py asks of any machine, and what no other test asks.

Guests of guests under emulation are slow: few tests, and one testbed for them all. Containers, volumes and
templates are those of other files' tests: the ones marked `both` run in the testbed, too.
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
import kvmtrace
import test_network as net
import test_vmm
from conftest import build_image, stage_dir
from test_network import host, image, pod, templates  # noqa: F401  pylint: disable=unused-import

OPTIONS = {"memory": 2048, "timeout": 1200}


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


# What a boot of guest-init takes, and somewhat more. The kernel's own are most of it.
BUDGET_CALLS = 480
BUDGET_BYTES = 64 << 10
BUDGET_EXITS = {
    "npf": 2300,         # memory touched for the first time, in pieces of 4 KiB or 2 MiB
    "cpuid": 260,
    "msr": 1500,         # the timer is one: the longer it takes, the more
    "write_cr4": 50,
    "0xfec00000": 660,   # the I/O APIC
    "port 0x21": 25, "port 0xa1": 20, "port 0x20": 6, "port 0xa0": 6,
}
BUDGET_DEVICES = 420     # accesses to registers of all virtio devices
BUDGET_REST = 60
IDLE = 10
BUDGET_WAKES_A_SECOND = 3


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

    def test_boot_costs_the_host_little(self, vm):
        """From exec to PID 1's first word, counted: calls and bytes of ours, the guest's exits by kind."""
        vm.listen()
        with kvmtrace.Trace("kvm/kvm_exit", "kvm/kvm_mmio", "kvm/kvm_pio",
                            "raw_syscalls/sys_enter") as trace:
            vm.start("hello,hang", "--shelf", wait=False)
            vm.hello()
            trace.mark("hello")
        boot = trace.until("hello")
        calls, exits = kvmtrace.calls(boot, "caisson-vmm"), kvmtrace.exits(boot)
        io = pathlib.Path(f"/proc/{vm.vmm}/io").read_text(encoding="ascii")
        read = int(re.search(r"rchar: (\d+)", io).group(1))
        files = devices.find_kernel().stat().st_size + pathlib.Path(vm.initrd).stat().st_size
        seen = ", ".join(f"{k} {v}" for k, v in exits.most_common())
        print(f"{calls} calls, {read - files} bytes besides kernel and initrd, {sum(exits.values())} exits: {seen}")
        assert calls <= BUDGET_CALLS
        assert read - files <= BUDGET_BYTES
        rest = exits.copy()
        for kind, limit in BUDGET_EXITS.items():
            assert rest.pop(kind, 0) <= limit, (kind, seen)
        devs = sum(rest.pop(k) for k in list(rest) if k.startswith("0xc00"))
        assert devs <= BUDGET_DEVICES, seen
        assert sum(rest.values()) <= BUDGET_REST, seen

    def test_idle_wakes_nobody(self, vm):
        """An agent with nothing to do: threads of ours sleep, the guest's processor nearly always."""
        vm.listen()
        vm.initrd = stage_dir() / "lib/caisson/initrd.cpio"
        vm.start(wait=False)
        conn, _ = vm.listener.accept()
        time.sleep(6)

        def switches():
            found = {}
            for task in pathlib.Path(f"/proc/{vm.vmm}/task").iterdir():
                text = (task / "status").read_text(encoding="ascii")
                found[task.name] = (re.search(r"Name:\s+(\S+)", text).group(1),
                                    int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", text).group(1)))
            return found

        before = switches()
        time.sleep(IDLE)
        woken = {n: v - before[t][1] for t, (n, v) in switches().items()}
        conn.close()
        print(woken)
        assert woken.pop("vcpu0") <= IDLE * BUDGET_WAKES_A_SECOND, woken
        # The guest's kernel asks for random numbers, and reports free memory, now and then.
        assert woken.pop("rng") + woken.pop("balloon") <= 6, woken
        assert not any(woken.values()), woken

    def test_grows_while_it_runs(self, vm):
        """Processors and memory that the guest boots without are there when it wants them."""
        vm.listen()
        vm.start("hello,serve,off", "--vcpus-max", 3, "--memory-max", 384, wait=False)
        vm.hello()
        before = vm.ask("size").split()
        assert before[0] == "1" and int(before[1]) < 128
        vm.expect("started")
        vm.tell("resize 3 256")
        vm.expect("done")
        for cpu in (1, 2):
            assert vm.ask(f"put /sys/devices/system/cpu/cpu{cpu}/online 1") == "ok"
        assert vm.ask(f"put /sys/devices/system/memory/probe {128 << 20:#x}") == "ok"
        assert vm.ask("put /sys/devices/system/memory/memory1/state online").startswith(("ok", "error"))
        after = vm.ask("size").split()
        assert after[0] == "3" and 128 <= int(after[1]) - int(before[1]) + 8 <= 136, after
        vm.tell("resize 4 256")
        assert "at most 3" in vm.expect("failed")
        assert vm.ask("put /sys/devices/system/cpu/cpu1/online 0") == "ok"
        assert vm.ask("size").split()[0] == "2"

    def test_memory_of_huge_pages(self, vm):
        """Taken at the start; without enough of them the machine is not made, and it is said why."""
        pages = pathlib.Path("/proc/sys/vm/nr_hugepages")
        pages.write_text("0", encoding="ascii")
        vm.start("hang", "--hugepages", wait=False)
        assert "the host has not 64 of 2 MiB free" in vm.exited("start")
        vm.reclaim()
        pages.write_text("64", encoding="ascii")
        try:
            vm.start("say,off", "--hugepages", wait=False)
            vm.expect("started")
            free = pathlib.Path("/proc/meminfo").read_text(encoding="ascii")
            assert re.search(r"HugePages_Free:\s+0\n", free), free
            vm.exited("guest")
        finally:
            pages.write_text("0", encoding="ascii")

    def test_panic(self, vm):
        test_vmm.test_panic(vm)

    def test_a_panic_is_the_kernels_word(self, vm):
        """And not what is written on the console."""
        vm.start("feign,off")
        assert "powered off" in vm.exited("guest")

    def test_caisson_vmm_dies(self, vm):
        test_vmm.test_caisson_vmm_dies(vm)

    def test_what_it_cannot_hold_is_said(self, vm):
        vm.popen("--kernel", devices.find_kernel(), "--machine", "builtin", "--accel", "tcg")
        assert "the built-in monitor cannot run this: it needs KVM" in vm.expect("failed")


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
