"""Images by the command line: every source, and what the guest sees of a layer."""

import json
import subprocess
import sys
import tarfile

import pytest

from conftest import TOP

sys.path.insert(0, str(TOP / "tests/images"))
sys.path.insert(0, str(TOP / "tests/unit/image"))
import oci  # noqa: E402
from fake_registry import Registry  # noqa: E402
from layers import device, directory, file, hardlink, layer, symlink  # noqa: E402


@pytest.fixture
def on_busybox(busybox):
    """An image of busybox and further layers."""
    path = busybox[len("oci:"):-len(":latest")]

    def blob(digest):
        with open(f"{path}/blobs/sha256/{digest[7:]}", "rb") as src:
            return src.read()

    with open(f"{path}/index.json", "rb") as src:
        manifest = json.loads(blob(json.load(src)["manifests"][0]["digest"]))
    base = layer(file("x"))
    base.data = blob(manifest["layers"][0]["digest"])
    base.digest = manifest["layers"][0]["digest"]
    base.diff_id = json.loads(blob(manifest["config"]["digest"]))["rootfs"]["diff_ids"][0]

    def build(*layers, **config):
        return oci.Image([base, *layers], {"Env": ["PATH=/bin"], **config})
    return build


@pytest.fixture
def registry():
    reg = Registry()
    yield reg
    reg.close()


def test_entries_as_the_guest_sees_them(caisson, on_busybox, tmp_path):
    image = on_busybox(
        layer(file("a/f", "data", mode=0o640, uid=1000, gid=2000, mtime=1500000000),
              hardlink("a/g", "a/f"), symlink("a/l", "f"), directory("sticky", mode=0o1777),
              file("a/suid", "", mode=0o4755), file("a/ünï", "u"), file("gone/x", ""),
              device("a/full", tarfile.CHRTYPE, 1, 7, mode=0o666),
              device("a/p", tarfile.FIFOTYPE, 0, 0), compression="zstd"),
        layer(file(".wh.gone"), file("a/h", "two")))
    oci.write_layout(str(tmp_path / "i"), {"latest": image})
    r = caisson.run(f"oci:{tmp_path}/i", "sh", "-c",
                    "cd /a; stat -c '%n %f %u:%g %h %Y' f; cat g l h ünï; stat -c '%n %f' suid p "
                    "full /sticky; ls -d /gone; echo x > f; rm h; echo *")
    lines = r.out.splitlines()
    assert lines[0] == "f 81a0 1000:2000 2 1500000000", repr(r)
    assert lines[1] == "datadatatwou" + "suid 89ed"
    assert lines[2:5] == ["p 11a4", "full 21b6", "/sticky 43ff"]
    assert "No such file" in r.err and lines[5] == "f full g l p suid ünï"


def test_config_is_obeyed(caisson, on_busybox, tmp_path):
    image = on_busybox(Entrypoint=["echo", "entry"], Cmd=["cmd"], User="app", WorkingDir="/home/app",
                       Env=["PATH=/bin", "FROM=image"])
    oci.write_layout(str(tmp_path / "i"), {"latest": image})
    ref = f"oci:{tmp_path}/i"
    assert caisson.run(ref).ok().out == "entry cmd\n"
    assert caisson.run(ref, "x", "y").ok().out == "entry x y\n"
    r = caisson.run("--entrypoint", "sh", ref, "-c", "id -u; id -G; pwd; echo $FROM").ok()
    assert r.out.split() == ["1000", "1000", "100", "2000", "/home/app", "image"]


def test_archives(own_store, on_busybox, tmp_path):
    image = on_busybox(layer(file("who", "archive")))
    oci.write_layout(str(tmp_path / "i"), {"v1": image})
    subprocess.run(["tar", "-C", tmp_path / "i", "-czf", tmp_path / "i.tar.gz", "."], check=True)
    oci.write_docker_archive(str(tmp_path / "d.tar"), {"saved:v2": image})
    assert own_store.run(f"oci-archive:{tmp_path}/i.tar.gz:v1", "cat", "/who").ok().out == "archive"
    assert own_store.run(f"docker-archive:{tmp_path}/d.tar", "cat", "/who").ok().out == "archive"
    assert "saved:v2" in own_store("load", "-i", tmp_path / "d.tar").ok().out
    assert own_store.run("saved:v2", "cat", "/who").ok().out == "archive"
    # One tree for all of them.
    assert len(list((own_store.root / "images/rootfs").glob("*.erofs"))) == 1


def test_registry_to_running_container(own_store, on_busybox, registry, tmp_path):
    ref = registry.add("team/app", "1", on_busybox(layer(file("who", "registry"))))
    assert own_store.run(ref, "cat", "/who").ok().out == "registry"
    asked = len(registry.log)
    assert own_store.run(ref, "cat", "/who").ok().out == "registry"
    assert len(registry.log) == asked
    registry.add("team/app", "1", on_busybox(layer(file("who", "newer"))))
    own_store("pull", ref).ok()
    assert own_store.run(ref, "cat", "/who").ok().out == "newer"
    rows = json.loads(own_store("images", "--json").ok().out)
    assert len(rows) == 2, "the image that lost its name stays"
    own_store("rmi", ref).ok()
    own_store.run("--pull", "never", ref, "true").fails(125, "no such image")


def test_runs_at_once_on_a_new_store(own_store, on_busybox, tmp_path):
    oci.write_layout(str(tmp_path / "i"), {"latest": on_busybox(layer(file("who", "all")))})
    procs = [own_store.popen("run", "--rm", f"oci:{tmp_path}/i", "cat", "/who", text=True)
             for _ in range(4)]
    for proc in procs:
        out, err = proc.communicate(timeout=180)
        assert (proc.returncode, out) == (0, "all"), err
    assert len(list((own_store.root / "images/rootfs").glob("*.erofs"))) == 1


def test_rmi(own_store, on_busybox, tmp_path):
    oci.write_docker_archive(str(tmp_path / "d.tar"), {"a:1": on_busybox(layer(file("f")))})
    own_store("load", "-i", tmp_path / "d.tar").ok()
    own_store("run", "-d", "--name", "user", "a:1", "sleep", "1000").ok()
    own_store("rmi", "a:1").fails(1, "is used by container user")
    own_store("rm", "-f", "user").ok()
    own_store("rmi", "a:1").ok()
    images = own_store.root / "images"
    assert not list((images / "blobs/sha256").iterdir()) and not list((images / "rootfs").iterdir())
    own_store("rmi", "a:1").fails(1, "no such image")
