"""The agent, run natively in namespaces of its own: every call, over ttRPC on Unix sockets.

The agent changes links, mounts and processes of where it runs. It is only ever started under
unshare here, and itself refuses to run in the machine's own namespaces."""

import hashlib
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time

import pytest

import agentspec
from agentclient import METHODS, TOP, Client, RpcError

NOT_FOUND, EXISTS, INVALID, PRECONDITION, UNIMPLEMENTED = 5, 6, 3, 9, 12
PERMISSION = 7
SHARED = "/run/kata-containers/shared/containers"
NAMESPACES = ["unshare", "-n", "-m", "-p", "-f", "-i", "-u", "--kill-child", "--mount-proc",
              "--propagation", "private"]
SETUP = """
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add d0 address 02:00:00:00:00:10 type dummy 2>/dev/null ||
    ip link add d0 address 02:00:00:00:00:10 type veth peer name d1
exec "$@"
"""


def find_agent():
    named = os.environ.get("CAISSON_AGENT")
    found = [pathlib.Path(named)] if named else [
        p for p in TOP.glob("build*/**/caisson-agent") if p.is_file()]
    if not found:
        pytest.skip("caisson-agent has not been built")
    return max(found, key=lambda p: p.stat().st_mtime)


def cgroup2():
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        word = line.split()
        if word[2] == "cgroup2":
            return pathlib.Path(word[1])
    pytest.skip("no cgroup2 file system is mounted")


