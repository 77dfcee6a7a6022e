"""The host's disk is full: what needs room says so, leaves nothing, and what runs goes on."""

import os
import subprocess

import pytest

from conftest import wait_for_none


@pytest.fixture
def small(tmp_path):
    """Makes small file systems."""
    made = []

    def mount(path, size):
        path.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "small", path], check=True)
        made.append(path)
        return path
    yield mount
    for path in made:
        subprocess.run(["umount", "-l", path], check=True)


def assert_clean(caisson):
    """But for the file system itself."""
    own = f"mount {caisson.run_dir}"
    wait_for_none(lambda: [x for x in caisson.leaks() if x != own], 10)


def fill(path, leave):
    """All but so many KiB."""
    st = os.statvfs(path)
    (path / "full.lock").write_bytes(bytes(max(0, st.f_bavail * st.f_frsize - leave * 1024)))


@pytest.mark.parametrize("leave", [0, 24])
def test_no_room_for_the_state(caisson, small, leave):
    """Whichever step it is that finds the disk full."""
    small(caisson.run_dir, "2m")
    fill(caisson.run_dir, leave)
    r = caisson("run", "--rm", caisson.image, "true")
    if r.code != 0:
        r.fails(r.code, "no space left")
    else:
        assert leave > 0
    assert_clean(caisson)
    (caisson.run_dir / "full.lock").unlink()
    caisson("run", "--rm", caisson.image, "true").ok()


def test_no_room_for_the_log(caisson, small):
    """A container that has more to say than the log has room for runs to its end."""
    small(caisson.run_dir, "2m")
    caisson("run", "-d", "--name", "talks", caisson.image, "sh", "-c",
            "until [ -e /go ]; do sleep 0.1; done; seq 1 500000; exit 7").ok()
    fill(caisson.run_dir, 200)
    caisson("exec", "talks", "touch", "/go").ok()
    assert caisson("wait", "talks").ok().out.strip() == "7"
    assert caisson("logs", "talks").out.startswith("1\n2\n3\n")
    caisson("rm", "talks").ok()
    assert_clean(caisson)


def test_no_room_for_what_containers_write(caisson, small, tmp_path):
    """The write fails in the container, which goes on; others are not concerned."""
    scratch = small(tmp_path / "scratch", "16m")
    settings = tmp_path / "config.yaml"
    settings.write_text(f"vm:\n  boot_timeout: 120s\nstorage:\n  scratch_dir: {scratch}\n", encoding="ascii")
    env = dict(CAISSON_CONFIG=str(settings))
    caisson("run", "-d", "--rm", "--name", "writes", caisson.image, "sleep", "1000", env=env).ok()
    r = caisson("exec", "writes", "sh", "-c", "dd if=/dev/urandom of=/f bs=1M count=24 conv=fsync; echo $?", env=env)
    assert r.out.strip() != "0", repr(r)
    assert caisson("exec", "writes", "echo", "alive", env=env).ok().out == "alive\n"
    caisson("rm", "-f", "writes", env=env).ok()
    assert_clean(caisson)
    assert not [x for x in os.listdir(scratch) if not x.endswith(".lock")]
