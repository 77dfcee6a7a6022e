"""Machines that wait in the pool: who takes them, who makes more, and what is left when anything is killed."""

import json
import os
import pathlib
import signal
import socket
import time
import urllib.request

import pytest

import test_templates


def inspect(c):
    return json.loads(c("pool", "inspect").ok().out)[0]


def machines(c, state="ready"):
    return [m for m in inspect(c)["Machines"] if m["State"] == state]


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


@pytest.fixture
def pool(caisson):
    """With one machine of the default kind."""
    c = caisson
    c("pool", "set", "1").ok()
    c.run(c.image, "true").ok()
    wait_for(lambda: machines(c))
    yield c
    c.remove_all()
    c("pool", "set", "0").ok()
    assert not (pathlib.Path(c.run_dir) / "pool").exists()
    c("pool", "set", "default").ok()


def took(c, *args):
    """Starts a container, and says whether it took a machine of the pool."""
    c("run", "-d", "--name", "guest", *args, c.image, "sleep", "1000").ok()
    log = test_templates.log_of(c)
    return "took a machine of the pool" in log


def test_a_container_takes_it_and_another_is_made(pool):
    c = pool
    first = machines(c)[0]
    assert first["UsedBytes"] > 0 and first["MemoryBytes"] > 0 and first["Machine"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    assert took(c, "-p", f"127.0.0.1:{port}:80")
    wait_for(lambda: [m for m in machines(c) if m["Name"] != first["Name"]])
    # It is as any other: its own name, time, random numbers, and network.
    script = "hostname; date +%s; cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -tx1 -An"
    asked = time.time()
    one = c("exec", "guest", "sh", "-c", script).ok().out.split("\n")
    assert asked - 2 <= int(one[1]) <= time.time() + 1
    c("exec", "guest", "sh", "-c", "mkdir /w; echo over the wire >/w/index.html; httpd -p 80 -h /w").ok()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        assert answer.read() == b"over the wire\n"
    c("rm", "-f", "guest").ok()
    assert took(c)
    two = c("exec", "guest", "sh", "-c", script).ok().out.split("\n")
    assert not set(one) & set(two) - {one[1], ""}, (one, two)
    # The pool is ended, the container goes on.
    wait_for(lambda: machines(c))
    c("pool", "set", "0").ok()
    assert not inspect(c)["Machines"]
    assert c("exec", "guest", "echo", "here").ok().out == "here\n"


def test_others_do_not(pool, tmp_path):
    """Another kind has its own; directories of the host cannot be given to one that runs already."""
    c = pool
    assert not took(c, "-v", f"{tmp_path}:/mnt")
    c("rm", "-f", "guest").ok()
    assert not took(c, "-m", "200m")
    # Its kind has one from now on, too.
    wait_for(lambda: {m["MemoryBytes"] >> 20 for m in machines(c)} == {256, 264})


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def vmm_of(pid):
    """The end of the machine: QEMU, or the monitor itself."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(children[0]) if children else pid


@pytest.mark.parametrize("what", ["the machine", "caisson-vmm"])
def test_a_dead_one_is_not_taken(pool, what):
    c = pool
    pid = machines(c)[0]["Pid"]
    kill(vmm_of(pid) if what == "the machine" else pid)
    assert not took(c) or what == "the machine"
    # It is replaced.
    wait_for(lambda: [m for m in machines(c) if m["Pid"] != pid])
    assert c("exec", "guest", "echo", "here").ok().out == "here\n"


def test_killed_while_it_is_filled(pool):
    """Who fills is killed at several moments: the next ends what was begun, and `set 0` all of it."""
    c = pool
    c("pool", "rm", "--all").ok()
    for delay in (0.0, 0.1, 0.4):
        p = c.popen("pool", "fill", start_new_session=True)
        wait_for(lambda: list(pathlib.Path(c.run_dir).glob("pool/*/new-*")) or p.poll() is not None)
        time.sleep(delay)
        for line in c.processes():
            if " fill" in line:
                try:
                    kill(int(line.split()[0]))
                except ProcessLookupError:
                    pass
        p.communicate(timeout=60)
    c("pool", "fill").ok()
    assert len(machines(c)) == 1
    assert not list(pathlib.Path(c.run_dir).glob("pool/*/new-*"))
    assert len([x for x in c.processes() if "caisson-vmm" in x]) == 1


def test_words(own_store):
    c = own_store
    c("pool", "set", "65").fails(125, "0 to 64")
    c("pool", "rm", "nothing").fails(1, "nothing")
    c("pool", "rm").fails(125, "names or --all")
    c("pool", "fill").fails(1, "size is 0")
    c("pool", "set", "3").ok()
    assert inspect(c) == {"Size": 3, "Ready": 0, "UsedBytes": 0, "Machines": []}
    config = pathlib.Path(c.root) / "pool.yaml"
    config.write_text("vm:\n  pool: 2\n", encoding="ascii")
    c("pool", "set", "default").ok()
    assert json.loads(c("pool", "inspect", env={"CAISSON_CONFIG": str(config)}).ok().out)[0]["Size"] == 2
    assert json.loads(c("pool", "ls", "--json").ok().out) == []
