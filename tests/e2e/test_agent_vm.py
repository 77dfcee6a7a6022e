"""The agent as PID 1 of a virtual machine, on our kernel and our vsock and block devices."""

import contextlib
import os
import pathlib
import socket
import subprocess
import threading
import time

import pytest

import agentspec
from agentclient import METHODS, TOP, Client
from devices import HERE, Machine
from test_agent import fails, find_agent, read_all

pytestmark = pytest.mark.qemu

NOT_FOUND, INVALID, UNIMPLEMENTED = 5, 3, 12


class GuestVM(Machine):
    def wait_hello(self):
        self.listener.settimeout(90)
        try:
            conn, _ = self.listener.accept()
        except OSError as e:
            text = self.log()
            self.close()
            raise AssertionError(f"the agent did not call: {e}\n{text}") from e
        self.client = Client(conn)

    def stream(self):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(90)
        s.connect(str(self.vsock))
        s.sendall(b"CONNECT 1027\n")
        line = b""
        while not line.endswith(b"\n"):
            line += s.recv(1)
        return s, int(line.split()[1])

    def create(self, cid, args, disk="root0", scratch=None, streams="oe", limit=0, **kw):
        base = f"/run/caisson/containers/{cid}"
        rq = METHODS["CreateContainer"][1](container_id=cid)
        rq.storages.add(driver="blk", source=f"serial:{disk}", fstype="erofs", options=["ro"],
                        mount_point=f"{base}/lower")
        if scratch:
            rq.storages.add(driver="blk", source=f"serial:{scratch}", fstype="ext4",
                            mount_point=f"{base}/scratch")
        else:
            rq.storages.add(driver="ephemeral", mount_point=f"{base}/scratch")
        rq.storages.add(driver="overlayfs", fstype="overlay", mount_point=f"{base}/rootfs",
                        options=[f"lowerdir={base}/lower", f"upperdir={base}/scratch/upper",
                                 f"workdir={base}/scratch/work"])
        rq.OCI.CopyFrom(agentspec.spec(f"{base}/rootfs", args, **kw))
        if limit:
            rq.OCI.Linux.Resources.Memory.Limit = limit
        socks = {}
        for letter, field in [("i", "stdin_port"), ("o", "stdout_port"), ("e", "stderr_port")]:
            if letter in streams:
                socks[letter], port = self.stream()
                setattr(rq, field, port)
        self.client.CreateContainer(rq, timeout=60)
        self.client.StartContainer(container_id=cid, timeout=60)
        return socks

    def run(self, cid, args, **kw):
        socks = self.create(cid, args, **kw)
        out, err = read_all(socks["o"]), read_all(socks["e"])
        status = self.client.WaitProcess(container_id=cid).status
        self.client.RemoveContainer(container_id=cid)
        assert err == b"", err
        return out.decode(), status


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    d = tmp_path_factory.mktemp("disks")
    root = agentspec.make_rootfs(d / "rootfs")
    subprocess.run([os.environ.get("CC", "cc"), "-static", "-Os", "-o", root / "bin/vsock-try",
                    HERE / "vsock-try.c"], check=True)
    subprocess.run(["mkfs.erofs", "-x-1", "--quiet", d / "root.erofs", root], check=True,
                   stdout=subprocess.DEVNULL)
    with open(d / "scratch", "wb") as f:
        f.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", d / "scratch"], check=True)
    subprocess.run([TOP / "guest/image/mkinitramfs", find_agent(), d / "initrd.cpio"], check=True)
    return d


@pytest.fixture(scope="module")
def vm(disks):
    logs = pathlib.Path(disks / "log")
    with GuestVM([("blk", disks / "root.erofs", "root0", "ro"), ("blk", disks / "scratch", "scratch0"),
                  ("blk", "-", "slot", "ro")], memory=128, initrd=disks / "initrd.cpio",
                 append="agent.log=info agent.hotplug_timeout=20 agent.log_vport=1025 init_on_alloc=1 "
                        "agent.container_pipe_size=x agent.unknown=1") as m:
        m.client.SetGuestDateTime(Sec=int(time.time()))
        m.client.CreateSandbox(hostname="pod", sandbox_id="s", dns=["nameserver 192.0.2.7"])
        yield m
        logs.write_text(m.log())


def test_is_init(vm):
    d = vm.client.GetGuestDetails(mem_block_size=True)
    assert d.agent_details.init_daemon and d.mem_block_size_bytes > 0
    assert "agent.container_pipe_size: 'x' is not a number" in vm.log()


