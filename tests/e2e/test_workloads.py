"""Real images, built from Debian packages, at their real work, each in a VM."""

import time

import pytest


@pytest.fixture
def service(caisson, image):
    """Starts a server in the background and waits until @probe succeeds inside it."""
    def start(name, *args, probe, command=(), seconds=180):
        caisson("run", "-d", "--name", name, *args, image(name), *command, timeout=300).ok()
        end = time.monotonic() + seconds
        while True:
            r = caisson("exec", name, *probe)
            if r.code == 0:
                return r
            if time.monotonic() > end or caisson.ps()[0]["State"] != "running":
                raise AssertionError(f"{r!r}\nlogs: {caisson('logs', name)!r}")
            time.sleep(0.5)
    return start


def test_busybox_builds_and_sorts(caisson):
    script = ("cd /tmp && for i in $(seq 200); do echo $((i * 7919 % 200)); done | sort -n | "
              "awk '{s += $1} END {print NR, s}' && tar cf a.tar /etc && tar tf a.tar | grep -c passwd")
    assert caisson.run(caisson.image, "sh", "-c", script).ok().out.splitlines()[0] == "200 19900"


def test_debian_userland(caisson, image):
    r = caisson.run(image("debian"), "bash", "-c",
                    "set -o pipefail; . /etc/os-release; echo $VERSION_CODENAME; dpkg -l | wc -l; "
                    "id -un; find / -xdev -type f | wc -l; perl -e 'print 6*7, qq(\\n)'", timeout=300).ok()
    lines = r.out.split()
    assert lines[0] == "bookworm" and int(lines[1]) > 50 and lines[2] == "root"
    assert int(lines[3]) > 2000 and lines[4] == "42"


def test_python_runs_a_script_from_stdin(caisson, image):
    script = "import sys, platform, sqlite3, hashlib, json\n" \
             "db = sqlite3.connect('/tmp/x.db')\n" \
             "db.execute('create table t (n)')\n" \
             "db.executemany('insert into t values (?)', [(i,) for i in range(1000)])\n" \
             "print(db.execute('select sum(n) from t').fetchone()[0], platform.release())\n" \
             "print(hashlib.sha256(b'caisson').hexdigest(), file=sys.stderr)\n" \
             "sys.exit(3)\n"
    r = caisson("run", "--rm", "-i", "-m", "256m", image("python3"), "python3", "-", input=script,
                timeout=300)
    assert r.code == 3 and r.out.startswith("499500 "), repr(r)
    assert len(r.err.strip()) == 64


def test_nginx_answers_http(caisson, service, image):
    fetch = ["curl", "-sS", "-i", "http://127.0.0.1/healthz"]
    r = service("nginx", "-m", "256m", probe=fetch)
    assert "200 OK" in r.out and r.out.endswith("ok\n")
    for _ in range(5):
        assert "200 OK" in caisson("exec", "nginx", *fetch).ok().out
    assert "GET /healthz" in caisson("logs", "nginx").ok().out
    caisson("stop", "nginx", timeout=120).ok()
    assert caisson.ps()[0]["ExitCode"] in (0, 137)


def test_postgresql_takes_a_query(caisson, service):
    psql = ["psql", "-h", "127.0.0.1", "-U", "postgres", "-At", "-c"]
    service("postgresql", "-m", "512m", "--image-volume", "ignore", probe=[*psql, "select 1"], seconds=300)
    caisson("exec", "postgresql", *psql,
            "create table t as select generate_series(1, 1000) n").ok()
    assert caisson("exec", "postgresql", *psql, "select sum(n), count(*) from t").ok().out == \
        "500500|1000\n"
    caisson("stop", "-t", "60", "postgresql", timeout=180).ok()
