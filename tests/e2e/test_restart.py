"""Containers that have ended are started again: by hand, and by their restart policy."""

import json
import os
import signal

from ctrd import wait_until


def record(caisson, name):
    return json.loads(caisson("inspect", name).ok().out)[0]


def test_it_finds_what_it_wrote(caisson):
    r = caisson("run", "--name", "again", caisson.image, "sh", "-c",
                "echo line >>/kept; wc -l </kept; exit 3")
    assert (r.code, r.out) == (3, "1\n")
    r = caisson("start", "-a", "again")
    assert (r.code, r.out) == (3, "2\n"), r
    caisson("restart", "again").ok()
    wait_until(lambda: caisson("logs", "again").out == "1\n2\n3\n")
    wait_until(lambda: record(caisson, "again")["State"] == "exited")
    scratch = record(caisson, "again")["Scratch"]
    assert os.path.exists(scratch)
    caisson("rm", "again").ok()
    assert not os.path.exists(scratch)


def test_after_a_crash(caisson):
    """The file system on the scratch disk was never unmounted then."""
    caisson("run", "-d", "--name", "crash", caisson.image, "sh", "-c",
            "cat /kept; echo kept >/kept; sync; echo up; sleep 1000").ok()
    wait_until(lambda: "up" in caisson("logs", "crash").out)
    os.kill(record(caisson, "crash")["Pid"], signal.SIGKILL)
    wait_until(lambda: record(caisson, "crash")["State"] == "exited")
    caisson("start", "crash").ok()
    wait_until(lambda: caisson("logs", "crash").out.count("up") == 2)
    assert "kept\n" in caisson("logs", "crash").out
    assert caisson("start", "crash").ok().out == "crash\n"
    caisson("rm", "-f", "crash").ok()


def test_a_start_that_fails_leaves_it(caisson):
    """The program is gone when it is started again."""
    caisson("run", "--name", "once", caisson.image, "sh", "-c", "cp /bin/true /p; rm /bin/sh").ok()
    r = caisson("start", "-a", "once")
    assert r.code == 127 and "not found" in r.err, r
    assert record(caisson, "once")["State"] == "exited"
    caisson("rm", "once").ok()


def test_policies(caisson):
    caisson("run", "-d", "--name", "fails", "--restart", "on-failure:2", caisson.image, "sh", "-c",
            "echo run; exit 1").ok()
    wait_until(lambda: caisson("logs", "fails").out == "run\n" * 3 and
               record(caisson, "fails")["State"] == "exited", 60)
    caisson("run", "-d", "--name", "stays", "--restart", "always", caisson.image, "sh", "-c",
            "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done").ok()
    wait_until(lambda: caisson("logs", "stays").out == "up\n")
    caisson("exec", "stays", "kill", "-TERM", "1").ok()
    wait_until(lambda: caisson("logs", "stays").out == "up\nup\n", 60)
    assert caisson("logs", "fails").out == "run\n" * 3
    caisson("stop", "stays").ok()
    assert record(caisson, "stays")["State"] == "exited"
    assert record(caisson, "stays")["RestartCount"] == 1
    r = caisson("run", "--rm", "--restart", "always", caisson.image, "true")
    assert r.code == 125 and "--restart and --rm" in r.err
    r = caisson("run", "--restart", "sometimes", caisson.image, "true")
    assert r.code == 125 and "on-failure[:N]" in r.err
    caisson("rm", "-f", "fails", "stays").ok()
