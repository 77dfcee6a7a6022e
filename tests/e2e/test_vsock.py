"""The vsock device under load, with a real guest kernel at the other end."""

import os
import selectors
import socket
import threading
import time

import pytest

from devices import PERIOD, Machine, pattern

pytestmark = pytest.mark.qemu

SIZE = int(os.environ.get("CAISSON_VSOCK_MIB", "64")) << 20


@pytest.fixture(scope="module")
def vm():
    with Machine([]) as m:
        yield m


@pytest.fixture(scope="module")
def data():
    p = pattern()
    return p + p[:1 << 20]


def test_echo(vm):
    with vm.connect(7) as s:
        s.sendall(b"hello")
        assert s.recv(100) == b"hello"


def test_nobody_listens_in_the_guest(vm):
    with pytest.raises(ConnectionError):
        vm.connect(4711)


def test_guest_dials_out(vm):
    with vm.listen(2000) as listener:
        def serve():
            conn, _ = listener.accept()
            with conn:
                got = b""
                while chunk := conn.recv(100):
                    got += chunk
                conn.sendall(got.upper())
        t = threading.Thread(target=serve)
        t.start()
        assert vm("dial 2000 text") == "TEXT end"
        t.join()


def test_guest_dials_nobody(vm):
    assert vm("dial 2001 text") == "Connection reset by peer"


def test_port_is_known_to_both_sides(vm):
    with vm.connect(7) as a, vm.connect(7) as b:
        a.sendall(b"a")
        b.sendall(b"b")
        assert (a.recv(9), b.recv(9)) == (b"a", b"b")


def test_half_close(vm, data):
    with vm.connect(8) as s:
        s.sendall(data[:300000])
        s.shutdown(socket.SHUT_WR)
        assert s.makefile().read() == "300000 ok\n"


def test_bulk_to_guest(vm, data):
    with vm.connect(8) as s:
        sent = 0
        while sent < SIZE:
            at = sent % PERIOD
            sent += s.send(data[at:at + min(1 << 18, SIZE - sent)])
        s.shutdown(socket.SHUT_WR)
        assert s.makefile().read() == f"{SIZE} ok\n"


def test_bulk_from_guest(vm, data):
    with vm.connect(9) as s:
        s.sendall(f"{SIZE}\n".encode())
        got = 0
        while chunk := s.recv(1 << 18):
            at = got % PERIOD
            assert chunk == data[at:at + len(chunk)], f"differs near {got}"
            got += len(chunk)
        assert got == SIZE


def test_slow_reader_does_not_hold_up_others(vm, data):
    with vm.connect(9) as slow, vm.connect(9) as fast:
        slow.sendall(b"8000000\n")
        time.sleep(0.5)
        fast.sendall(b"4000000\n")
        got = 0
        while chunk := fast.recv(1 << 18):
            got += len(chunk)
        assert got == 4000000
        got = 0
        while chunk := slow.recv(1 << 14):
            at = got % PERIOD
            assert chunk == data[at:at + len(chunk)]
            got += len(chunk)
        assert got == 8000000


def test_pause_in_the_middle(vm, data):
    with vm.connect(9) as down, vm.connect(8) as up, vm.connect(7) as idle:
        idle.sendall(b"before")
        assert idle.recv(100) == b"before"
        down.sendall(b"20000000\n")
        stop = threading.Event()

        def pauses():
            while not stop.is_set():
                vm.qmp("stop")
                time.sleep(0.05)
                vm.qmp("cont")
                time.sleep(0.05)
        t = threading.Thread(target=pauses)
        t.start()
        try:
            got = 0
            while chunk := down.recv(1 << 16):
                at = got % PERIOD
                assert chunk == data[at:at + len(chunk)]
                got += len(chunk)
            assert got == 20000000
            sent = 0
            while sent < 20000000:
                at = sent % PERIOD
                sent += up.send(data[at:at + min(1 << 16, 20000000 - sent)])
            up.shutdown(socket.SHUT_WR)
            assert up.makefile().read() == "20000000 ok\n"
        finally:
            stop.set()
            t.join()
        idle.sendall(b"after")
        assert idle.recv(100) == b"after"


def test_client_that_leaves_in_the_middle(vm):
    for _ in range(20):
        with vm.connect(9) as s:
            s.sendall(b"10000000\n")
            s.recv(1000)
    with vm.connect(7) as s:
        s.sendall(b"x")
        assert s.recv(1) == b"x"


def test_thousand_connections(vm):
    n = 1000
    socks = []
    try:
        for _ in range(n):
            socks.append(vm.connect(7))
        sel = selectors.DefaultSelector()
        for i, s in enumerate(socks):
            sel.register(s, selectors.EVENT_READ, i)
            s.sendall(f"conn {i:04} ".encode() * 10)
        got = [b""] * n
        left = n
        while left:
            events = sel.select(30)
            assert events, f"{left} connections are silent"
            for key, _ in events:
                got[key.data] += key.fileobj.recv(4096)
                if len(got[key.data]) == 100:
                    left -= 1
        assert all(g == f"conn {i:04} ".encode() * 10 for i, g in enumerate(got))
    finally:
        for s in socks:
            s.close()
    # All of them are given back in time.
    deadline = time.monotonic() + 20
    while True:
        try:
            again = [vm.connect(7) for _ in range(50)]
            break
        except ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    for s in again:
        s.close()


def test_guest_powers_off_cleanly():
    with Machine([]) as m:
        m.off()