def test_log_port(vm):
    with vm.connect(1025) as conn:
        conn.settimeout(2)
        text = b""
        # The agent may answer before it has accepted the log's reader.
        for _ in range(10):
            with fails(INVALID):
                vm.client.CreateContainer(container_id="nobody")
            with contextlib.suppress(TimeoutError):
                while b"CreateContainer" not in text:
                    text += conn.recv(1000)
            if b"CreateContainer" in text:
                break
        assert b"CreateContainer" in text and b"source=agent" in text
    # The agent goes on when its log has no reader.
    for _ in range(3):
        with fails(INVALID):
            vm.client.CreateContainer(container_id="nobody")


def test_second_connection(vm):
    other = Client(vm.connect(1024))
    assert other.Check().status == 1
    other.close()


def test_container_on_disks(vm):
    out, status = vm.run("c1", ["sh", "-c", "hostname; echo x >/new; ls /new; stat -f -c %T /; "
                                            "cat /proc/1/cmdline | head -c 2; exit 3"],
                         scratch="scratch0")
    assert out.split()[:2] == ["pod", "/new"] and status == 3
    # The same scratch disk again: what was written is still there.
    out, status = vm.run("c2", ["cat", "/new"], scratch="scratch0")
    assert (out, status) == ("x\n", 0)


def test_clock(vm):
    out, _ = vm.run("clock", ["sh", "-c", "busybox date +%s"])
    assert abs(int(out) - time.time()) < 60


def test_streams(vm):
    socks = vm.create("cat", ["cat"], streams="io")
    data = os.urandom(2 << 20)
    threading.Thread(target=lambda: (socks["i"].sendall(data),
                                     socks["i"].shutdown(socket.SHUT_WR))).start()
    assert read_all(socks["o"]) == data
    assert vm.client.WaitProcess(container_id="cat").status == 0
    vm.client.RemoveContainer(container_id="cat")


def test_cgroup_limits_and_stats(vm):
    vm.create("st", ["sleep", "1000"], limit=32 << 20)
    s = vm.client.StatsContainer(container_id="st").cgroup_stats
    assert s.memory_stats.usage.limit == 32 << 20 and s.memory_stats.usage.usage > 0
    assert s.pids_stats.current == 1 and s.memory_stats.stats["file"] >= 0
    update = METHODS["UpdateContainer"][1](container_id="st")
    update.resources.Memory.Limit = 64 << 20
    update.resources.Pids.Limit = 50
    vm.client.UpdateContainer(update)
    s = vm.client.StatsContainer(container_id="st").cgroup_stats
    assert s.memory_stats.usage.limit == 64 << 20 and s.pids_stats.limit == 50
    vm.client.PauseContainer(container_id="st")
    vm.client.ResumeContainer(container_id="st")
    vm.client.RemoveContainer(container_id="st")


def test_out_of_memory(vm):
    oom = vm.client.start("GetOOMEvent")
    vm.create("oom", ["dd", "if=/dev/zero", "of=/dev/filled", "bs=1M", "count=60"],
              limit=16 << 20, streams="")
    assert oom.result().container_id == "oom"
    assert vm.client.WaitProcess(container_id="oom").status == 137
    vm.client.RemoveContainer(container_id="oom")


def test_containers_cannot_call_the_agent(vm):
    for cid in "1", "3":
        for port in "1024", "1027":
            out, _ = vm.run(f"v{cid}{port}", ["vsock-try", cid, port])
            assert out.strip() in ("refused", "closed")


def test_disk_that_comes_later(vm, disks):
    slot = vm.backends[3]

    def attach():
        slot.stdin.write(f"attach {disks / 'root.erofs'} late\n")
        slot.stdin.flush()
    timer = threading.Timer(1, attach)
    timer.start()
    out, status = vm.run("late", ["echo", "late"], disk="late")
    timer.join()
    assert (out, status) == ("late\n", 0)


def test_processors(vm):
    vm.client.OnlineCPUMem(nb_cpus=1)
    vm.client.ReseedRandomDev(data=os.urandom(64))
    with fails(NOT_FOUND):
        vm.client.AddSwapPath(path="/dev/none")


def test_loopback_and_interfaces(vm):
    lo = [i for i in vm.client.ListInterfaces().Interfaces if i.name == "lo"][0]
    assert ("127.0.0.1", "8") in [(a.address, a.mask) for a in lo.IPAddresses]


