"""Running containers are saved and go on: clones, snapshots in directories, and what is refused."""

import json
import pathlib
import subprocess
import time

import pytest

COUNT = ("echo start; mkdir -p /dev/shm/d; head -c 300000 /dev/urandom >/dev/shm/d/data; echo kept >/root/file; "
         "n=0; while :; do n=$((n+1)); echo $n >/dev/shm/n; echo line $n; sleep 0.1; done")


def number(c, name):
    """How far the counting process of a container is."""
    # The file is empty for a moment each time.
    return int(wait_for(lambda: c("exec", name, "cat", "/dev/shm/n").ok().out.strip()))


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.2)
    raise TimeoutError(what)


def start(c, name, *args):
    c("run", "-d", "--name", name, *args, c.image, "sh", "-c", COUNT).ok()
    return wait_for(lambda: c("exec", name, "cat", "/dev/shm/n").out and number(c, name))


def facts(c, name):
    script = ("md5sum </dev/shm/d/data; cat /root/file; hostname; cat /etc/hostname 2>/dev/null || hostname; "
              "cat /proc/sys/kernel/random/uuid; date +%s")
    return c("exec", name, "sh", "-c", script).ok().out.split("\n")


@pytest.mark.both
def test_a_clone_goes_on(caisson):
    """Memory, files and processes are there; the original counts on; both are stopped as any."""
    c = caisson
    start(c, "one")
    before = number(c, "one")
    made = c("clone", "one", "two").ok()
    assert len(made.out.strip()) == 64
    now = number(c, "two")
    assert before <= now < before + 400
    wait_for(lambda: number(c, "two") > now)
    assert number(c, "one") >= now
    asked = time.time()
    one, two = facts(c, "one"), facts(c, "two")
    assert one[0] == two[0] and one[1] == two[1] == "kept"
    assert two[2] == two[3] == made.out[:12] and one[2] != two[2]
    assert one[4] != two[4]
    assert asked - 2 <= int(two[5]) <= time.time() + 1
    # Its output is its own: nothing of what was written before, and all that comes now.
    wait_for(lambda: "line" in c("logs", "two").out)
    assert "start" not in c("logs", "two").out
    # One of a clone; what either writes is not the other's.
    c("clone", "two", "three").ok()
    c("exec", "three", "sh", "-c", "echo changed >/root/file").ok()
    assert facts(c, "two")[1] == "kept" and facts(c, "three")[1] == "changed"
    for name in ("one", "two", "three"):
        assert c("stop", "-t", "0", name).code == 0
        c("rm", name).ok()
    c.assert_clean()


