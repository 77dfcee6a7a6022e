"""containerd.runtime.sandbox.v1.Sandbox, all of it, and the ways in which a shim is started."""

import json
import os
import subprocess
import time

import pytest

import shimclient as sc
from shimclient import Connection, Host, RpcError, decode, default_spec, encode

SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
NS = "k8s.io"
ID = "pod1"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return sc.make_image(str(tmp_path_factory.mktemp("image")))


@pytest.fixture
def host(stage, tmp_path, image):
    sc.SHIM = str(stage / "bin/containerd-shim-caisson-v2")
    h = Host(tmp_path, image)
    yield h
    left = h.leftovers()
    assert not left, left


class Pod:
    def __init__(self, host, stdin=b""):
        self.host = host
        self.dir = os.path.join(host.folder, "bundles", ID)
        os.makedirs(self.dir)
        self.out = host.shim(ID, self.dir, "start", ns=NS, stdin=stdin).stdout
        self.address = self.out.decode() if self.out.startswith(b"unix://") else \
            decode(self.out)[2][0].decode()
        self.conn = Connection(self.address)

    def call(self, method, *more, sid=ID):
        return self.conn.call(method, [(1, sid), *more], service=SERVICE)

    def send(self, method, *more):
        return self.conn.send(method, [(1, ID), *more], SERVICE)


def config(hostname="named", **annotations):
    pod = encode([(2, hostname), *((7, encode([(1, k), (2, v)])) for k, v in annotations.items())])
    return (4, encode([(1, "runtime.v1.PodSandboxConfig"), (2, pod)]))


def fails(code, function, *args, **kw):
    with pytest.raises(RpcError) as e:
        function(*args, **kw)
    assert e.value.code == code, e.value
    return e.value.message


def container(pod, cid, args, bundle=None):
    """A container of the pod as containerd makes it: `start` of its own, which joins."""
    spec = default_spec(args, annotations={"io.kubernetes.cri.container-type": "container",
                                           "io.kubernetes.cri.sandbox-id": ID})
    t = sc.Task.__new__(sc.Task)
    t.host, t.id, t.ns, t.fifos = pod.host, cid, NS, {}
    t.dir = bundle or pod.host.bundle(cid, spec)
    t.address = pod.host.shim(cid, t.dir, "start", ns=NS).stdout.decode()
    assert t.address == pod.address
    t.conn = Connection(t.address)
    return t


def test_life(host):
    p = Pod(host)
    fails(sc.PRECONDITION, p.call, "StartSandbox")
    p.call("CreateSandbox", (2, p.dir), config())
    fails(sc.ALREADY_EXISTS, p.call, "CreateSandbox", (2, p.dir))
    started = p.call("StartSandbox")
    assert started[1][0] > 0 and decode(started[2][0])[1][0] > time.time() - 100
    assert decode(p.call("Platform")[1][0]) == {1: [b"linux"], 2: [b"amd64"]}
    p.call("PingSandbox")
    status = p.call("SandboxStatus", (2, True))
    assert status[1] == [ID.encode()] and status[3] == [b"SANDBOX_READY"] and 6 not in status
    assert status[2] == started[1] and 4 in status
    waiting = p.send("WaitSandbox")

    # Containers come and go, the pod stays.
    for n in range(2):
        t = container(p, f"c{n}", ["hostname"])
        t.create(stdout=t.fifo("out"))
        t.start()
        assert t.wait() == 0 and t.fifos["out"].finish() == b"box\n"
        t.delete()
        t.shutdown()
    p.call("PingSandbox")

    metric = decode(p.call("SandboxMetrics")[1][0])
    data = decode(decode(metric[3][0])[2][0])
    assert metric[2] == [ID.encode()]
    assert decode(data[1][0])[1][0] >= 3          # processes: shim, vmm, QEMU
    assert decode(data[2][0])[1][0] > 1000        # microseconds of processor time
    assert decode(data[4][0])[32][0] > 20 << 20   # bytes of memory

    p.call("StopSandbox", (2, 10))
    answer = p.conn.receive(waiting)
    assert answer.get(1, [0]) == [0] and 2 in answer
    assert p.call("SandboxStatus")[3] == [b"SANDBOX_NOTREADY"]
    fails(sc.UNAVAILABLE, p.call, "PingSandbox")
    fails(sc.UNAVAILABLE, p.call, "SandboxMetrics")
    p.call("ShutdownSandbox")


