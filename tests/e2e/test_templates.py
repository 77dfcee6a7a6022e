"""Guests start from a saved one: what is the same in them, what must not be, and what goes wrong."""

import concurrent.futures
import os
import pathlib
import signal
import time

import pytest


def templates(c):
    d = pathlib.Path(c.root) / "templates"
    return sorted(p.name for p in d.iterdir()) if d.exists() else []


def log_of(c):
    return "".join(p.read_text(encoding="utf-8") for p in pathlib.Path(c.run_dir).rglob("shim.log"))


def started_from(c, *args):
    """Starts a container, and says whether its guest came from a template."""
    c("run", "-d", "--name", "guest", *args, c.image, "sleep", "1000").ok()
    log = log_of(c)
    c("rm", "-f", "guest").ok()
    assert ("left the template" in log) != ("starting from the template" in log), log
    return "starting from the template" in log


@pytest.fixture
def store(own_store):
    # The image is prepared here, so that what follows is the same work each time.
    own_store("run", "--rm", own_store.image, "true").ok()
    assert len(templates(own_store)) == 1
    return own_store


@pytest.mark.both
def test_the_first_leaves_it_and_others_use_it(own_store):
    assert not started_from(own_store)
    assert started_from(own_store)
    assert started_from(own_store)
    assert len(templates(own_store)) == 1
    # Another amount of memory is another machine.
    assert not started_from(own_store, "-m", "200m")
    assert started_from(own_store, "-m", "200m")
    assert len(templates(own_store)) == 2


def test_shares_of_others_are_not_in_it(own_store, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name, encoding="ascii")
    out = [own_store.run("-v", f"{tmp_path / n}:/mnt:ro", own_store.image, "ls", "/mnt").ok().out
           for n in ("one", "two", "one")]
    assert out == ["one\n", "two\n", "one\n"]


@pytest.mark.both
def test_clones_differ(store):
    script = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -tx1 -An"
    seen = set()
    for _ in range(3):
        lines = store.run(store.image, "sh", "-c", script).ok().out.split("\n")
        assert len(lines) == 4, lines
        for line in lines[:3]:
            assert line not in seen
            seen.add(line)
    a, b = (store.run(store.image, "hostname").ok().out for _ in range(2))
    assert a != b


def test_the_time_is_right(store):
    time.sleep(3)
    before = time.time()
    now = float(store.run(store.image, "date", "+%s").ok().out)
    assert before - 2 <= now <= time.time() + 2
    # A clock that stood still while nobody ran, and goes now.
    ticks = store.run(store.image, "sh", "-c", "cat /proc/uptime; sleep 2; cat /proc/uptime").ok().out.split()
    assert 1.9 < float(ticks[2]) - float(ticks[0]) < 20


@pytest.mark.parametrize("damage", ["ram is short", "state has other bytes", "no state", "no key",
                                    "key of another"])
def test_damage(store, damage):
    d = pathlib.Path(store.root) / "templates" / templates(store)[0]
    if damage == "ram is short":
        os.truncate(d / "ram", 4096)
    elif damage == "state has other bytes":
        data = bytearray((d / "state").read_bytes())
        data[len(data) // 2] ^= 0xff
        (d / "state").write_bytes(data)
    elif damage == "no state":
        (d / "state").unlink()
    elif damage == "no key":
        (d / "key").unlink()
    else:
        key = (d / "key").read_text(encoding="ascii")
        (d / "key").write_text(key.replace("boot ", "boot x"), encoding="ascii")
    assert not started_from(store)
    # It has been replaced by a whole one.
    assert started_from(store)
    assert len(templates(store)) == 1


def test_switched_off(own_store, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("vm:\n  templates: false\n  boot_timeout: 120s\n", encoding="ascii")
    own_store.run(own_store.image, "true", env={"CAISSON_CONFIG": str(config)}).ok()
    assert templates(own_store) == []


def test_eight_at_once_leave_one(own_store):
    own_store("run", "--rm", "-m", "300m", own_store.image, "true").ok()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda i: own_store("run", "--rm", own_store.image, "echo", str(i),
                                                 timeout=300), range(8)))
    assert [r.ok().out for r in runs] == [f"{i}\n" for i in range(8)]
    assert len(templates(own_store)) == 2


def test_only_eight_are_kept(store):
    for i in range(9):
        store.run("-m", f"{100 + i}m", store.image, "true").ok()
    assert len(templates(store)) == 8
    # The one of the last is among them.
    assert started_from(store, "-m", "108m")


def test_killed_while_it_is_made(own_store):
    """Whoever dies with an unfinished one: the next finishes the work, and nothing is left."""
    c = own_store
    for n in range(6):
        p = c.popen("run", "--rm", c.image, "true")
        end = time.monotonic() + 60
        made = []
        while not made and time.monotonic() < end and p.poll() is None:
            made = [x for x in templates(c) if x.startswith("new-")]
        time.sleep(0.25 * n)
        for line in c.processes():
            if "caisson-vmm" in line or "containerd-shim" in line:
                try:
                    os.kill(int(line.split()[0]), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        p.communicate(timeout=60)
        if p.returncode == 0:
            break
    c.remove_all()
    c.assert_clean()
    c.run("-m", "150m", c.image, "true").ok()
    c.run(c.image, "true").ok()
    assert started_from(c)
    assert not [x for x in templates(c) if x.startswith("new-")], templates(c)


def test_its_files_are_private(store):
    top = pathlib.Path(store.root) / "templates"
    for p in [top, *top.rglob("*")]:
        assert p.stat().st_mode & 0o077 == 0, p
