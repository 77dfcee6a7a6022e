"""The testbed itself: tests/testbed/run, and tests that run in it."""

import fcntl
import os
import pathlib
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
RUN = TOP / "tests/testbed/run"
FAILED, TIMED_OUT = 125, 124


def run(*args, **kw):
    p = subprocess.run([RUN, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, timeout=120, check=False, **kw)
    if p.stderr.startswith(b"testbed: none to be had"):
        pytest.skip(p.stderr.decode(errors="replace").strip())
    return p


def processes(word):
    found = []
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if word in (p / "cmdline").read_bytes():
                found.append(int(p.name))
        except OSError:
            pass
    return found


def test_runs_a_command_on_a_scratch_copy_of_the_root(tmp_path):
    """Exit status, both streams whole and apart, directory, environment; what it writes is not seen
    outside, but in a shared directory."""
    (tmp_path / "seen").write_text("from outside", encoding="ascii")
    shared = tmp_path / "shared"
    shared.mkdir()
    script = ("seq 1 100000; cat seen >&2; echo new >seen; cat seen >shared/out; printf %s \"$WORD\" >&2;"
              " uname -r >shared/kernel; exit 7")
    p = run("--load", "", "--share", shared, "--", "sh", "-c", script, cwd=tmp_path,
            env={**os.environ, "WORD": "two words"})
    assert p.returncode == 7, p
    assert p.stdout == "".join(f"{i}\n" for i in range(1, 100001)).encode()
    assert p.stderr == b"from outsidetwo words"
    assert (tmp_path / "seen").read_text(encoding="ascii") == "from outside"
    assert (shared / "out").read_text(encoding="ascii") == "new\n"
    assert "amd64" in (shared / "kernel").read_text(encoding="ascii")


def test_a_command_that_never_ends_and_a_killed_one_leave_nothing():
    p = run("--load", "", "--timeout", "3", "--", "sleep", "1000")
    assert p.returncode == TIMED_OUT and b"not done after 3 s" in p.stderr, p
    with subprocess.Popen([RUN, "--load", "", "--", "sleep", "1001"], stderr=subprocess.DEVNULL) as q:
        end = time.monotonic() + 20
        while not processes(f"caisson-testbed-{q.pid}-".encode()):
            assert q.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        q.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while processes(f"caisson-testbed-{q.pid}-".encode()):
        assert time.monotonic() < end, "processes outlive the testbed"
        time.sleep(0.05)


def test_what_it_cannot_do_is_said(tmp_path):
    env = {**os.environ, "CAISSON_TESTBED_CACHE": str(tmp_path), "PATH": str(tmp_path)}
    p = subprocess.run(["/usr/bin/python3", RUN, "--", "true"], env=env, stderr=subprocess.PIPE,
                       text=True, check=False)
    assert p.returncode == FAILED
    assert p.stderr.startswith("testbed: ") and "apt-cache" in p.stderr, p.stderr


def sh(script, **kw):
    return subprocess.run(["sh", "-euc", script], check=True, stdout=subprocess.PIPE, text=True, **kw).stdout


def serve_nbd(sock, disk):
    """The network block device's protocol, until the other side disconnects."""
    read, write, disconnect = 0, 1, 2
    while len(head := sock.recv(28, socket.MSG_WAITALL)) == 28:
        _, kind, cookie, at, length = struct.unpack(">IIQQI", head)
        if kind & 0xffff == disconnect:
            break
        answer = struct.pack(">IIQ", 0x67446698, 0, cookie)
        if kind & 0xffff == write:
            disk[at:at + length] = sock.recv(length, socket.MSG_WAITALL)
        elif kind & 0xffff == read:
            answer += disk[at:at + length]
        sock.sendall(answer)
    sock.close()


@pytest.mark.testbed(load=("kvm_amd", "dm_mod", "nbd", "vhost_vsock", "vhost_net"), vfio=True)
class TestInside:
    """What the host's kernel may lack, in use."""

    def test_kvm(self):
        with open("/dev/kvm", "rb+", buffering=0) as kvm:
            assert fcntl.ioctl(kvm, 0xAE00) == 12

    def test_device_mapper(self):
        """A disk of two pieces in exchanged order."""
        sh("head -c 1M /dev/zero | tr '\\0' a >/run/disk; head -c 1M /dev/zero | tr '\\0' b >>/run/disk;"
           "d=$(losetup -f --show /run/disk);"
           "printf '0 2048 linear %s 2048\\n2048 2048 linear %s 0\\n' $d $d | dmsetup create --noudevsync swapped")
        name = sh("dmsetup info -c --noheadings -o blkdevname swapped").strip()
        disk = pathlib.Path("/dev", name).read_bytes()
        assert disk == b"b" * (1 << 20) + b"a" * (1 << 20)
        sh("dmsetup remove --noudevsync swapped; losetup -D")

    def test_nbd(self):
        set_sock, set_blksize, do_it, set_blocks, disconnect = 0xab00, 0xab01, 0xab03, 0xab07, 0xab08
        disk = bytearray(b"seen" + bytes((1 << 20) - 4))
        mine, its = socket.socketpair()
        threading.Thread(target=serve_nbd, args=(mine, disk), daemon=True).start()
        fd = os.open("/dev/nbd0", os.O_RDWR)
        fcntl.ioctl(fd, set_blksize, 4096)
        fcntl.ioctl(fd, set_blocks, len(disk) // 4096)
        fcntl.ioctl(fd, set_sock, its.fileno())
        device = threading.Thread(target=fcntl.ioctl, args=(fd, do_it))
        device.start()
        size = pathlib.Path("/sys/block/nbd0/size")
        while not pathlib.Path("/sys/block/nbd0/pid").exists() or size.read_text("ascii") == "0\n":
            assert device.is_alive()
            time.sleep(0.01)
        with open("/dev/nbd0", "rb+", buffering=0) as f:
            assert f.read(4) == b"seen"
            f.seek(8192)
            f.write(b"written" + bytes(505))
            os.fsync(f.fileno())
        assert disk[8192:8199] == b"written"
        fcntl.ioctl(fd, disconnect)
        device.join(10)
        os.close(fd)
        assert not device.is_alive()

    def test_ipvlan(self):
        """Its module comes on demand; two of one link reach each other."""
        sh("ip link add d0 type dummy; ip link set d0 up;"
           "for n in 1 2; do ip netns add n$n; ip link add link d0 name i$n type ipvlan mode l2;"
           " ip link set i$n netns n$n; ip -n n$n addr add 10.9.8.$n/24 dev i$n; ip -n n$n link set i$n up; done")
        assert "ipvlan" in pathlib.Path("/proc/modules").read_text(encoding="ascii")
        sh("ip netns exec n1 busybox ping -c 1 -W 10 10.9.8.2")
        sh("ip netns del n1; ip netns del n2; ip link del d0")

    def test_vhost(self):
        """vhost-vsock gives a guest its address; vhost-net and tun are there."""
        set_owner, set_guest_cid = 0xAF01, 0x4008AF60
        with open("/dev/vhost-vsock", "rb+", buffering=0) as f:
            fcntl.ioctl(f, set_owner)
            fcntl.ioctl(f, set_guest_cid, struct.pack("Q", 77))
        with open("/dev/vhost-net", "rb+", buffering=0) as f:
            fcntl.ioctl(f, set_owner)
        with open("/dev/net/tun", "rb"):
            pass

    def test_a_tpm(self, tmp_path):
        """swtpm behind a device of the kernel's: random numbers come from it."""
        sh("modprobe tpm_vtpm_proxy")
        with subprocess.Popen(["swtpm", "chardev", "--vtpm-proxy", "--tpm2", "--flags", "startup-clear",
                               "--tpmstate", f"dir={tmp_path}"]) as p:
            end = time.monotonic() + 60
            while not pathlib.Path("/dev/tpm0").exists():
                assert p.poll() is None and time.monotonic() < end, "no TPM"
                time.sleep(0.1)
            with open("/dev/tpm0", "rb+", buffering=0) as tpm:
                tpm.write(struct.pack(">HIIH", 0x8001, 12, 0x17b, 8))  # TPM2_GetRandom
                tag, _, code, n = struct.unpack_from(">HIIH", tpm.read(4096))
            assert (tag, code, n) == (0x8001, 0, 8)
            p.terminate()

    def test_a_card_can_be_given_away(self):
        """The emulated IOMMU makes groups, and vfio-pci takes a card whose driver nobody loaded."""
        subprocess.run(["modprobe", "vfio-pci"], check=True)
        cards = [d for d in pathlib.Path("/sys/bus/pci/devices").iterdir()
                 if (d / "device").read_text(encoding="ascii").strip() == "0x10d3"]
        assert cards and (cards[0] / "iommu_group").exists()
        (cards[0] / "driver_override").write_text("vfio-pci", encoding="ascii")
        pathlib.Path("/sys/bus/pci/drivers_probe").write_text(cards[0].name, encoding="ascii")
        group = (cards[0] / "iommu_group").resolve().name
        assert pathlib.Path("/dev/vfio", group).exists()
