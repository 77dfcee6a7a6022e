"""The VM sees the pod's network: links, addresses, routes, and packets both ways.

The pod's namespace is what CNI would leave; the namespace of the tests stands for the host's.
"""

import os
import subprocess
import time

import pytest

import shimclient as sc
from netpod import Pod, ip
from shimclient import Task

pytestmark = pytest.mark.skipif(not sc.STAGE or not os.path.exists(sc.SHIM),
                                reason="CAISSON_STAGE names no staged build")

IDLE = ["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return sc.make_image(str(tmp_path_factory.mktemp("image")))


@pytest.fixture
def host(tmp_path, image, request):
    h = sc.Host(tmp_path / "h", image)
    yield h
    for t in h.tasks:
        if request.session.testsfailed:
            print(f"--- log of {t.id}\n{h.log(t.id)[-4000:]}")
        h.shim(t.id, t.dir, "delete", ns=t.ns, check=False)
    left = h.leftovers()
    assert not left, left


@pytest.fixture
def pod():
    p = Pod()
    yield p
    p.close()


def start(host, pod, cid="net", args=None, **spec):
    t = Task(host, cid, spec=pod.spec(args or IDLE, **spec))
    t.create()
    t.start()
    return t


def sh(t, script, name=[0]):
    name[0] += 1
    exec_id = f"x{name[0]}"
    out = t.fifo(f"{exec_id}.out")
    process = {"capabilities": {k: ["CAP_NET_RAW"] for k in
                                ("bounding", "effective", "permitted")}}
    t.exec(exec_id, ["sh", "-c", script], stdout=out, stderr=out, **process)
    t.start(exec_id)
    status = t.wait(exec_id)
    text = t.fifos[f"{exec_id}.out"].finish().decode()
    t.delete(exec_id)
    assert status == 0, f"{script}: {status}\n{text}"
    return text


def test_tcfilter(host, pod):
    """One veth, both families, its MTU and address; everything the guest is told."""
    pod.veth("eth0", ["10.9.0.2/24", "fd09::2/64"], "h0", ["10.9.0.1/24", "fd09::1/64"], mtu=1400,
             mac="02:11:22:33:44:55")
    pod.do("ip route add default via 10.9.0.1", "ip -6 route add default via fd09::1 metric 77",
           "ip route add 10.77.0.0/16 via 10.9.0.7 mtu 1300",
           "ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:99 dev eth0")
    t = start(host, pod)
    text = sh(t, "busybox ip addr; busybox ip route; busybox ip -6 route; cat /proc/net/arp;"
                 "busybox ping -c 2 -W 5 10.9.0.1; busybox ping -c 2 -W 5 fd09::1")
    print(text)
    print(pod.filters("eth0"), pod.do("ip -s link"))
