"""Kinds of links that this host may lack, in the testbed: ipvlan, cards by VFIO, and vhost-net.

Guests of guests under emulation are slow: few tests, and one testbed for them all. CAISSON_KINDS=all
tries what else there is.
"""

import json
import os
import pathlib
import signal
import subprocess

import pytest

import netpod
import test_network as net
from conftest import build_image
from netpod import Pod, ip
from test_network import host, image, pod, templates  # noqa: F401  pylint: disable=unused-import

ALL = os.environ.get("CAISSON_KINDS") == "all"
OPTIONS = {"memory": 2048, "timeout": 600, "vfio": True,
           "load": ("kvm_amd", "ipvlan", "vhost_net")}


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
@pytest.mark.parametrize("mode", ["l2", "l3"] if ALL else ["l2"])
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
    if not ALL:
        return
    os.rename("/dev/vhost-net", "/dev/vhost-net.off")
    try:
        t = net.start(host, pod, "again")
        assert not vhost_threads()
        net.ping(t, "10.9.0.1")
        net.stop(t)
    finally:
        os.rename("/dev/vhost-net.off", "/dev/vhost-net")


def card(n):
    """The name of one of the testbed's two cards, which are here: in the first process's namespace."""
    for link in json.loads(ip("ip", "-j", "link")):
        if link["address"] == f"02:00:00:00:77:0{n}":
            return link["ifname"]
    return None


@pytest.fixture
def cards(pod):  # noqa: F811  pylint: disable=redefined-outer-name
    """One of two cards on a wire is the pod's, the other is here. Gives the first one's PCI device."""
    subprocess.run(["modprobe", "virtio_net"], check=True)
    assert net.eventually(lambda: card(0) and card(1))
    device = pathlib.Path("/sys/class/net", card(0), "device").resolve().parent
    ip("ip", "link", "set", card(0), "netns", pod.pid(), "name", "eth0")
    ip("ip", "link", "set", card(1), "name", "h0")
    ip("ip", "addr", "add", "10.9.0.1/24", "dev", "h0")
    ip("ip", "link", "set", "h0", "up")
    pod.do("ip addr add 10.9.0.2/24 dev eth0", "ip link set eth0 up", "ip route add default via 10.9.0.1")
    yield pathlib.Path("/sys/bus/pci/devices", device.name)
    ip("ip", "addr", "flush", "dev", "h0")
    ip("ip", "link", "set", "h0", "down")
    ip("ip", "link", "set", "h0", "name", "card1")


def allow_interrupts():
    """The testbed's IOMMU does not remap them."""
    pathlib.Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts").write_text(
        "1", encoding="ascii")


@pytest.mark.testbed(**OPTIONS)
def test_a_card_of_the_host(host, pod, cards):  # noqa: F811  pylint: disable=redefined-outer-name
    """By VFIO: the guest has the card itself; at the end, however that comes, the pod has it again."""
    pathlib.Path(host.config).write_text("vm:\n  boot_timeout: 150s\nnetwork:\n  model: vfio\n", encoding="ascii")
    with pytest.raises(RuntimeError, match="vfio-pci is not loaded"):
        net.start(host, pod, "none")
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    allow_interrupts()
    t = net.start(host, pod)
    assert "eth0" not in pod.links()
    record = json.loads(pathlib.Path(host.sandbox("net"), "state.json").read_text(encoding="ascii"))
    (link,) = record["network"]["links"]
    device = cards
    assert link["link"] == "eth0" and link["pci"] == device.name and (device / "driver").resolve().name == "vfio-pci"
    text = net.sh(t, "busybox ip addr show eth0; busybox ip route; busybox readlink -f /sys/class/net/eth0/device")
    for want in ("02:00:00:00:77:00", "inet 10.9.0.2/24", "default via 10.9.0.1 dev eth0", "/pci0000:00/"):
        assert want in text, text
    net.ping(t, "10.9.0.1", 2)
    net.upload(t, "10.9.0.1", 1 << 18)
    net.stop(t)
    assert net.eventually(lambda: "eth0" in pod.links()) and (device / "driver").resolve().name == "virtio-pci"
    # Its addresses went with the driver.
    pod.do("ip addr add 10.9.0.2/24 dev eth0", "ip link set eth0 up")
    t = net.start(host, pod, "again")
    assert "eth0" not in pod.links()
    for p in host.processes():
        os.kill(p, signal.SIGKILL)
    host.shim(t.id, t.dir, "delete", ns=t.ns)
    assert "eth0" in pod.links() and (device / "driver").resolve().name == "virtio-pci"


