"""--network container:NAME: containers of the command line that share one virtual machine."""

import json
import os
import signal
import time

import pytest


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value or time.monotonic() > end:
            return value
        time.sleep(0.1)


def states(c):
    return {r["Names"]: r["State"] for r in c.ps()}


def vmms(c):
    return [p for p in c.processes() if "caisson-vmm" in p.split()[1]]


SERVER = ("sh", "-c", "mkdir /w; echo served >/w/index.html; exec httpd -f -p 127.0.0.1:80 -h /w")


@pytest.fixture
def pair(caisson, detached):
    """A container "db" with a server on its loopback, and "side" in its machine."""
    detached("--hostname", "hostdb", name="db", command=SERVER)
    detached("--network", "container:db", name="side")
    return caisson


def test_shares_the_network_and_no_more(pair):
    c = pair
    assert len(vmms(c)) == 1
    look = "wget -qO- http://127.0.0.1/; hostname; cat /etc/hostname; ls /w 2>&1; cat /proc/1/cmdline"
    out = wait_for(lambda: (x := c("exec", "side", "sh", "-c", look).ok().out).startswith("served") and x)
    assert out.startswith("served\nhostdb\nhostdb\nls: ") and "sleep" in out
    # The same stack, seen from both.
    assert (c("exec", "db", "ip", "link").ok().out == c("exec", "side", "ip", "link").ok().out)
    (side,) = json.loads(c("inspect", "side").ok().out)
    (db,) = json.loads(c("inspect", "db").ok().out)
    assert side["NetworkMode"] == f"container:{db['Id']}" and side["Sandbox"] == db["Id"]
    # A third in the foreground, by way of the second; with limits, a user and an exit status of its own.
    r = c.run("--network", "container:side", "-m", "32m", "-u", "7", c.image, "sh", "-c",
              "wget -qO- http://127.0.0.1/; id -u; cat /sys/fs/cgroup/memory.max; exit 3")
    assert r.code == 3 and r.out == f"served\n7\n{32 << 20}\n", repr(r)
    assert states(c) == {"db": "running", "side": "running"} and len(vmms(c)) == 1
    c("rm", "-f", "db").fails(1, "db", "side")
    # The one that joined goes; the machine stays with its owner.
    assert c("stop", "-t", "0", "side").ok() and states(c) == {"db": "running", "side": "exited"}
    c("rm", "side").ok()
    assert "served" in c("exec", "db", "wget", "-qO-", "http://127.0.0.1/").ok().out
    assert c("logs", "db").ok().out == ""


def test_the_owner_may_end_first(pair):
    c = pair
    c("stop", "-t", "0", "db").ok()
    assert states(c) == {"db": "exited", "side": "running"}
    assert "lo" in c("exec", "side", "ip", "addr").ok().out
    c("rm", "db").fails(1, "db", "side")
    assert "container_" not in c("prune", "--containers").ok().err and "db" in states(c)
    c.run("--network", "container:db", c.image, "true").fails(125, "container:db", "not running")
    c("kill", "side").ok()
    assert wait_for(lambda: states(c)["side"] == "exited" and not c.processes())
    assert states(c) == {"db": "exited", "side": "exited"}
    c("rm", "db").ok()


def test_removed_at_their_end(caisson, detached):
    """--rm of an owner waits for those who have joined it."""
    c = caisson
    detached("--rm", name="db")
    detached("--rm", "--network", "container:db", name="side")
    c("kill", "db").ok()
    assert wait_for(lambda: states(c).get("db") == "exited") and states(c)["side"] == "running"
    c("kill", "side").ok()
    assert wait_for(lambda: states(c) == {} and not c.processes())


def test_start_later_and_failures(caisson, detached):
    c = caisson
    detached(name="db")
    c("create", "--name", "late", "--network", "container:db", c.image, "hostname").ok()
    # What fails in the guest leaves the others alone.
    c.run("--network", "container:db", c.image, "no-such-program").fails(127, "no-such-program")
    r = c.run("--network", "container:db", "-v", "/usr/share:/x", c.image, "true")
    assert r.code == 125 and "io.caisson.shares=true" in r.err
    (db,) = json.loads(c("inspect", "db").ok().out)
    assert c("start", "-a", "late").ok().out == db["Id"][:12] + "\n"
    assert states(c)["db"] == "running"
    c("create", "--name", "later", "--network", "container:db", c.image, "hostname").ok()
    c("rm", "-f", "db").ok()
    c("start", "-a", "later").fails(125, "container")


@pytest.mark.parametrize("args, words", [
    (["-p", "80:80"], ["published port", "container:db"]),
    (["--hostname", "x"], ["--hostname"]),
    (["--dns", "192.0.2.1"], ["--dns"]),
    (["--storage-opt", "size=1G"], ["--storage-opt"]),
    (["--network", "user"], ["other networks"]),
])
def test_what_belongs_to_the_machine(caisson, args, words):
    caisson.run("--network", "container:db", *args, caisson.image, "true").fails(125, *words)


def test_shared_directories(caisson, detached, tmp_path):
    c = caisson
    detached("--annotation", "io.caisson.shares=true", name="db")
    (tmp_path / "word").write_text("shared")
    r = c.run("--network", "container:db", "-v", f"{tmp_path}:/x", c.image, "sh", "-c", "cat /x/word; echo back >/x/to")
    assert r.out == "shared" and (tmp_path / "to").read_text() == "back\n"


def test_nobody_to_join(caisson):
    caisson.run("--network", "container:db", caisson.image, "true").fails(
        125, "container:db", "no such container")
    caisson.run("--network", "container:", caisson.image, "true").fails(125, "name of a container")


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.8])
def test_killed_in_the_middle(caisson, detached, delay):
    """kill -9 of the command that joins: the machine and its owner do not notice."""
    c = caisson
    detached(name="db")
    p = c.popen("run", "--rm", "--name", "side", "--network", "container:db", c.image, "sleep", "1000")
    time.sleep(delay)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert wait_for(lambda: states(c).get("side") in (None, "running"))
    c("rm", "-f", "side").ok()
    assert states(c) == {"db": "running"}
    assert c("exec", "db", "echo", "alive").ok().out == "alive\n"


def test_killed_machine(pair):
    """What is killed under both is noted for both, and freed once."""
    c = pair
    for p in c.processes():
        if "shim" in p:
            os.kill(int(p.split()[0]), signal.SIGKILL)
    assert wait_for(lambda: set(states(c).values()) == {"exited"})
    assert not c.processes()
    c("rm", "db", "side").ok()
