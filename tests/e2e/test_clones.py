"""Snapshot and restore under load, again and again; many clones of one at once.

The counts come from the environment: CAISSON_CYCLES, CAISSON_CLONES; by default they are small.
"""

import concurrent.futures
import hashlib
import json
import os
import shutil
import time

import in_testbed
from test_snapshot import wait_for

CYCLES = int(os.environ.get("CAISSON_CYCLES", "2"))
CLONES = int(os.environ.get("CAISSON_CLONES", "3"))
BLOB = 4 << 20

# Three that go on for ever, each with a count of what went well: a disk that is written and read past the
# cache, a TCP connection whose bytes come back, clocks that never go back. What goes wrong is in `bad`.
LOAD = r"""
cd /dev/shm; : >bad; head -c %d /dev/urandom >blob; cat /proc/sys/kernel/random/uuid >/etc/machine-id
disk() { n=0; while :; do n=$((n+1)); f=/root/d$((n %% 4)); head -c 131072 /dev/urandom >/dev/shm/page
  dd if=/dev/shm/page of=$f bs=64k conv=fsync 2>/dev/null; a=$(md5sum </dev/shm/page)
  b=$(dd if=$f bs=64k iflag=direct 2>/dev/null | md5sum)
  [ "$a" = "$b" ] || echo disk $n >>bad; echo $n >disk; done; }
tcp() { mkfifo to from; nc -l -p 7 -e cat & sleep 1; nc 127.0.0.1 7 <to >from & exec 3>to 4<from; n=0
  while :; do n=$((n+1)); echo "line $n" >&3; read -r x <&4 || echo tcp ended >>bad
  [ "$x" = "line $n" ] || { echo tcp $n $x >>bad; sleep 1; }; echo $n >tcp; done; }
clock() { u=0; t=0; n=0; while :; do n=$((n+1)); read -r a b </proc/uptime; a=${a%%.*}; c=$(date +%%s)
  [ $a -ge $u ] && [ $c -ge $t ] || echo clock $a $u $c $t >>bad; u=$a; t=$c; echo $n >clock; sleep 0.1; done; }
disk & tcp & clock & while :; do sleep 1000; done
""" % BLOB


def counts(c, name):
    out = c("exec", name, "sh", "-c", "cd /dev/shm; cat disk tcp clock bad").out.split("\n")[:-1]
    assert len(out) <= 3, out
    return [int(x) for x in out] if len(out) == 3 and all(out) else None


def blob_of(c, name):
    """All of it by a vsock stream, and its sum."""
    with c.popen("exec", name, "cat", "/dev/shm/blob") as p:
        data = p.stdout.read()
    return len(data), hashlib.md5(data).hexdigest()


def test_cycles(caisson):
    """Each copy goes on from the one before: not a byte lost, nothing stands still, no clock is wrong."""
    c = caisson
    c("run", "-d", "--name", "c0", c.image, "sh", "-c", LOAD).ok()
    wait_for(lambda: counts(c, "c0"))
    blob = blob_of(c, "c0")
    assert blob[0] == BLOB
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for i in range(CYCLES):
            old, new = f"c{i}", f"c{i + 1}"
            # The stream is under way while the machine stands still.
            stream = pool.submit(blob_of, c, old)
            before = wait_for(lambda old=old: counts(c, old))
            c("clone", old, new).ok()
            assert stream.result() == blob, i
            c("rm", "-f", old).ok()
            wait_for(lambda new=new, before=before: all(a > b for a, b in
                                                        zip(counts(c, new) or before, before)))
            earliest = time.time()
            now = int(c("exec", new, "date", "+%s").ok().out)
            assert earliest - 2 <= now <= time.time() + 1, i
            assert blob_of(c, new) == blob, i
    print(f"{CYCLES} cycles in {time.monotonic() - started:.0f} s, {wait_for(lambda: counts(c, f'c{CYCLES}'))}")
    # What has ended is gone, memory and all.
    c("stop", "-t", "0", f"c{CYCLES}").ok()
    r = c("start", f"c{CYCLES}")
    assert r.code and "came from a snapshot" in r.err, r


def test_many_at_once(caisson, tmp_path):
    """Each of them has its own names, numbers and time; together they take little memory."""
    c = caisson
    network = []
    # A plugin takes longer than it may where all is emulated twice.
    if not in_testbed.on_kvm() and (os.path.exists("/usr/lib/cni/bridge") or os.path.exists("/opt/cni/bin/bridge")):
        c("network", "create", "clones", "--subnet", "10.91.0.0/16").ok()
        network = ["--network", "clones"]
    c("run", "-d", "--name", "first", *network, c.image, "sh", "-c",
      "cat /proc/sys/kernel/random/uuid | tr -d - >/etc/machine-id; while :; do sleep 1000; done").ok()
    wait_for(lambda: c("exec", "first", "cat", "/etc/machine-id").out)
    saved = tmp_path / "saved"
    c("snapshot", "first", saved).ok()
    c("rm", "-f", "first").ok()
    names = [f"n{i}" for i in range(CLONES)]
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: c("restore", "--name", n, saved, timeout=600).ok(), names))
            script = ("hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/uuid; "
                      "head -c 16 /dev/urandom | od -tx1 -An; ip -4 -o addr show eth0 | cut -d' ' -f7; date +%s")

            def ask(name):
                start = time.time()
                out = c("exec", name, "sh", "-c", script, timeout=600).ok().out.split("\n")[:-1]
                return out, start - 2 <= int(out[-1]) <= time.time() + 2

            answers = list(pool.map(ask, names))
        for what in range(4 + bool(network)):
            assert len({a[0][what] for a in answers}) == CLONES, [a[0][what] for a in answers]
        assert all(right for _, right in answers)
        assert len(json.loads(c("ps", "--json").ok().out)) == CLONES
        with open("/proc/meminfo", encoding="ascii") as f:
            lines = dict(line.split(":") for line in f)
        print(f"{CLONES} clones; of {lines['MemTotal'].strip()} {lines['MemAvailable'].strip()} are available")
    finally:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: c("rm", "-f", n, timeout=600), names))
        if network:
            c("network", "rm", "clones")
        shutil.rmtree(saved, ignore_errors=True)
