"""Statistics of pods over the CRI: known load is produced in a container, and what is reported of it is
right within two per cent. The figures of both versions of cgroups are looked at."""

import json
import pathlib
import socket
import subprocess
import threading

import pytest

import ctrd as c
from conftest import TOP
from ctrd import wait_until

pytestmark = pytest.mark.skipif(c.missing() is not None, reason=str(c.missing()))

PORT = 5005
HEADERS = 14 + 20 + 8  # Ethernet, IPv4, UDP


@pytest.fixture(scope="module")
def daemon(stage):
    with c.cri_daemon(stage, "crs-") as d:
        yield d


@pytest.fixture(scope="module")
def cri(daemon):
    with c.cri_client(daemon) as client:
        yield client


class Load:
    """A container that produces load when it is told to."""

    def __init__(self, cri, daemon):
        self.cri, self.daemon = cri, daemon
        self.dir = daemon.dir / "go"
        self.dir.mkdir()
        program = daemon.dir / "load"
        subprocess.run(["gcc", "-static", "-O1", "-o", program, TOP / "tests/e2e/pod-load.c"], check=True)
        self.pod = cri.pod("load")
        # As the kubelet has it: made in the guest, on the pod's disk.
        empty = daemon.dir / "pods/uid-load/volumes/kubernetes.io~empty-dir/disk"
        empty.mkdir(parents=True)
        mounts = [dict(host_path=str(a), container_path=b, readonly=b != "/disk")
                  for a, b in ((self.dir, "/go"), (program, "/pod-load"), (empty, "/disk"))]
        self.container = self.pod.run("load", "/pod-load", "/go", "10.88.7.1", str(PORT), mounts=mounts)
        self.container.wait_log("ready")

    def produce(self, what):
        """Figures before, what it says that it did, figures after."""
        before = self.figures()
        (self.dir / what).touch()
        self.container.wait_log(f"{what} ", 120)
        said = [line for line in self.container.log().splitlines() if line.startswith(what)][0]
        return before, [int(x) for x in said.split()[1:]], self.figures()

    def figures(self):
        """Of the CRI, and what containerd has from the shim."""
        return self.container.stats(), self.metrics()

    def metrics(self):
        return json.loads(self.daemon.ctr("task", "metrics", "--format", "json", self.container.id,
                                          ns="k8s.io"))


@pytest.fixture(scope="module")
def load(cri, daemon):
    one = Load(cri, daemon)
    yield one
    one.pod.remove()


def near(got, want, share=0.02):
    assert abs(got - want) <= share * want, (got, want)


def test_processor_time(load):
    (stats, raw), (user, system), (stats2, raw2) = load.produce("cpu")
    near(stats2.cpu.usage_core_nano_seconds.value - stats.cpu.usage_core_nano_seconds.value,
         (user + system) * 1000)
    a, b = raw["cpu"]["usage"], raw2["cpu"]["usage"]
    near(b["total"] - a["total"], (user + system) * 1000)
    # Not the one for the other.
    near(b["user"] - a.get("user", 0), user * 1000)
    near(b["kernel"] - a.get("kernel", 0), system * 1000, 0.04)


def test_memory(load):
    (stats, raw), (size, faults), (stats2, raw2) = load.produce("mem")
    for field in ("rss_bytes", "working_set_bytes", "usage_bytes"):
        near(getattr(stats2.memory, field).value - getattr(stats.memory, field).value, size)
    near(stats2.memory.page_faults.value - stats.memory.page_faults.value, faults)
    near(raw2["memory"]["rss"] - raw["memory"]["rss"], size)
    assert raw2["memory"]["usage"]["usage"] == stats2.memory.usage_bytes.value or \
        abs(raw2["memory"]["usage"]["usage"] / stats2.memory.usage_bytes.value - 1) < 0.02


def of_disks(raw, op, kind="io_service_bytes_recursive"):
    return sum(x.get("value", 0) for x in raw["blkio"].get(kind, []) if x["op"] == op)


def test_disk(load):
    (stats, raw), (size,), (_, raw2) = load.produce("disk")
    for op in ("Write", "Read"):
        near(of_disks(raw2, op) - of_disks(raw, op), size)
    assert of_disks(raw2, "Read", "io_serviced_recursive") > of_disks(raw, "Read", "io_serviced_recursive")
    assert {x["device"][:7] for x in raw2["blkio"]["io_service_bytes_recursive"]} == {"/dev/vd"}
    # What is written to the root file system is in the layer of containerd's snapshotter.
    layer = stats.writable_layer.used_bytes.value
    wait_until(lambda: load.container.stats().writable_layer.used_bytes.value > layer + size * 0.9, 10)
    near(load.container.stats().writable_layer.used_bytes.value - layer, size)


def echo(sock, count):
    for _ in range(count):
        sock.sendto(*sock.recvfrom(65536))


def test_network(load, daemon):
    count, size = 3000, 1400
    sock = daemon.enter(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("10.88.7.1", PORT))
    sock.settimeout(60)
    thread = threading.Thread(target=echo, args=(sock, count))
    thread.start()
    (_, raw), (sent, length, received), (_, raw2) = load.produce("net")
    thread.join()
    sock.close()
    assert (sent, length, received) == (count, size, count)
    a, b = ({n["name"]: n for n in r["network"]} for r in (raw, raw2))
    for field in ("tx", "rx"):
        near(b["eth0"][f"{field}_bytes"] - a["eth0"].get(f"{field}_bytes", 0), count * (size + HEADERS))
        near(b["eth0"][f"{field}_packets"] - a["eth0"].get(f"{field}_packets", 0), count)
    assert "lo" in b


def test_metrics_of_version_2(load, daemon):
    """A host that has cgroups of version 2 gets those; the figures are the same."""
    one = load.metrics()
    view = pathlib.Path("/sys/fs/cgroup")
    v2 = view if (view / "cgroup.procs").exists() else view / "unified"
    if v2 == view:
        pytest.skip("no cgroups of version 1 here, to compare with")
    subprocess.run(daemon.inside("mount", "--bind", v2, view), check=True)
    try:
        two = load.metrics()
    finally:
        subprocess.run(daemon.inside("umount", view), check=True)
    assert "usage_usec" in two["cpu"], two
    near(two["cpu"]["usage_usec"] * 1000, one["cpu"]["usage"]["total"])
    near(two["cpu"]["user_usec"] * 1000, one["cpu"]["usage"]["user"])
    near(two["memory"]["anon"], one["memory"]["rss"])
    near(two["memory"]["usage"], one["memory"]["usage"]["usage"])
    near(sum(x.get("wbytes", 0) for x in two["io"]["usage"]), of_disks(one, "Write"))