@pytest.mark.testbed(**OPTIONS)
def test_a_group_of_devices(host, pod, cards):  # noqa: F811  pylint: disable=redefined-outer-name
    """A card that somebody else has bound, by the node of its group."""
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    allow_interrupts()
    device = cards
    group = (device / "iommu_group").resolve().name
    spec = pod.spec(net.IDLE)
    spec["linux"]["devices"] = [{"path": f"/dev/vfio/{group}", "type": "c", "major": 511, "minor": 0}]
    pathlib.Path(host.config).write_text("vm:\n  boot_timeout: 150s\nnetwork:\n  model: none\n", encoding="ascii")
    with pytest.raises(RuntimeError, match=f"group {group}: a virtual machine gets whole groups"):
        net.Task(host, "used", spec=spec).create()
    (device / "driver_override").write_text("vfio-pci", encoding="ascii")
    (device / "driver/unbind").write_text(device.name, encoding="ascii")
    pathlib.Path("/sys/bus/pci/drivers_probe").write_text(device.name, encoding="ascii")
    t = net.Task(host, "group", spec=spec)
    t.create()
    t.start()
    assert "02:00:00:00:77:00" in net.sh(t, "busybox ip link; ls /dev")
    net.stop(t)
    assert (device / "driver").resolve().name == "vfio-pci"
    (device / "driver_override").write_text("\n", encoding="ascii")
    (device / "driver/unbind").write_text(device.name, encoding="ascii")
    pathlib.Path("/sys/bus/pci/drivers_probe").write_text(device.name, encoding="ascii")


SRIOV = {**OPTIONS, "vfio": False, "sriov": True, "flavour": "amd64"}


@pytest.fixture
def functions(pod):  # noqa: F811  pylint: disable=redefined-outer-name
    """Two virtual functions of one card: the first is the pod's eth0, the second h0 here."""
    for module in ("igb", "igbvf", "vfio-pci"):
        subprocess.run(["modprobe", module], check=True)
    allow_interrupts()
    card_of = pathlib.Path("/sys/bus/pci/drivers/igb")
    physical = next(x.resolve() for x in card_of.iterdir() if x.name[0].isdigit())
    (physical / "sriov_numvfs").write_text("2", encoding="ascii")
    links = [physical / f"virtfn{i}" / "net" for i in range(2)]
    assert net.eventually(lambda: all(x.is_dir() for x in links))
    assert net.eventually(lambda: (physical / "net").is_dir())
    (above_all,) = os.listdir(physical / "net")
    ip("ip", "link", "set", above_all, "up")
    names = [os.listdir(x)[0] for x in links]
    ip("ip", "link", "set", names[0], "netns", pod.pid(), "name", "eth0")
    ip("ip", "link", "set", names[1], "name", "h0")
    ip("ip", "addr", "add", "10.9.0.1/24", "dev", "h0")
    ip("ip", "link", "set", "h0", "up")
    pod.do("ip addr add 10.9.0.2/24 dev eth0", "ip link set eth0 up", "ip route add default via 10.9.0.1")
    yield links[0].parent.resolve()
    (physical / "sriov_numvfs").write_text("0", encoding="ascii")


@pytest.mark.testbed(**SRIOV)
def test_a_virtual_function(host, pod, functions):  # noqa: F811  pylint: disable=redefined-outer-name
    """The guest drives one function of a card that the host and others go on using."""
    pathlib.Path(host.config).write_text("vm:\n  boot_timeout: 150s\nnetwork:\n  model: vfio\n", encoding="ascii")
    print(ip("ip", "link"), pod.do("ip link"))
    t = net.start(host, pod)
    assert "eth0" not in pod.links() and (functions / "driver").resolve().name == "vfio-pci"
    text = net.sh(t, "busybox ip addr show eth0; busybox readlink -f /sys/class/net/eth0/device/driver")
    assert "inet 10.9.0.2/24" in text and "igbvf" in text, text
    net.ping(t, "10.9.0.1", 2)
    net.stop(t)
    assert net.eventually(lambda: "eth0" in pod.links()) and (functions / "driver").resolve().name == "igbvf"