def test_idle_memory(vm):
    vm.create("idle", ["sleep", "1000"])
    time.sleep(1)
    lines = vm.client.GetMetrics().metrics.splitlines()
    anon = [int(x.split()[1]) for x in lines if x.startswith('caisson_agent_smaps{item="anonymous"}')]
    assert anon and anon[0] <= 300 * 1024
    vm.client.RemoveContainer(container_id="idle")


def test_destroy_ends_the_machine(vm):
    vm.create("last", ["sleep", "1000"], scratch="scratch0")
    waiting = vm.client.start("WaitProcess", container_id="last")
    vm.client.DestroySandbox()
    assert waiting.result().status == 137
    assert vm.qemu.wait(60) == 0


class KataVM(GuestVM):
    """As Kata's shim has it: nobody listens on the host, the shim dials until the agent answers."""

    def listen(self, port):
        return socket.socket(socket.AF_UNIX)

    def wait_hello(self):
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                self.client = Client(self.connect(1024, timeout=5))
                self.client.Check(timeout=5)
                return
            except (OSError, AssertionError, TimeoutError):
                time.sleep(0.1)
        text = self.log()
        self.close()
        raise AssertionError(f"the agent did not answer\n{text}")


KATA_WORDS = ("systemd.unit=kata-containers.target systemd.mask=systemd-networkd.service "
              "systemd.unified_cgroup_hierarchy=1 agent.log=debug agent.log_vport=1025 "
              "agent.debug_console agent.debug_console_vport=1026 agent.passfd_listener_port=1027 "
              "agent.server_addr=vsock://-1:1024 agent.container_pipe_size=65536 "
              "agent.unified_cgroup_hierarchy=1 agent.cdh_api_timeout=50 "
              "agent.launch_process_timeout=6 agent.devmode")


def test_the_order_of_kata(disks):
    """Its kernel command line, its calls in its order, its ports; streams by polling, as its Go shim."""
    with KataVM([("blk", disks / "root.erofs", "root0", "ro")], memory=128,
                initrd=disks / "initrd.cpio", append=KATA_WORDS) as m:
        c = m.client
        assert c.Version().agent_version
        d = c.GetGuestDetails(mem_block_size=True, mem_hotplug_probe=True).agent_details
        assert d.supports_seccomp and "virtio-fs" in d.storage_handlers
        c.SetGuestDateTime(Sec=int(time.time()))
        with m.connect(1025) as log:
            c.CreateSandbox(hostname="pod", sandbox_id="sandbox", dns=["nameserver 192.0.2.7"],
                            sandbox_pidns=False)
            c.OnlineCPUMem(nb_cpus=1)
            assert c.UpdateRoutes().Routes is not None
            oom = c.start("GetOOMEvent")
            # The pause container, then one of the pod's.
            m.create("sandbox", ["sleep", "1000"], streams="")
            m.create("work", ["sh", "-c", "read x; echo got $x; echo bad >&2; exit 7"], streams="")
            c.WriteStdin(container_id="work", exec_id="work", data=b"word\n")
            # The debug console: a shell of a container's with the guest's processes, on a terminal.
            with m.connect(1026) as console:
                console.sendall(b"echo $((6 * 7)) $(cat /proc/1/comm) $(tty); exit\n")
                said = read_all(console)
                assert b"42 init /dev/pts/0" in said, said
            wait = c.start("WaitProcess", container_id="work", exec_id="work")
            assert c.ReadStdout(container_id="work", exec_id="work", len=32768).data == b"got word\n"
            assert c.ReadStderr(container_id="work", exec_id="work", len=32768).data == b"bad\n"
            assert wait.result().status == 7
            assert c.StatsContainer(container_id="sandbox").cgroup_stats.pids_stats.current == 1
            c.SignalProcess(container_id="work", signal=9)
            c.RemoveContainer(container_id="work", timeout=10)
            c.SignalProcess(container_id="sandbox", signal=9)
            assert c.WaitProcess(container_id="sandbox").status == 137
            c.RemoveContainer(container_id="sandbox", timeout=10)
            with fails(UNIMPLEMENTED):
                c.SetPolicy(policy="package agent_policy")
            assert not oom.done and log.recv(100)
        c.DestroySandbox()
        assert m.qemu.wait(60) == 0