def test_from_a_directory(caisson, tmp_path):
    """After the original is gone, several times; damage is found, and nothing is left of the attempt."""
    c = caisson
    start(c, "one", "--network", "none")
    saved = tmp_path / "saved"
    c("snapshot", "one", saved).ok()
    at = number(c, "one")
    c("rm", "-f", "one").ok()
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "container.json", "manifest.json", "ram",
                                                       "scratch", "state"]
    for name in ("r1", "r2"):
        c("restore", "--name", name, saved).ok()
        assert 0 < number(c, name) < at + 400
    assert facts(c, "r1")[0] == facts(c, "r2")[0]
    assert facts(c, "r1")[4] != facts(c, "r2")[4]
    c("rm", "-f", "r1", "r2").ok()

    data = bytearray((saved / "state").read_bytes())
    data[len(data) // 2] ^= 1
    (saved / "state").write_bytes(data)
    r = c("restore", saved)
    assert r.code == 125 and "the snapshot's file 'state' is damaged" in r.err, r
    manifest = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))
    manifest["MemoryMiB"] += 1
    (saved / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    r = c("restore", saved)
    assert r.code == 125 and "manifest.json is damaged" in r.err, r
    c.assert_clean()


def test_what_has_changed(caisson, tmp_path):
    """With the built-in monitor: a snapshot of the changes, one of the changes since that, and what they need."""
    c = caisson
    d = [tmp_path / str(i) for i in range(4)]
    start(c, "c0", "--network", "none")
    r = c("snapshot", "--incremental", "c0", d[1])
    assert r.code == 1 and "was not restored" in r.err and not d[1].exists(), r
    c("snapshot", "c0", d[0]).ok()
    c("restore", "--name", "c1", d[0]).ok()
    c("exec", "c1", "sh", "-c", "echo one >/dev/shm/one; echo one >/root/one").ok()
    r = c("snapshot", "--incremental", "c1", d[1])
    if not json.loads((d[0] / "manifest.json").read_text(encoding="utf-8"))["Machine"].startswith("machine 3"):
        assert r.code == 1 and "as a whole" in r.err and not d[1].exists(), r
        # It goes on all the same.
        at = number(c, "c1")
        wait_for(lambda: number(c, "c1") > at)
        c("rm", "-f", "c0", "c1").ok()
        return
    r.ok()
    c("rm", "-f", "c0", "c1").ok()
    c("restore", "--name", "c2", d[1]).ok()
    c("exec", "c2", "sh", "-c", "echo two >/dev/shm/two; cat /dev/shm/one /root/one").ok()
    c("snapshot", "--incremental", "c2", d[2]).ok()
    # One that holds everything, of the same machine.
    c("snapshot", "c2", d[3]).ok()
    at = number(c, "c2")
    c("rm", "-f", "c2").ok()
    whole, change = ((x / "ram").stat().st_blocks for x in (d[0], d[1]))
    assert 0 < change < whole / 2
    (d[0]).rename(tmp_path / "away")
    r = c("restore", d[2])
    assert r.code == 125 and str(d[0]) in r.err and "needs" in r.err, r
    c("restore", "--name", "c4", d[3]).ok()
    (tmp_path / "away").rename(d[0])
    c("restore", "--name", "c3", d[2]).ok()
    for name in ("c3", "c4"):
        out = c("exec", name, "cat", "/dev/shm/one", "/root/one", "/dev/shm/two").ok().out
        assert out == "one\none\ntwo\n"
        assert 0 < number(c, name) < at + 400
    assert facts(c, "c3")[0] == facts(c, "c4")[0]
    c("rm", "-f", "c3", "c4").ok()
    data = bytearray((d[2] / "pages").read_bytes())
    data[40] ^= 1
    (d[2] / "pages").write_bytes(data)
    r = c("restore", d[2])
    assert r.code == 125 and "'pages' is damaged" in r.err, r
    c.assert_clean()


def test_standard_input_stays_open(caisson):
    """A process that waits for its input goes on waiting in the clone, and does not see an end."""
    c = caisson
    p = c.popen("run", "-i", "--name", "one", c.image, "sh", "-c", "read x; echo got $x",
                stdin=subprocess.PIPE)
    wait_for(lambda: c("exec", "one", "true").code == 0)
    c("clone", "one", "two").ok()
    time.sleep(1)
    assert "running" in c("inspect", "two").out
    assert p.communicate(b"there\n", timeout=60)[0] == b"got there\n"
    c("rm", "-f", "one", "two")
    c.assert_clean()


@pytest.mark.parametrize("what", ["share", "stopped", "exists"])
def test_what_cannot_be_saved_is_said(caisson, tmp_path, what):
    c = caisson
    args, text = [], ""
    if what == "share":
        args, text = ["-v", f"{tmp_path}:/mnt"], "has directories of the host"
    c("run", "-d", "--name", "one", *args, c.image, "sleep", "1000").ok()
    to = tmp_path / "to"
    if what == "stopped":
        c("stop", "-t", "0", "one")
        text = "is not running"
    if what == "exists":
        to.mkdir()
        text = "File exists"
    r = c("snapshot", "one", to)
    assert r.code == 1 and text in r.err, r
    r = c("clone", "one", "two") if what != "exists" else r
    assert r.code and text in r.err, r
    assert not list(pathlib.Path(to).glob("*"))
    c("rm", "-f", "one").ok()
    c.assert_clean()
