"""Our network device with a real guest kernel at the other end."""

import fcntl
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import tempfile
import threading

import pytest

from devices import Machine

pytestmark = pytest.mark.qemu

MIB = 1 << 20
MACS = ["02:00:00:00:07:01", "02:00:00:00:07:02"]


class Echo:
    """Sends back what it gets, on the host's side."""

    def __init__(self, address):
        self.sock = socket.create_server((address, 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                c, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(c,), daemon=True).start()

    @staticmethod
    def serve(c):
        with c:
            while data := c.recv(1 << 18):
                c.sendall(data)

    def close(self):
        self.sock.close()


class Bridge:
    """What passt does, less the network: frames of a stream socket go to a tap and back."""

    def __init__(self, path, tap):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.tap = os.open("/dev/net/tun", os.O_RDWR)
        tunsetiff, iff_tap, iff_no_pi = 0x400454ca, 2, 0x1000
        fcntl.ioctl(self.tap, tunsetiff, struct.pack("16sH22x", tap.encode(), iff_tap | iff_no_pi))
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        conn, _ = self.listener.accept()
        threading.Thread(target=self.back, args=(conn,), daemon=True).start()
        stream = conn.makefile("rb")
        while head := stream.read(4):
            os.write(self.tap, stream.read(struct.unpack(">I", head)[0]))

    def back(self, conn):
        try:
            while True:
                frame = os.read(self.tap, 65600)
                conn.sendall(struct.pack(">I", len(frame)) + frame)
        except OSError:
            pass


def run(*commands):
    for c in commands:
        subprocess.run(c.split(), check=True, capture_output=True)


@pytest.fixture(scope="module")
def vm():
    where = pathlib.Path(tempfile.mkdtemp(prefix="caisson-net-"))
    bridge = Bridge(where / "stream.sock", "ns0")
    run("ip tuntap add nt0 mode tap", "ip addr add 10.71.0.1/24 dev nt0", "ip link set nt0 up",
        # Without offloads, as passt has it.
        "ip addr add 10.72.0.1/24 dev ns0", "ip link set ns0 up")
    try:
        with Machine([("net", "nt0", MACS[0]), ("stream", where / "stream.sock", MACS[1])]) as m:
            found = {}
            for i in range(2):
                for net, mac in enumerate(MACS):
                    if m(f"mac eth{i}") == mac:
                        found[net] = f"eth{i}"
            for net, link in found.items():
                assert m(f"ip {link} 10.7{net + 1}.0.2") == "ok"
            yield m
    finally:
        bridge.listener.close()
        shutil.rmtree(where)
        run("ip link del nt0", "ip link del ns0")


@pytest.mark.parametrize("net, size", [(1, 16 * MIB), (2, 2 * MIB)])
def test_echo(vm, net, size):
    """Both ways at once; large segments with checksums left to the other end where there is a tap."""
    echo = Echo(f"10.7{net}.0.1")
    try:
        assert vm(f"echo 10.7{net}.0.1 {echo.port} {size}") == "ok"
    finally:
        echo.close()


def test_large_segments_stay_whole(vm):
    """Segmentation is left to whoever needs it: far fewer packets than MTUs."""
    def packets():
        text = subprocess.run(["ip", "-s", "-j", "link", "show", "nt0"], capture_output=True,
                              check=True).stdout
        return json.loads(text)[0]["stats64"]["rx"]["packets"]

    echo = Echo("10.71.0.1")
    before = packets()
    assert vm(f"echo 10.71.0.1 {echo.port} {8 * MIB}") == "ok"
    echo.close()
    assert packets() - before < 8 * MIB / 1460
