"""The block device with a real guest kernel at the other end."""

import os
import pathlib
import subprocess
import tempfile
import threading
import time

import pytest

from devices import Machine

pytestmark = pytest.mark.qemu

MIB = 1 << 20


@pytest.fixture(scope="module")
def where():
    with tempfile.TemporaryDirectory(prefix="caisson-blk-") as d:
        yield pathlib.Path(d)


@pytest.fixture(scope="module")
def vm(where):
    for name, size in [("rw", 64 * MIB), ("ro", MIB), ("late", 4 * MIB)]:
        with open(where / name, "wb") as f:
            f.truncate(size)
    with Machine([("blk", where / "rw", "disk-rw"), ("blk", where / "ro", "disk-ro", "ro"),
                  ("blk", "-", "none")]) as m:
        yield m


def test_disks_are_found_by_serial(vm):
    assert vm("disks").split() == ["disk-rw:131072:0", "disk-ro:2048:1", "none:0:0"]


def test_what_is_written_is_read_back_and_in_the_file(vm, where):
    assert vm(f"fill disk-rw 0 {32 * MIB} 7") == "ok"
    assert vm(f"check disk-rw 0 {32 * MIB} 7") == "ok"
    assert vm(f"check disk-rw 0 {MIB} 8") == "differs"
    with open(where / "rw", "rb") as f:
        f.seek(4096)
        assert f.read(8) == ((4096 * 0x9e3779b97f4a7c15 + 7) % (1 << 64)).to_bytes(8, "little")


def test_discard_gives_the_space_back(vm, where):
    assert vm(f"fill disk-rw {40 * MIB} {8 * MIB} 1") == "ok"
    before = os.stat(where / "rw").st_blocks
    assert vm(f"discard disk-rw {40 * MIB} {8 * MIB}") == "ok"
    assert os.stat(where / "rw").st_blocks <= before - 8 * MIB // 512
    assert vm(f"zeros disk-rw {40 * MIB} {8 * MIB}") == "ok"


def test_zeroes(vm):
    assert vm(f"fill disk-rw {48 * MIB} {2 * MIB} 1") == "ok"
    assert vm(f"zero disk-rw {48 * MIB} {MIB}") == "ok"
    assert vm(f"zeros disk-rw {48 * MIB} {MIB}") == "ok"
    assert vm(f"check disk-rw {49 * MIB} {MIB} 1") == "ok"


def test_pause_in_the_middle(vm):
    stop = threading.Event()

    def pauses():
        while not stop.is_set():
            vm.qmp("stop")
            time.sleep(0.03)
            vm.qmp("cont")
            time.sleep(0.03)
    t = threading.Thread(target=pauses)
    t.start()
    try:
        assert vm(f"fill disk-rw 0 {16 * MIB} 9") == "ok"
        assert vm(f"check disk-rw 0 {16 * MIB} 9") == "ok"
    finally:
        stop.set()
        t.join()


def test_read_only(vm):
    assert vm("zeros disk-ro 0 4096") == "ok"
    assert vm("fill disk-ro 0 4096 1") != "ok"
    assert vm("discard disk-ro 0 4096") != "ok"


def test_slot_is_filled_and_emptied_while_the_guest_runs(vm, where):
    slot = vm.backends[3]

    def tell(line):
        slot.stdin.write(line + "\n")
        slot.stdin.flush()
        return slot.stdout.readline().strip()

    for _ in range(3):
        assert tell(f"attach {where}/late disk-late") == "ok"
        assert vm("await disk-late 8192") == "ok"
        assert vm(f"fill disk-late 0 {MIB} 3") == "ok"
        assert vm(f"check disk-late 0 {MIB} 3") == "ok"
        assert tell("detach") == "ok"
        assert vm("disks").split()[2].startswith(":") or vm("await none 0") == "never"


def test_a_shortened_file_is_an_io_error(vm, where):
    os.truncate(where / "rw", 32 * MIB)
    assert vm(f"zeros disk-rw {56 * MIB} 4096") == "Input/output error"
    assert vm(f"check disk-rw 0 {MIB} 9") == "ok"


def test_without_io_uring(caisson, tmp_path):
    """Worker threads do the same, in the same jail."""
    wrapper = tmp_path / "no-uring"
    subprocess.run([os.environ.get("CC", "cc"), "-o", wrapper, pathlib.Path(__file__).parent / "no-uring.c"],
                   check=True)
    caisson.bin, real = wrapper, caisson.bin
    try:
        r = caisson(real, "run", "--rm", "--storage-opt", "size=128m", caisson.image, "sh", "-c",
                    "dd if=/dev/urandom of=/a bs=1M count=4 2>/dev/null; cp /a /b; sync; "
                    "dd if=/b bs=1M iflag=direct 2>/dev/null | cmp - /a && rm /a && sync && echo same").ok()
        assert r.out == "same\n"
    finally:
        caisson.bin = real
