"""The testbed itself: tests/testbed/run, and tests that run in it."""

import os
import pathlib
import signal
import subprocess
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
    p = run("--load", "", "--timeout", "6", "--", "sleep", "1000")
    assert p.returncode == TIMED_OUT and b"not done after 6 s" in p.stderr, p
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


@pytest.mark.testbed(load=("kvm_amd", "dm_mod", "nbd", "vhost_vsock", "vhost_net"), vfio=True)
class TestInside:
    """What the host's kernel may lack."""

    def test_kvm(self):
        import fcntl  # pylint: disable=import-outside-toplevel
        with open("/dev/kvm", "rb+", buffering=0) as kvm:
            assert fcntl.ioctl(kvm, 0xAE00) == 12

    def test_devices(self):
        for d in ("mapper/control", "nbd0", "vhost-vsock", "vhost-net"):
            assert pathlib.Path("/dev", d).exists(), d

    def test_modules_are_loaded_on_demand(self):
        subprocess.run(["ip", "link", "add", "ipvl0", "link", "lo", "type", "ipvlan"], check=False)
        modules = pathlib.Path("/proc/modules").read_text(encoding="ascii")
        assert "ipvlan" in modules
        with open("/dev/net/tun", "rb"):
            pass

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
