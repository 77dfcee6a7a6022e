"""Kinds of links that this host's kernel may lack, in the testbed: ipvlan, and vhost-net.

Guests of guests under emulation are slow: few tests, and one testbed for them all.
"""

import os
import pathlib

import pytest

import netpod
import test_network as net
from conftest import build_image
from netpod import Pod, ip
from test_network import host, image, pod, templates  # noqa: F401  pylint: disable=unused-import

OPTIONS = {"memory": 2048, "timeout": 500, "load": ("kvm_amd", "ipvlan", "macvtap", "vhost_net")}


def prepare_testbed():
    return {"CAISSON_TEST_TIMEOUT": "120", "CAISSON_TEST_IMAGE_busybox": build_image("busybox")}


def above(parent, inside, kind, mode, name, address):
    """A link of that kind above the host's @parent, in the pod's namespace."""
    ip("ip", "link", "add", "link", parent, "name", name, "netns", str(inside.holder.pid), "type", kind,
       "mode", mode)
    inside.do(f"ip addr add {address} dev {name}", f"ip link set {name} up")


@pytest.fixture
def wire():
    """A pair that is not in any pod: what stands above w0 talks to w1."""
    ip("ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1")
    ip("ip", "link", "set", "w0", "up")
    ip("ip", "link", "set", "w1", "up")
    yield "w0"
    ip("ip", "link", "del", "w0")


@pytest.mark.testbed(**OPTIONS)
@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_ipvlan(host, pod, wire, mode):  # noqa: F811  pylint: disable=redefined-outer-name
    """The guest's card has the parent's own address: packets are told apart by theirs alone."""
    neighbour = netpod.Netns()
    try:
        above(wire, pod, "ipvlan", mode, "eth0", "10.9.0.2/24")
        above(wire, neighbour, "ipvlan", mode, "eth0", "10.9.0.3/24")
        ip("ip", "addr", "add", "10.9.0.1/24", "dev", "w1")
        t = net.start(host, pod)
        link = net.sh(t, "busybox ip addr show eth0")
        assert "10.9.0.2/24" in link and ("NOARP" in link) == (mode == "l3"), link
        net.ping(t, "10.9.0.3")
        if mode == "l2":
            net.ping(t, "10.9.0.1")
            net.upload(t, "10.9.0.1", 1 << 18)
        neighbour.do("ping -c 1 -W 10 10.9.0.2")
        net.stop(t)
        net.clean(pod, "eth0")
    finally:
        neighbour.close()


def vhost_threads():
    return [p for p in pathlib.Path("/proc").glob("[0-9]*/comm")
            if p.read_text(encoding="utf-8").startswith("vhost-")]


@pytest.mark.testbed(**OPTIONS)
def test_vhost_net(host, pod):  # noqa: F811  pylint: disable=redefined-outer-name
    """QEMU under KVM leaves the packets to the host's kernel; without the device it moves them itself."""
    net.configure(host, "  machine: microvm\n")
    pod.veth("eth0", ["10.9.0.2/24"], "h0", ["10.9.0.1/24"])
    t = net.start(host, pod)
    assert vhost_threads()
    net.ping(t, "10.9.0.1")
    net.upload(t, "10.9.0.1", 1 << 18)
    net.stop(t)
    net.clean(pod, "eth0")
    os.rename("/dev/vhost-net", "/dev/vhost-net.off")
    try:
        t = net.start(host, pod, "again")
        assert not vhost_threads()
        net.ping(t, "10.9.0.1")
        net.stop(t)
    finally:
        os.rename("/dev/vhost-net.off", "/dev/vhost-net")