def test_names_and_annotations(host):
    """The pod's host name is the virtual machine's; annotations are taken from the allow-list."""
    p = Pod(host)
    for method in ("CreateSandbox", "StartSandbox", "Platform", "StopSandbox", "WaitSandbox",
                   "SandboxStatus", "PingSandbox", "ShutdownSandbox", "SandboxMetrics"):
        assert "no sandbox" in fails(sc.NOT_FOUND, p.call, method, sid="other")
    assert "memory" in fails(sc.INVALID, p.call, "CreateSandbox", (2, p.dir),
                             config(**{"io.caisson.memory": "much"}))
    p.call("CreateSandbox", (2, p.dir), config(**{"io.caisson.memory": "300Mi"}))
    p.call("StartSandbox")
    spec = default_spec(["sh", "-c", "hostname; head -n 1 /proc/meminfo"])
    spec["linux"]["namespaces"] = [{"type": "pid"}, {"type": "mount"},
                                   {"type": "uts", "path": "/proc/1/ns/uts"}]
    spec.pop("hostname")
    spec["annotations"] = {"io.kubernetes.cri.container-type": "container",
                           "io.kubernetes.cri.sandbox-id": ID}
    t = container(p, "c", None, host.bundle("c", spec))
    t.create(stdout=t.fifo("out"))
    t.start()
    assert t.wait() == 0
    name, memory = t.fifos["out"].finish().decode().splitlines()
    assert name == "named"
    assert 200 << 10 < int(memory.split()[1]) < 300 << 10
    t.delete()
    p.call("ShutdownSandbox")


def test_virtual_machine_dies(host):
    p = Pod(host)
    p.call("CreateSandbox", (2, p.dir))
    pid = p.call("StartSandbox")[1][0]
    t = container(p, "c", ["sleep", "1000"])
    t.create()
    t.start()
    waiting = p.send("WaitSandbox")
    os.kill(pid, 9)
    assert p.conn.receive(waiting)[1] == [137]
    assert t.wait() == 137
    assert p.call("SandboxStatus")[3] == [b"SANDBOX_NOTREADY"]
    p.call("ShutdownSandbox")


def test_shim_is_killed(host):
    p = Pod(host)
    p.call("CreateSandbox", (2, p.dir))
    p.call("StartSandbox")
    with open(os.path.join(p.dir, "shim.pid"), encoding="ascii") as f:
        os.kill(int(f.read()), 9)
    out = host.shim(ID, p.dir, "delete", ns=NS).stdout
    assert decode(out)[2] == [137]


def test_bootstrap_of_containerd_2_3(host):
    """Parameters as a message on stdin; a message as the answer, with version 3."""
    params = encode([(1, ID), (2, NS), (4, "2.3.0"), (6, "/run/containerd/containerd.sock")])
    p = Pod(host, stdin=params)
    result = decode(p.out)
    assert result[1] == [3] and result[2][0].startswith(b"unix://") and result[3] == [b"ttrpc"]
    p.conn.close()
    v3 = Connection(p.address, "containerd.task.v3.Task")
    assert v3.call("Connect", [(1, ID)])[1][0] > 0
    v3.call("ShutdownSandbox", [(1, ID)], service=SERVICE)


def test_bootstrap_of_older_ones(host):
    """An Any with options on stdin, though it might pass for other parameters: a plain address."""
    settings = os.path.join(host.folder, "options.yaml")
    with open(settings, "w", encoding="ascii") as f:
        f.write("vm:\n  boot_timeout: 120s\n")
    options = encode([(1, "runtimeoptions.v1.Options"), (2, encode([(2, settings)]))])
    p = Pod(host, stdin=options)
    assert p.out.startswith(b"unix:///") and not p.out.endswith(b"\n")
    p.call("ShutdownSandbox")


def test_sockets_go_where_containerd_says(host, tmp_path):
    params = encode([(1, ID), (2, NS), (9, str(tmp_path / "sock"))])
    p = Pod(host, stdin=params)
    assert p.address.startswith(f"unix://{tmp_path}/sock/")
    p.call("ShutdownSandbox")
    assert not os.listdir(tmp_path / "sock")
