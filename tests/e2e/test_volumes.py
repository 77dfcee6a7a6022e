"""Shared directories: our virtio-fs device with a real guest kernel at the other end."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

from devices import Machine


@pytest.fixture(scope="module")
def where():
    base = "/var/tmp" if os.path.isdir("/var/tmp") else None
    with tempfile.TemporaryDirectory(prefix="caisson-fs-", dir=base) as d:
        for name in ["rw", "ro"]:
            os.mkdir(f"{d}/{name}")
        pathlib.Path(d, "outside").write_text("secret\n")
        pathlib.Path(d, "ro/file").write_text("read only\n")
        pathlib.Path(d, "rw/from-host").write_text("from host\n")
        os.symlink("../outside", f"{d}/rw/out")
        yield pathlib.Path(d)


@pytest.fixture(scope="module")
def vm(where):
    with Machine([("fs", where / "rw"), ("fs", where / "ro", "ro")], guest="fs-guest.c") as m:
        assert m("mount share1 /rw") == "ok"
        assert m("mount share2 /ro") == "ok"
        yield m


@pytest.mark.parametrize("name", [
    "basic", "names", "links", "escape", "attributes", "owner", "special", "big", "directory",
    "attrs", "holes", "copies", "temporary", "renames", "locks", "mapping", "whole", "parallel"])
def test_inside(vm, where, name):
    assert vm(f"{name} /rw") == "ok"
    assert sorted(os.listdir(where / "rw")) == ["from-host", "out"]


def test_read_only(vm):
    assert vm("readonly /ro") == "ok"


def test_host_and_guest_see_each_other(vm, where):
    assert vm("cat /rw/from-host") == "from host"
    (where / "rw/from-host").write_text("changed\n")
    time.sleep(1.2)
    assert vm("cat /rw/from-host") == "changed"


def test_links_do_not_lead_out(vm):
    assert vm("cat /rw/out") == "No such file or directory"
    assert vm("cat /rw/../outside") == "No such file or directory"


# ---- caisson run -v ----

@pytest.fixture
def volume(tmp_path):
    d = tmp_path / "volume"
    d.mkdir(mode=0o755)
    (d / "file").write_text("from host\n")
    return d


@pytest.mark.both
def test_volume_both_ways(caisson, volume):
    r = caisson.run("-v", f"{volume}:/data", caisson.image, "sh", "-c",
                    "cat /data/file && echo from guest > /data/new && mkdir /data/d && "
                    "mv /data/file /data/d/moved && ls /data").ok()
    assert r.out == "from host\nd\nnew\n"
    assert (volume / "new").read_text() == "from guest\n"
    assert (volume / "d/moved").read_text() == "from host\n"


def test_volume_read_only(caisson, volume):
    r = caisson.run("-v", f"{volume}:/data:ro", caisson.image, "sh", "-c",
                    "cat /data/file; touch /data/new; rm -f /data/file; true").ok()
    assert r.out == "from host\n"
    assert r.err.lower().count("read-only file system") == 2
    assert os.listdir(volume) == ["file"]


def test_single_file_and_the_same_directory_twice(caisson, volume):
    r = caisson.run("-v", f"{volume}/file:/etc/one", "-v", f"{volume}:/a", "-v", f"{volume}:/b",
                    caisson.image, "sh", "-c",
                    "cat /etc/one && echo x > /a/x && cat /b/x && ls /a && ls /b && "
                    "echo changed > /etc/one").ok()
    assert r.out == "from host\nx\nfile\nx\nfile\nx\n"
    assert (volume / "file").read_text() == "changed\n"


def test_volume_of_another_user(caisson, volume):
    os.chmod(volume, 0o777)
    caisson.run("-u", "1234:5678", "-v", f"{volume}:/data", caisson.image, "sh", "-c",
                "echo mine > /data/mine && mkdir /data/d").ok()
    for name in ["mine", "d"]:
        st = os.stat(volume / name)
        assert (st.st_uid, st.st_gid) == (1234, 5678)


def test_volume_does_not_lead_out(caisson, volume):
    os.symlink("/proc/1/root", volume / "root")
    os.symlink("../../../../../../etc/hostname", volume / "name")
    r = caisson.run("-v", f"{volume}:/data", caisson.image, "sh", "-c",
                    "cat /data/name; ls /data/../..; ls /data/root/").out
    host = pathlib.Path("/etc/hostname").read_text().strip()
    assert host not in r and "var/lib/caisson" not in r


def test_tree_is_unpacked_in_a_volume(caisson, volume):
    r = caisson.run("-v", f"{volume}:/data", caisson.image, "sh", "-c",
                    "tar -cf - -C / bin etc | tar -xf - -C /data && cmp /bin/sh /data/bin/sh && "
                    "cd /data && find . | wc -l && rm -rf bin etc").ok()
    assert int(r.out) > 10
    assert os.listdir(volume) == ["file"]


def test_what_the_host_mounts_later_is_seen(caisson, detached, volume):
    (volume / "sub").mkdir()
    subprocess.run(["mount", "--bind", volume, volume], check=True)
    try:
        subprocess.run(["mount", "--make-shared", volume], check=True)
        name = detached("-v", f"{volume}:/data:rslave", "-v", f"{volume}:/alone")
        assert caisson("exec", name, "ls", "/data/sub").ok().out == ""
        subprocess.run(["mount", "-t", "tmpfs", "none", volume / "sub"], check=True)
        (volume / "sub/late").write_text("seen\n")
        end = time.monotonic() + 20
        while caisson("exec", name, "cat", "/data/sub/late").out != "seen\n":
            assert time.monotonic() < end
            time.sleep(0.2)
        # It is a mount in the guest too.
        out = caisson("exec", name, "sh", "-c", "find /data -xdev; stat -c %d /data /data/sub /data/sub/late").ok().out
        *found, data, sub, late = out.split()
        assert sorted(found) == ["/data", "/data/file", "/data/sub"]
        assert data != sub and sub == late
        subprocess.run(["umount", "-l", volume / "sub"], check=True)
        while caisson("exec", name, "cat", "/data/sub/late").code == 0:
            assert time.monotonic() < end + 20
            time.sleep(0.2)
    finally:
        subprocess.run(["umount", "-R", "-l", volume], check=True)


# ---- named volumes ----

def names(caisson, *args):
    return caisson("volume", "ls", "-q", *args).ok().out.split()


@pytest.mark.both
def test_named_volumes(caisson):
    assert caisson("volume", "create", "--label", "k=v", "data").ok().out == "data\n"
    assert caisson("volume", "create", "data").ok().out == "data\n"
    # What the image has there comes first; what containers leave is found by the next.
    r = caisson.run("-v", "data:/etc", "--mount", "src=made,dst=/made", "-v", "/anonymous",
                    caisson.image, "sh", "-c", "ls /etc/passwd; rm /etc/passwd; echo 1 > /made/one;"
                    "grep -c ' /anonymous ' /proc/mounts").ok()
    assert r.out == "/etc/passwd\n1\n"
    # Nothing of an anonymous volume is left by --rm.
    assert names(caisson) == ["data", "made"]
    r = caisson.run("-v", "data:/x:ro", "-v", "made:/made", caisson.image, "sh", "-c",
                    "ls /x/passwd; cat /made/one; touch /x/y; true").ok()
    assert r.out == "1\n" and "passwd" in r.err and "read-only" in r.err.lower()

    caisson("create", "--name", "user", "-v", "made:/made", "-v", "/more", caisson.image, "true").ok()
    caisson("volume", "rm", "made").fails(1, "made", "in use", "user")
    assert names(caisson, "-f", "dangling=true") == ["data"]
    assert names(caisson, "-f", "label=k=v") == ["data"]
    assert "made" in caisson("volume", "prune", "-a").ok().out or "made" in names(caisson)
    assert "data" not in names(caisson) and len(names(caisson)) == 2
    info = json.loads(caisson("volume", "inspect", "made").ok().out)[0]
    assert info["Name"] == "made" and list(info["Containers"].values()) == ["user"]
    assert pathlib.Path(info["Mountpoint"], "one").read_text() == "1\n"
    mounts = json.loads(caisson("inspect", "user").ok().out)[0]["Mounts"]
    assert [m["Type"] for m in mounts] == ["volume", "volume"]
    caisson("rm", "-v", "user").ok()
    assert names(caisson) == ["made"]
    caisson("volume", "rm", "made").ok()
    caisson("volume", "rm", "made").fails(1, "no volume 'made'")
    caisson("volume", "rm", "-f", "made").ok()
    assert names(caisson) == []


def with_volumes(image, where, paths):
    """The image again, with VOLUMEs."""
    where.mkdir()
    shutil.copytree(image.split(":")[1], where, dirs_exist_ok=True)
    blobs = where / "blobs/sha256"

    def blob(digest):
        return json.loads((blobs / digest.split(":")[1]).read_text())

    def put(what):
        data = json.dumps(what).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    index = json.loads((where / "index.json").read_text())
    manifest = blob(index["manifests"][0]["digest"])
    config = blob(manifest["config"]["digest"])
    config["config"]["Volumes"] = {path: {} for path in paths}
    manifest["config"].update(put(config))
    index["manifests"][0].update(put(manifest))
    (where / "index.json").write_text(json.dumps(index))
    return f"oci:{where}:latest"


def test_volumes_of_the_image(caisson, tmp_path):
    image = with_volumes(caisson.image, tmp_path / "image", ["/etc", "/data/", "/mine"])
    look = ["sh", "-c", "cut -d ' ' -f 2,3 /proc/mounts | grep -E '^/(etc|data|mine) '; ls /etc/passwd;"
            "echo kept > /data/x; true"]
    (tmp_path / "mine").mkdir()
    caisson("run", "--name", "one", "-v", f"{tmp_path}/mine:/mine", image, *look).ok()
    mounts = {m["Destination"]: m for m in json.loads(caisson("inspect", "one").ok().out)[0]["Mounts"]}
    assert {d: m["Type"] for d, m in mounts.items()} == {"/etc": "volume", "/data": "volume", "/mine": "bind"}
    assert caisson("logs", "one").ok().out.splitlines()[-1] == "/etc/passwd"
    assert pathlib.Path(mounts["/data"]["Source"], "x").read_text() == "kept\n"
    assert len(names(caisson)) == 2
    caisson("rm", "-v", "one").ok()
    caisson.run(image, "true").ok()
    assert names(caisson) == []
    r = caisson.run("--image-volume", "tmpfs", image, *look).ok()
    assert sorted(r.out.split()) == ["/data", "/etc", "/etc/passwd", "/mine", "tmpfs", "tmpfs", "tmpfs"]
    r = caisson.run("--image-volume", "ignore", image, *look)
    assert r.out == "/etc/passwd\n" and names(caisson) == []
    caisson("run", "--image-volume", "some", image, "true").fails(125, "--image-volume", "some")
    wrong = with_volumes(caisson.image, tmp_path / "wrong", ["relative"])
    caisson("run", wrong, "true").fails(125, "VOLUME 'relative'")


def test_disk_tmpfs_and_size(caisson, tmp_path):
    disk = tmp_path / "disk.ext4"
    with open(disk, "wb") as f:
        f.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    caisson("volume", "create", "-o", "type=ext4", "-o", f"device={disk}", "disk").ok()
    r = caisson.run("-v", "disk:/one", "--tmpfs", "/two:size=1m", "--storage-opt", "size=64m",
                    "--device", "/dev/zero:/dev/nil", caisson.image, "sh", "-c",
                    "grep -E ' /(one|two) ' /proc/mounts | cut -d' ' -f2,3; df -m / | tail -1; "
                    "head -c 3 /dev/nil | wc -c; echo x > /one/x; sync").ok()
    lines = r.out.splitlines()
    assert sorted(lines[:2]) == ["/one ext4", "/two tmpfs"]
    assert 40 < int(lines[2].split()[1]) < 70 and lines[3] == "3"
    r = caisson.run("--mount", f"type=block,src={disk},dst=/one,ro", caisson.image, "sh", "-c",
                    "cat /one/x; touch /one/y; true").ok()
    assert r.out == "x\n" and "read-only" in r.err.lower()
    caisson("volume", "rm", "disk").ok()