class Agent:
    """One agent, a client, and streams to it."""

    def __init__(self):
        self.program = find_agent()
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="caisson-agent-"))
        self.cgroup = cgroup2() / f"caisson-test-{os.getpid()}-{self.dir.name[-6:]}"
        self.cgroup.mkdir()
        self.rootfs = agentspec.make_rootfs(self.dir / "rootfs")
        self.ports = iter(range(20001, 60000))
        self.log = open(self.dir / "log", "wb")
        self.process = subprocess.Popen(
            [*NAMESPACES, "sh", "-c", SETUP, "sh", self.program,
             "--listen", f"unix:{self.dir}/rpc", "--stdio", f"unix:{self.dir}/stdio",
             "--cgroup", str(self.cgroup), "--log", "debug"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.client = Client(self.connect("rpc"))
        self.pid = int(subprocess.run(["pgrep", "-P", str(self.process.pid)], check=True,
                                      stdout=subprocess.PIPE, text=True).stdout)

    def connect(self, name, port=None):
        deadline = time.monotonic() + 20
        while True:
            s = socket.socket(socket.AF_UNIX)
            try:
                if port:
                    s.bind(f"\0caisson-{self.dir.name}.{port}")
                s.connect(str(self.dir / name))
                s.settimeout(20)
                return s
            except OSError:
                s.close()
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.01)

    def stream(self):
        port = next(self.ports)
        return self.connect("stdio", port), port

    def create(self, cid, args, streams="oe", start=True, **kw):
        """A container with streams: letters i, o, e. Gives {letter: socket}."""
        rq = METHODS["CreateContainer"][1](container_id=cid)
        rq.OCI.CopyFrom(agentspec.spec(self.rootfs, args, **kw))
        socks = self.add_streams(rq, streams)
        self.client.CreateContainer(rq)
        if start:
            self.client.StartContainer(container_id=cid)
        return socks

    def exec(self, cid, eid, args, streams="oe", **kw):
        rq = METHODS["ExecProcess"][1](container_id=cid, exec_id=eid)
        rq.process.CopyFrom(agentspec.process(args, **kw))
        socks = self.add_streams(rq, streams)
        self.client.ExecProcess(rq)
        return socks

    def add_streams(self, rq, letters):
        socks = {}
        for letter, field in [("i", "stdin_port"), ("o", "stdout_port"), ("e", "stderr_port")]:
            if letter in letters:
                socks[letter], port = self.stream()
                setattr(rq, field, port)
        return socks

    def wait(self, cid, eid="", timeout=60):
        return self.client.WaitProcess(container_id=cid, exec_id=eid, timeout=timeout).status

    def run(self, cid, args, **kw):
        """Output, error output, status."""
        socks = self.create(cid, args, **kw)
        out = read_all(socks["o"])
        err = read_all(socks["e"]) if "e" in socks else b""
        status = self.wait(cid)
        self.client.RemoveContainer(container_id=cid)
        return out, err, status

    def inside(self, *argv):
        return subprocess.run(["nsenter", "-t", str(self.pid), "-n", "-m", "--", *argv],
                              check=True, stdout=subprocess.PIPE, text=True).stdout

    def close(self):
        if self.process.poll() is None:
            os.kill(self.pid, 15)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.client.close()
        for d, _, _ in os.walk(self.cgroup, topdown=False):
            os.rmdir(d)
        shutil.rmtree(self.dir)


def read_all(s):
    data = b""
    while chunk := s.recv(65536):
        data += chunk
    s.close()
    return data


@pytest.fixture(scope="module")
def agent():
    a = Agent()
    yield a
    a.close()


@pytest.fixture
def box(agent, request):
    """A running container to exec in."""
    cid = request.node.name.replace("[", "-").replace("]", "")[:60]
    agent.create(cid, ["sleep", "1000"], streams="o")
    yield cid
    agent.client.RemoveContainer(container_id=cid)


def fails(code, text=""):
    class Check:
        def __enter__(self):
            return self

        def __exit__(self, kind, e, tb):
            assert kind is RpcError, "the call did not fail"
            assert e.code == code and text in e.text, str(e)
            return True
    return Check()


# ---- the service ----

def test_size():
    assert find_agent().stat().st_size <= 1536 * 1024


def test_refuses_the_machines_own_namespaces(tmp_path):
    r = subprocess.run([find_agent(), "--listen", f"unix:{tmp_path}/s"], stderr=subprocess.PIPE,
                       text=True, timeout=10, check=False)
    assert r.returncode == 1 and "pid 1" in r.stderr
    r = subprocess.run([find_agent()], stderr=subprocess.PIPE, text=True, timeout=10, check=False)
    assert r.returncode == 1


def test_health(agent):
    assert agent.client.Check().status == 1
    assert agent.client.Version().agent_version


def test_guest_details(agent):
    d = agent.client.GetGuestDetails(mem_block_size=True, mem_hotplug_probe=True).agent_details
    assert d.supports_seccomp and "blk" in d.storage_handlers and not d.init_daemon


@pytest.mark.parametrize("method", ["GetIPTables", "SetIPTables", "MemAgentMemcgSet", "AddSwap",
                                    "MemAgentCompactSet", "SetPolicy",
                                    "GetDiagnosticData"])
def test_unimplemented(agent, method):
    with fails(UNIMPLEMENTED, method):
        getattr(agent.client, method)()


@pytest.mark.parametrize("method", ["SetGuestDateTime", "ReseedRandomDev", "OnlineCPUMem",
                                    "MemHotplugByProbe", "AddSwapPath"])
def test_leaves_the_kernel_alone(agent, method):
    with fails(PRECONDITION):
        getattr(agent.client, method)()


def test_metrics(agent):
    text = agent.client.GetMetrics().metrics
    assert 'kata_guest_meminfo{item="memtotal"}' in text and "kata_agent_total_rss" in text
    assert 'kata_guest_netdev_stat{interface="lo",item="recv_bytes"}' in text


def test_two_clients(agent):
    other = Client(agent.connect("rpc"))
    assert other.Check().status == 1
    other.close()
    assert agent.client.Check().status == 1


# ---- containers ----

def test_run(agent):
    out, err, status = agent.run("run1", ["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (out, err, status) == (b"out\n", b"err\n", 7)


def test_stdin_half_close(agent):
    socks = agent.create("in1", ["md5sum"], streams="ioe")
    data = os.urandom(3 << 20)
    socks["i"].sendall(data)
    socks["i"].shutdown(socket.SHUT_WR)
    assert read_all(socks["o"]).split()[0].decode() == hashlib.md5(data).hexdigest()
    assert agent.wait("in1") == 0
    agent.client.RemoveContainer(container_id="in1")


def test_stdin_nobody_reads(agent):
    socks = agent.create("in2", ["sh", "-c", "exec <&-; sleep 0.5; echo done"], streams="io")
    with pytest.raises(OSError):
        for _ in range(200):
            socks["i"].sendall(bytes(65536))
    assert read_all(socks["o"]) == b"done\n"
    agent.client.RemoveContainer(container_id="in2")


def test_slow_reader_loses_nothing(agent):
    n = 8 << 20
    socks = agent.create("slow", ["sh", "-c", f"yes | head -c {n}"], streams="o")
    waiting = agent.client.start("WaitProcess", container_id="slow")
    time.sleep(0.5)
    assert not waiting.done
    assert len(read_all(socks["o"])) == n
    assert waiting.result().status == 0
    agent.client.RemoveContainer(container_id="slow")


def test_output_at_exit(agent, box):
    """Whatever was written before the exit is there after it."""
    for i in range(20):
        socks = agent.exec(box, f"e{i}", ["sh", "-c", f"printf %04000d {i}"], streams="o")
        assert agent.wait(box, f"e{i}") == 0
        assert len(read_all(socks["o"])) == 4000


def test_reader_gone(agent):
    socks = agent.create("gone", ["sh", "-c", "seq 1 100000; echo over >&2"])
    socks["o"].close()
    assert read_all(socks["e"]) == b"over\n"
    assert agent.wait("gone") == 0
    agent.client.RemoveContainer(container_id="gone")


def test_grandchild_keeps_the_pipe(agent, box):
    socks = agent.exec(box, "bg", ["sh", "-c", "echo one; sleep 1000 & echo two"], streams="o")
    start = time.monotonic()
    assert agent.wait(box, "bg") == 0
    assert time.monotonic() - start < 3
    assert read_all(socks["o"]) == b"one\ntwo\n"


def test_terminal(agent):
    socks = agent.create("tty", ["sh", "-c", "stty size; read x; stty size; echo got $x"],
                         streams="io", terminal=True, start=False)
    agent.client.TtyWinResize(container_id="tty", row=40, column=100)
    agent.client.StartContainer(container_id="tty")
    text = b""
    while b"40 100" not in text:
        text += socks["o"].recv(1000)
    agent.client.TtyWinResize(container_id="tty", row=50, column=120)
    socks["i"].sendall(b"line\r")
    text = read_all(socks["o"])
    assert b"50 120" in text and b"got line" in text
    assert agent.wait("tty") == 0
    agent.client.RemoveContainer(container_id="tty")


def test_terminal_end_of_input(agent):
    socks = agent.create("tty2", ["cat"], streams="io", terminal=True)
    socks["i"].sendall(b"abc\r")
    socks["i"].shutdown(socket.SHUT_WR)
    assert b"abc" in read_all(socks["o"])
    assert agent.wait("tty2") == 0
    agent.client.RemoveContainer(container_id="tty2")


def test_polled_streams(agent):
    agent.create("poll", ["sh", "-c", "cat; echo end >&2; exit 4"], streams="")
    call = dict(container_id="poll", exec_id="")
    early = agent.client.start("ReadStdout", len=100, **call)
    time.sleep(0.1)
    assert not early.done
    data = os.urandom(200000)
    writing = agent.client.start("WriteStdin", data=data, **call)
    got = early.result().data
    while len(got) < len(data):
        got += agent.client.ReadStdout(len=32768, **call).data
    assert got == data and writing.result().len == len(data)
    agent.client.CloseStdin(**call)
    with fails(11, "EOF"):
        agent.client.ReadStdout(len=100, **call)
    assert agent.client.ReadStderr(len=100, **call).data == b"end\n"
    assert agent.wait("poll") == 4
    with fails(PRECONDITION):
        agent.client.WriteStdin(data=b"x", **call)
    agent.client.RemoveContainer(container_id="poll")


def test_no_stream_from_that_port(agent):
    rq = METHODS["CreateContainer"][1](container_id="port", stdout_port=77)
    rq.OCI.CopyFrom(agentspec.spec(agent.rootfs, ["true"]))
    with fails(INVALID, "77"):
        agent.client.CreateContainer(rq)


def test_null_streams(agent):
    rq = METHODS["CreateContainer"][1](container_id="null", stdout_port=0xffffffff)
    rq.OCI.CopyFrom(agentspec.spec(agent.rootfs, ["sh", "-c", "seq 1 100000"]))
    agent.client.CreateContainer(rq)
    agent.client.StartContainer(container_id="null")
    assert agent.wait("null") == 0
    agent.client.RemoveContainer(container_id="null")


def test_errors(agent, box):
    create = agent.client.CreateContainer
    with fails(INVALID, "container id"):
        create(container_id="../x")
    with fails(INVALID, "OCI"):
        create(container_id="x1")
    with fails(EXISTS):
        agent.create(box, ["true"])
    with fails(NOT_FOUND, 'exec: "nothing"'):
        agent.create("x2", ["nothing"])
    with fails(NOT_FOUND, "nobody"):
        agent.client.StartContainer(container_id="nobody")
    with fails(NOT_FOUND, "nobody"):
        agent.client.WaitProcess(container_id="nobody")
    with fails(NOT_FOUND, "no process"):
        agent.client.WaitProcess(container_id=box, exec_id="other")
    with fails(NOT_FOUND, 'exec: "nothing"'):
        agent.exec(box, "x", ["nothing"])
    with fails(INVALID):
        agent.client.SignalProcess(container_id=box, signal=65)
    with fails(INVALID):
        agent.client.UpdateContainer(container_id=box)
    # Nothing is left of what failed.
    assert agent.run("x2", ["true"])[2] == 0


def test_exec(agent, box):
    socks = agent.exec(box, "e", ["sh", "-c", "echo $A; pwd; id -u; exit 5"], env=["A=b"],
                       cwd="/tmp", uid=1000, gid=1000)
    assert read_all(socks["o"]) == b"b\n/tmp\n1000\n"
    assert agent.wait(box, "e") == 5
    assert agent.wait(box, "e") == 5
    # An id can be used again once its process has ended.
    agent.exec(box, "e", ["true"])
    assert agent.wait(box, "e") == 0


def test_string_user(agent, box):
    rq = METHODS["ExecProcess"][1](container_id=box, exec_id="u")
    rq.process.CopyFrom(agentspec.process(["id", "-u"]))
    rq.string_user.uid = "user"
    socks = agent.add_streams(rq, "o")
    agent.client.ExecProcess(rq)
    assert read_all(socks["o"]) == b"1000\n"


def test_signal_exec(agent, box):
    agent.exec(box, "s", ["sleep", "100"])
    waiting = agent.client.start("WaitProcess", container_id=box, exec_id="s")
    agent.client.SignalProcess(container_id=box, exec_id="s", signal=15)
    assert waiting.result().status == 143
    with fails(NOT_FOUND):
        agent.client.SignalProcess(container_id=box, exec_id="s", signal=15)


def test_kata_names_init_by_the_containers_id(agent):
    agent.create("kid", ["sleep", "1000"])
    waiting = agent.client.start("WaitProcess", container_id="kid", exec_id="kid")
    agent.client.SignalProcess(container_id="kid", exec_id="kid", signal=9)
    assert waiting.result().status == 137
    agent.client.RemoveContainer(container_id="kid")


def test_remove_answers_waiters(agent):
    agent.create("rm", ["sleep", "1000"])
    agent.exec("rm", "e", ["sleep", "1000"])
    calls = [agent.client.start("WaitProcess", container_id="rm", exec_id=e) for e in ("", "e")]
    agent.client.RemoveContainer(container_id="rm")
    assert [c.result().status for c in calls] == [137, 137]
    with fails(NOT_FOUND):
        agent.client.RemoveContainer(container_id="rm")


def test_pause(agent):
    socks = agent.create("pause", ["sh", "-c", "while :; do echo x; sleep 0.05; done"])
    socks["o"].recv(1)
    agent.client.PauseContainer(container_id="pause")
    socks["o"].settimeout(0.3)
    with pytest.raises(TimeoutError):
        while True:
            socks["o"].recv(1000)
    agent.client.ResumeContainer(container_id="pause")
    socks["o"].settimeout(5)
    assert socks["o"].recv(1)
    agent.client.RemoveContainer(container_id="pause")


def test_stats(agent, box):
    s = agent.client.StatsContainer(container_id=box)
    assert s.cgroup_stats.cpu_stats.HasField("cpu_usage")
    assert [n.name for n in s.network_stats if n.name == "lo"]


def test_waits_survive_a_lost_connection(agent):
    agent.create("lost", ["sleep", "1000"])
    other = Client(agent.connect("rpc"))
    other.start("WaitProcess", container_id="lost")
    other.start("GetOOMEvent")
    time.sleep(0.1)
    other.close()
    agent.client.SignalProcess(container_id="lost", signal=9)
    assert agent.wait("lost") == 137
    agent.client.RemoveContainer(container_id="lost")


def test_many_at_once(agent, box):
    calls = []
    for i in range(30):
        agent.exec(box, f"m{i}", ["sh", "-c", f"sleep 0.2; exit {i}"], streams="o")
        calls.append(agent.client.start("WaitProcess", container_id=box, exec_id=f"m{i}"))
    assert [c.result().status for c in calls] == list(range(30))


# ---- storages, files ----

def test_storages(agent):
    rq = METHODS["CreateContainer"][1](container_id="st")
    rq.storages.add(driver="ephemeral", source="tmpfs", fstype="tmpfs", options=["size=1m"],
                    mount_point="/run/t/eph", fs_group=dict(group_id=1000))
    rq.storages.add(driver="bind", source=str(agent.rootfs), options=["ro"],
                    mount_point="/run/t/lower")
    rq.storages.add(driver="ephemeral", source="tmpfs", fstype="tmpfs",
                    mount_point="/run/t/scratch")
    rq.storages.add(driver="overlayfs", fstype="overlay", mount_point="/run/t/root", options=[
        "lowerdir=/run/t/lower", "upperdir=/run/t/scratch/u", "workdir=/run/t/scratch/w"])
    rq.storages.add(driver="local", options=["mode=0700"], mount_point="/run/t/local")
    rq.OCI.CopyFrom(agentspec.spec("/run/t/root", ["sh", "-c", "echo x >/new; ls /new; df -k /e"]))
    rq.OCI.Mounts.add(destination="/e", source="/run/t/eph", type="bind", options=["rbind", "rw"])
    socks = agent.add_streams(rq, "oe")
    agent.client.CreateContainer(rq)
    agent.client.StartContainer(container_id="st")
    out = read_all(socks["o"])
    assert b"/new\n" in out and b" 1024 " in out, out + read_all(socks["e"])
    st = agent.inside("stat", "-c", "%g %a", "/run/t/eph", "/run/t/local")
    assert st.split() == ["1000", "3777", "0", "700"]
    usage = agent.client.GetVolumeStats(volume_guest_path="/run/t/eph").usage
    assert [u.total for u in usage if u.unit == 1] == [1 << 20]
    remount = METHODS["UpdateEphemeralMounts"][1]()
    remount.storages.add(driver="ephemeral", source="tmpfs", fstype="tmpfs", options=["size=2m"],
                         mount_point="/run/t/eph")
    agent.client.UpdateEphemeralMounts(remount)
    usage = agent.client.GetVolumeStats(volume_guest_path="/run/t/eph").usage
    assert [u.total for u in usage if u.unit == 1] == [2 << 20]
    agent.client.RemoveContainer(container_id="st")
    mounts = agent.inside("cat", "/proc/1/mounts")
    assert "/run/t/root" not in mounts and "/run/t/lower" not in mounts
    assert agent.inside("ls", "/run/t").split() == ["eph", "local", "scratch"]
    assert "/run/t/eph" in mounts       # as long as the sandbox: a restart finds its data


@pytest.mark.parametrize("fields, code, text", [
    (dict(driver="blk", source="serial:none", fstype="erofs", mount_point="/run/x"), NOT_FOUND,
     "serial:none"),
    (dict(driver="9p", source="x", mount_point="/run/x"), UNIMPLEMENTED, "9p"),
    (dict(driver="bind", source="/etc", mount_point="/run/../x"), INVALID, ".."),
    (dict(driver="bind", source="/etc", mount_point="x"), INVALID, "absolute"),
    (dict(driver="bind", source="/no/such", mount_point="/run/x"), NOT_FOUND, "/no/such"),
    (dict(driver="ephemeral", mount_point="/run/x", options=["nonsense=1"]), INVALID, "nonsense"),
])
def test_bad_storages(agent, fields, code, text):
    rq = METHODS["CreateContainer"][1](container_id="bad")
    rq.storages.add(driver="ephemeral", mount_point="/run/good", shared=False)
    rq.storages.add(**fields)
    rq.OCI.CopyFrom(agentspec.spec(agent.rootfs, ["true"]))
    start = time.monotonic()
    with fails(code, text):
        agent.client.CreateContainer(rq)
    assert time.monotonic() - start < 6
    assert " /run/x " not in agent.inside("cat", "/proc/1/mounts")
    with fails(NOT_FOUND):
        agent.client.StartContainer(container_id="bad")


def copy(agent, path, data=b"", mode=stat.S_IFREG | 0o640, offset=0, size=None, **kw):
    agent.client.CopyFile(path=path, data=data, file_mode=mode, offset=offset, dir_mode=0o755,
                          file_size=len(data) if size is None else size, **kw)


def test_copy_file(agent):
    copy(agent, f"{SHARED}/a/b/file", b"hello ", size=11)
    with pytest.raises(subprocess.CalledProcessError):
        agent.inside("cat", f"{SHARED}/a/b/file")
    copy(agent, f"{SHARED}/a/b/file", b"world", offset=6, size=11, uid=3, gid=4)
    assert agent.inside("cat", f"{SHARED}/a/b/file") == "hello world"
    assert agent.inside("stat", "-c", "%a %u %g", f"{SHARED}/a/b/file") == "640 3 4\n"
    copy(agent, f"{SHARED}/a/dir", mode=stat.S_IFDIR | 0o711)
    copy(agent, f"{SHARED}/a/link", b"/etc", mode=stat.S_IFLNK | 0o777)
    assert agent.inside("readlink", f"{SHARED}/a/link") == "/etc\n"
    copy(agent, f"{SHARED}/a/link2", b"b/file", mode=stat.S_IFLNK | 0o777)
    copy(agent, f"{SHARED}/a/link2", b"x")
    assert agent.inside("cat", f"{SHARED}/a/b/file") == "hello world"


@pytest.mark.parametrize("path", ["/etc/evil", "/run/kata-containers/shared/containersx/f",
                                  f"{SHARED}/../../evil", f"{SHARED}/x/../../evil",
                                  f"{SHARED}/..", f"{SHARED}", "", "evil"])
def test_copy_file_outside(agent, path):
    with fails(PERMISSION):
        copy(agent, path, b"x")


def test_copy_file_through_a_link(agent):
    copy(agent, f"{SHARED}/out", b"/tmp", mode=stat.S_IFLNK | 0o777)
    with pytest.raises(RpcError):
        copy(agent, f"{SHARED}/out/evil-{os.getpid()}", b"x")
    assert not os.path.exists(f"/tmp/evil-{os.getpid()}")


def test_copy_file_bad_chunk(agent):
    with fails(INVALID):
        copy(agent, f"{SHARED}/f", b"12345", size=3)
    with fails(INVALID):
        copy(agent, f"{SHARED}/f", b"12345", offset=-1)


# ---- network ----

def test_interfaces_and_routes(agent):
    call = METHODS["UpdateInterface"][1]()
    itf = call.interface
    itf.hwAddr, itf.name, itf.mtu = "02:00:00:00:00:10", "eth0", 1400
    itf.IPAddresses.add(family=0, address="10.1.2.3", mask="24")
    itf.IPAddresses.add(family=1, address="fd00::3", mask="64")
    got = agent.client.UpdateInterface(call)
    assert got.name == "eth0" and got.mtu == 1400
    assert ("10.1.2.3", "24") in [(a.address, a.mask) for a in got.IPAddresses]
    # The same again changes nothing; other addresses replace the old ones.
    itf.IPAddresses[0].address = "10.1.2.4"
    got = agent.client.UpdateInterface(call)
    assert [a.address for a in got.IPAddresses if a.family == 0] == ["10.1.2.4"]
    names = {i.name: i for i in agent.client.ListInterfaces().Interfaces}
    assert names["eth0"].hwAddr == "02:00:00:00:00:10" and "lo" in names

    routes = METHODS["UpdateRoutes"][1]()
    routes.routes.Routes.add(dest="", gateway="10.1.2.1", device="eth0")
    routes.routes.Routes.add(dest="10.9.0.0/16", gateway="", device="eth0", scope=253)
    routes.routes.Routes.add(dest="fd01::/64", gateway="fd00::1", device="eth0", family=1)
    for _ in range(2):
        got = {(r.dest, r.gateway) for r in agent.client.UpdateRoutes(routes).Routes}
        assert {("", "10.1.2.1"), ("10.9.0.0/16", ""), ("fd01::/64", "fd00::1")} <= got
    del routes.routes.Routes[1:]
    agent.client.UpdateRoutes(routes)
    got = {(r.dest, r.gateway) for r in agent.client.ListRoutes().Routes}
    assert ("", "10.1.2.1") in got and ("10.9.0.0/16", "") not in got

    arp = METHODS["AddARPNeighbors"][1]()
    arp.neighbors.ARPNeighbors.add(toIPAddress=dict(address="10.1.2.1"), device="eth0",
                                   lladdr="02:00:00:00:00:01", state=0x80)
    agent.client.AddARPNeighbors(arp)
    assert "02:00:00:00:00:01" in agent.inside("ip", "neigh")


def test_interface_beyond_kata(agent):
    """Ours: a new hardware address, addresses' flags, routes' metrics."""
    call = METHODS["UpdateInterface"][1]()
    itf = call.interface
    itf.hwAddr, itf.name, itf.set_hwAddr = "02:00:00:00:00:10", "eth0", "02:00:00:00:00:77"
    itf.IPAddresses.add(family=0, address="10.5.0.3", mask="24", flags=0x200)  # no prefix route
    assert agent.client.UpdateInterface(call).hwAddr == "02:00:00:00:00:77"
    assert "10.5.0.0/24" not in agent.inside("ip", "route")
    routes = METHODS["UpdateRoutes"][1]()
    routes.routes.Routes.add(dest="10.5.0.1/32", device="eth0", scope=253, metric=7)
    routes.routes.Routes.add(dest="10.6.0.0/16", gateway="10.5.0.1", device="eth0", metric=9)
    got = {r.dest: r.metric for r in agent.client.UpdateRoutes(routes).Routes}
    assert got["10.5.0.1/32"] == 7 and got["10.6.0.0/16"] == 9
    del routes.routes.Routes[:]
    agent.client.UpdateRoutes(routes)
    # Back to what the other tests expect; the address is the present one this time.
    itf.hwAddr, itf.set_hwAddr = "02:00:00:00:00:77", "02:00:00:00:00:10"
    del itf.IPAddresses[:]
    assert agent.client.UpdateInterface(call).hwAddr == "02:00:00:00:00:10"
    itf.set_hwAddr = "zz"
    with fails(INVALID):
        agent.client.UpdateInterface(call)


@pytest.mark.parametrize("fields, code", [
    (dict(hwAddr="02:00:00:00:00:99"), NOT_FOUND), (dict(hwAddr="zz"), INVALID),
    (dict(hwAddr="02:00:00:00:00:10", name="a" * 16), INVALID),
    (dict(hwAddr="02:00:00:00:00:10", IPAddresses=[dict(address="300.1.1.1")]), INVALID),
])
def test_bad_interface(agent, fields, code):
    with fails(code):
        agent.client.UpdateInterface(interface=fields)


def test_bad_route(agent):
    for r in [dict(dest="1.2.3.4/33"), dict(dest="1.2.3.0/24", gateway="fd00::1"),
              dict(dest="x")]:
        with fails(INVALID):
            agent.client.UpdateRoutes(routes=dict(Routes=[r]))
    with fails(NOT_FOUND):
        agent.client.UpdateRoutes(routes=dict(Routes=[dict(dest="1.2.3.0/24", device="none")]))


# ---- memory and end ----

def test_private_memory(agent, box):
    """Anonymous memory: pages of the program itself count as dirty until its file is written."""
    time.sleep(1)
    text = pathlib.Path(f"/proc/{agent.pid}/smaps_rollup").read_text()
    dirty = [int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous")]
    assert dirty and dirty[0] <= 300, text


def test_sandbox():
    a = Agent()
    try:
        c = a.client
        with fails(UNIMPLEMENTED, "modules"):
            c.CreateSandbox(kernel_modules=[dict(name="fuse")])
        c.CreateSandbox(hostname="pod", sandbox_id="s", dns=["nameserver 192.0.2.1"],
                        sandbox_pidns=True)
        with fails(EXISTS):
            c.CreateSandbox(sandbox_id="s")
        assert a.inside("cat", "/run/kata-containers/sandbox/resolv.conf") == \
            "nameserver 192.0.2.1\n"
        a.create("one", ["sleep", "1000"])
        assert a.run("two", ["hostname"])[0] == b"pod\n"
        assert b"sleep 1000" in a.run("three", ["ps"])[0]
        waiting = c.start("WaitProcess", container_id="one")
        oom = c.start("GetOOMEvent")
        c.DestroySandbox()
        assert waiting.result().status == 137
        with fails(1):
            oom.result()
        assert a.process.wait(10) == 0
        assert list(a.cgroup.iterdir()) == [] or not [p for p in a.cgroup.iterdir() if p.is_dir()]
    finally:
        a.close()


def test_many_streams_nobody_claims(agent):
    socks = [agent.stream()[0] for _ in range(150)]
    assert agent.run("after", ["echo", "ok"])[0] == b"ok\n"
    for s in socks:
        s.close()


def test_garbage_on_the_socket(agent):
    for data in [b"\xff" * 100, b"\0" * 10, b"GET / HTTP/1.1\r\n\r\n"]:
        with agent.connect("rpc") as s:
            s.sendall(data)
            threading.Event().wait(0.05)
    assert agent.client.Check().status == 1
