"""Local sources and what layers may hold."""

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile

import pytest

import oci
from layers import device, directory, file, hardlink, layer, layout, symlink


def test_kinds_of_entries(store, tmp_path):
    long_name = "d" * 200 + "/" + "f" * 200
    ref = layout(tmp_path / "img", layer(
        directory("etc"), file("etc/motd", "hello\n", mode=0o640, uid=1000, gid=70000),
        symlink("rel", "etc/motd"), symlink("abs", "/etc/motd"),
        hardlink("hard", "etc/motd"), file(long_name, "long"), file("ünïcode-名前", "name"),
        file("implicit/parents/made", ""), device("null", tarfile.CHRTYPE, 1, 3, mode=0o666),
        device("loop", tarfile.BLKTYPE, 7, 0), device("pipe", tarfile.FIFOTYPE, 0, 0),
        directory("tmp", mode=0o1777), file("empty")))
    root = store.extract(ref, tmp_path / "out")
    st = (root / "etc/motd").stat()
    assert (root / "etc/motd").read_text() == "hello\n"
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o640, 1000, 70000)
    assert (root / "hard").read_text() == "hello\n"
    assert os.readlink(root / "rel") == "etc/motd" and os.readlink(root / "abs") == "/etc/motd"
    assert (root / long_name).read_text() == "long"
    assert (root / "ünïcode-名前").read_text() == "name"
    assert stat.S_IMODE((root / "implicit/parents").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert (root / "null").is_char_device() and (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert (root / "loop").is_block_device() and (root / "pipe").is_fifo()


def test_mounted_metadata(store, tmp_path):
    """Times, link counts and extended attributes, as a kernel sees them."""
    cap = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    ref = layout(tmp_path / "img", layer(
        directory("d", mtime=1600000000),
        file("d/f", "x", mtime=1500000000, SCHILY__xattr__user__note="kept",
             SCHILY__xattr__security__capability=cap,
             SCHILY__xattr__trusted__overlay__redirect="/etc"),
        hardlink("d/g", "d/f"), file("setuid", "x", mode=0o4755, uid=5)))
    rootfs = store.prepare(ref)["rootfs"]
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    if subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", rootfs, mnt], check=False,
                      stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this kernel mounts no EROFS")
    try:
        st = (mnt / "d/f").stat()
        assert (st.st_mtime, st.st_nlink) == (1500000000, 2)
        assert stat.S_IMODE((mnt / "setuid").stat().st_mode) == 0o4755
        assert (mnt / "d").stat().st_mtime == 1600000000
        assert os.getxattr(mnt / "d/f", "user.note") == b"kept"
        assert os.getxattr(mnt / "d/f", "security.capability") == cap.encode("latin-1")
        assert sorted(os.listxattr(mnt / "d/f")) == ["security.capability", "user.note"]
    finally:
        subprocess.run(["umount", mnt], check=True)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_compressions(store, tmp_path, compression):
    ref = layout(tmp_path / "img", layer(file("f", "data" * 5000), compression=compression))
    assert (store.extract(ref, tmp_path / "out") / "f").read_text() == "data" * 5000


def test_gzip_members_are_joined(store, tmp_path):
    one = layer(file("f", os.urandom(20000)))
    tar = gzip.decompress(one.data)
    one.data = gzip.compress(tar[:9000]) + gzip.compress(tar[9000:])
    one.digest = oci.sha256_bytes(one.data)
    assert (store.extract(layout(tmp_path / "img", one), tmp_path / "out") / "f").exists()


def test_whiteouts(store, tmp_path):
    ref = layout(
        tmp_path / "img",
        layer(file("gone", "1"), file("dir/gone", "1"), file("dir/kept", "1"), file("tree/a/b", "1"),
              file("opaque/old", "1"), file("opaque/sub/old", "1"), file("replaced/x", "1"),
              file("plain", "1"), file("both", "old")),
        layer(file(".wh.gone"), file("dir/.wh.gone"), file(".wh.tree"),
              # What the same layer makes survives, whatever the order.
              file("opaque/new", "2"), file("opaque/.wh..wh..opq"), file("opaque/later", "2"),
              file("replaced", "now a file"), directory("plain"),
              file("plain/now/dir", "2"),
              file("both", "new"), file(".wh.both"), file("missing/.wh.nothing"),
              file(".wh..wh.plnk", "aufs")))
    root = store.extract(ref, tmp_path / "out")
    found = sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir())
    assert found == ["both", "dir/kept", "opaque/later", "opaque/new", "plain/now/dir", "replaced"]
    assert (root / "both").read_text() == "new"


def test_upper_layer_through_links(store, tmp_path):
    """Parents that lower layers made links, relative or absolute, are followed inside the image."""
    ref = layout(
        tmp_path / "img",
        layer(directory("usr/bin"), symlink("bin", "usr/bin"), directory("run"),
              symlink("var/run", "/run"), symlink("usr/lib", "../usr/bin/../bin")),
        layer(file("bin/tool", "t"), file("var/run/pid", "1"), file("usr/lib/so", "l")),
        layer(file("var/.wh.run"), file("bin/.wh.so")))
    root = store.extract(ref, tmp_path / "out")
    assert (root / "usr/bin/tool").read_text() == "t" and (root / "run/pid").read_text() == "1"
    assert not (root / "usr/bin/so").exists() and os.readlink(root / "bin") == "usr/bin"
    assert not os.path.lexists(root / "var/run")


def test_hardlink_to_lower_layer(store, tmp_path):
    ref = layout(tmp_path / "img", layer(file("a/f", "x")),
                 layer(hardlink("b", "a/f"), hardlink("a/f", "a/f")))
    root = store.extract(ref, tmp_path / "out")
    assert (root / "b").read_text() == "x" and (root / "a/f").read_text() == "x"


def test_sparse_files(store, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "sparse", "wb") as out:
        out.truncate(50 << 20)
        out.seek(20 << 20)
        out.write(b"middle")
    for fmt in ("posix", "gnu"):
        tar = subprocess.run(["tar", "--sparse", f"--format={fmt}", "-C", tree, "-cf", "-", "."],
                             stdout=subprocess.PIPE, check=True).stdout
        assert len(tar) < 1 << 20
        root = store.extract(layout(tmp_path / fmt, oci.Layer(tar)), tmp_path / f"out-{fmt}")
        data = (root / "sparse").read_bytes()
        assert len(data) == 50 << 20 and data.strip(b"\0") == b"middle"
        assert data[20 << 20:(20 << 20) + 6] == b"middle"


def test_config_is_parsed(store, tmp_path):
    ref = layout(tmp_path / "img", layer(file("f")), config={
        "Env": ["A=1", "B=x y"], "Entrypoint": ["/e", "a b"], "Cmd": ["c"], "User": "app:grp",
        "WorkingDir": "/w", "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}}, "Labels": {"k": "v"}})
    got = store.prepare(ref)
    assert got["env"] == "[A=1] [B=x y]" and got["entrypoint"] == "[/e] [a b]"
    assert got["cmd"] == "[c]" and got["user"] == "app:grp" and got["workdir"] == "/w"
    assert got["stop"] == "SIGQUIT" and got["ports"] == "[80/tcp]"
    assert got["volumes"] == "[/data]" and got["labels"] == "[k=v]"


def test_users(store, tmp_path):
    passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbad line\n12:x:5:6::/:\n"
    group = "root:x:0:\ngrp:x:77:app,other\nmore:x:78:other,app\n"
    ref = layout(tmp_path / "img",
                 layer(file("usr/etc/passwd", passwd), symlink("etc/passwd", "/usr/etc/passwd"),
                       file("etc/group", group)), config={"User": "app"})
    for user, want in [("", "1000:1001 /home/app 77 78"), ("root", "0:0 /root"),
                       ("1000", "1000:1001 /home/app 77 78"), ("app:grp", "1000:77 /home/app"),
                       ("4242", "4242:0 /"), ("4242:4343", "4242:4343 /"), ("12", "5:6 /"),
                       ("0:grp", "0:77 /root")]:
        assert store.ok("user", ref, user).strip() == want, user
    assert "no user 'nobody' in image" in store.fails("user", ref, "nobody")
    assert "no group 'nogrp' in image" in store.fails("user", ref, "app:nogrp")
    assert "out of range" in store.fails("user", ref, "4294967295")


def test_no_accounts(store, tmp_path):
    ref = layout(tmp_path / "img", layer(file("f")))
    assert store.ok("user", ref, "").strip() == "0:0 /"
    assert store.ok("user", ref, "7:8").strip() == "7:8 /"


HOSTILE = [
    ("dotdot", [file("../evil", "x")], "climbs out with '..'"),
    ("dotdot-inside", [file("a/../../evil", "x")], "climbs out with '..'"),
    ("absolute", [file("/tmp/evil", "x")], "absolute"),
    ("symlink-relative", [symlink("l", "../../../tmp"), file("l/evil", "x")],
     "leads out of the image"),
    ("symlink-absolute", [symlink("l", "/tmp"), file("l/evil", "x")], "symbolic link 'l'"),
    ("symlink-chain", [symlink("a", "b"), symlink("b", "../.."), file("a/evil", "x")],
     "leads out of the image"),
    ("symlink-loop", [symlink("a", "b"), symlink("b", "a"), file("a/evil", "x")],
     "too many symbolic links"),
    ("hardlink-outside", [hardlink("h", "../../etc/passwd")], "hard link to '../../etc/passwd'"),
    ("hardlink-absolute", [hardlink("h", "/etc/passwd")], "hard link to '/etc/passwd'"),
    ("hardlink-through-link", [symlink("l", "/etc"), hardlink("h", "l/passwd")], "symbolic link"),
    ("hardlink-missing", [hardlink("h", "nowhere")], "not in the image"),
    ("file-as-parent", [file("f", "x"), file("f2", "x"), symlink("s", "f2"), file("s/x", "x")],
     "is not a directory"),
    ("whiteout-dotdot", [file(".wh...", "")], "malformed whiteout"),
    ("whiteout-dot", [file(".wh..", "")], "malformed whiteout"),
    ("whiteout-through-link", [symlink("l", "../../../tmp"), file("l/.wh.evil", "")],
     "leads out of the image"),
    ("component-too-long", [file("n" * 300, "x")], "too long"),
    ("too-deep", [file("d/" * 300 + "f", "x")], "too deep"),
]


@pytest.mark.parametrize("members,says", [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_hostile_entries(store, tmp_path, members, says):
    ref = layout(tmp_path / "img", layer(*members))
    err = store.fails("prepare", ref)
    assert says in err and "layer 1" in err and str(tmp_path / "img") in err
    assert "entry '" in err
    assert not os.path.exists("/tmp/evil")
    assert not list((store.images / "rootfs").iterdir())


def test_bomb_by_compression(store, tmp_path):
    for compression in ("gzip", "zstd"):
        one = layer(file("zeros", b"\0" * (64 << 20)), compression=compression)
        assert len(one.data) < 100000
        err = store.fails("prepare", layout(tmp_path / compression, one))
        assert "more than 200 times its size" in err and "layer 1" in err


def test_bomb_by_sparse_file(store, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "huge", "wb") as out:
        out.truncate(1 << 40)
    tar = subprocess.run(["tar", "--sparse", "-C", tree, "-cf", "-", "huge"],
                         stdout=subprocess.PIPE, check=True).stdout
    err = store.fails("prepare", layout(tmp_path / "img", oci.Layer(tar)))
    assert "entry 'huge'" in err and "unpacks to more than" in err


def test_size_cap(store, tmp_path):
    ref = layout(tmp_path / "img", layer(file("f", os.urandom(3 << 20))))
    assert "more than 2 MiB" in store.fails("prepare", ref, CAISSON_IMAGE_MAX_SIZE="2m")


def break_blob(path, digest, change):
    blob = path / "blobs/sha256" / digest[7:]
    blob.write_bytes(change(blob.read_bytes()))


def test_corrupt_layer(store, tmp_path):
    one = layer(file("f", os.urandom(5000)))
    ref = layout(tmp_path / "img", one)
    break_blob(tmp_path / "img", one.digest, lambda b: b[:-9] + b"corrupted")
    err = store.fails("prepare", ref)
    assert "layer 1" in err and "is corrupt" in err and one.digest in err
    assert store.blobs() == set()


def test_short_and_long_layers(store, tmp_path):
    one = layer(file("f", os.urandom(5000)))
    ref = layout(tmp_path / "img", one)
    break_blob(tmp_path / "img", one.digest, lambda b: b[:100])
    assert "is truncated: 100 of" in store.fails("prepare", ref)
    break_blob(tmp_path / "img", one.digest, lambda b: b + b"x" * 9000)
    assert "is longer than" in store.fails("prepare", ref)


def test_wrong_manifest_digest(store, tmp_path):
    ref = layout(tmp_path / "img", layer(file("f")))
    index = json.loads((tmp_path / "img/index.json").read_text())
    break_blob(tmp_path / "img", index["manifests"][0]["digest"], lambda b: b + b" ")
    err = store.fails("prepare", ref)
    assert "manifest" in err and "is corrupt" in err


def test_wrong_diff_id(store, tmp_path):
    one = layer(file("f"))
    one.diff_id = "sha256:" + "0" * 64
    err = store.fails("prepare", layout(tmp_path / "img", one))
    assert "its content has digest" in err and "layer 1" in err


@pytest.mark.parametrize("cut", [20, 700, 3000])
def test_truncated_streams(store, tmp_path, cut):
    """Well-named blobs whose content breaks off."""
    one = layer(file("f", os.urandom(4000)))
    one.data = one.data[:cut]
    one.digest = oci.sha256_bytes(one.data)
    err = store.fails("prepare", layout(tmp_path / "img", one))
    assert "layer 1" in err and "runcated" in err
    tar = oci.tar_of_members([file("f", os.urandom(4000))])[:cut + 600]
    two = oci.Layer(tar, "none")
    err = store.fails("prepare", layout(tmp_path / "tar", two))
    assert "layer 1" in err and "runcated" in err


def test_not_a_tar(store, tmp_path):
    err = store.fails("prepare", layout(tmp_path / "img", oci.Layer(os.urandom(8000), "none")))
    assert "layer 1" in err and "tar" in err


def test_wrong_platform(store, tmp_path):
    ref = layout(tmp_path / "img", layer(file("f")), architecture="s390x")
    err = store.fails("prepare", ref)
    assert "platform linux/s390x" in err
    store.ok("prepare", ref, PLATFORM="linux/s390x")


def test_index_by_platform(store, tmp_path):
    amd, arm = (oci.Image([layer(file(name))], architecture=arch)
                for name, arch in (("x", "amd64"), ("y", "arm64")))
    oci.write_layout(str(tmp_path / "img"), {"latest": amd})
    oci.write_layout(str(tmp_path / "arm"), {"latest": arm})
    subprocess.run(["cp", "-rn", f"{tmp_path}/arm/blobs", str(tmp_path / "img")], check=True)
    entries = [json.loads((tmp_path / d / "index.json").read_text())["manifests"][0]
               for d in ("img", "arm")]
    inner = oci.dump({"schemaVersion": 2, "mediaType": oci.MT_INDEX, "manifests": entries + [
        {**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}}]})
    digest = oci.sha256_bytes(inner)
    (tmp_path / "img/blobs/sha256" / digest[7:]).write_bytes(inner)
    (tmp_path / "img/index.json").write_bytes(oci.dump({"schemaVersion": 2, "manifests": [
        {"mediaType": oci.MT_INDEX, "digest": digest, "size": len(inner),
         "annotations": {"org.opencontainers.image.ref.name": "latest"}}]}))
    ref = f"oci:{tmp_path}/img"
    for platform, name in (("linux/amd64", "x"), ("linux/arm64", "y")):
        root = store.ok("prepare", ref, PLATFORM=platform)
        rootfs = [line for line in root.splitlines() if line.startswith("rootfs")][0].split()[1]
        listing = subprocess.run(["dump.erofs", f"--path=/{name}", rootfs], check=False,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert listing.returncode == 0, listing.stdout
    err = store.fails("prepare", ref, PLATFORM="linux/riscv64")
    assert "no image for platform linux/riscv64; there is linux/amd64, linux/arm64" in err


@pytest.mark.parametrize("where,media_type,says", [
    ("layer", "application/vnd.oci.image.layer.v1.tar+brotli", "unknown media type"),
    ("layer", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
    ("config", "application/vnd.cncf.helm.config.v1+json", "not a container image"),
    ("manifest", "application/vnd.example.thing+json", "unknown media type"),
])
def test_media_types(store, tmp_path, where, media_type, says):
    image = oci.Image([layer(file("f"))])
    manifest = json.loads(image.manifest())
    if where == "layer":
        manifest["layers"][0]["mediaType"] = media_type
    elif where == "config":
        manifest["config"]["mediaType"] = media_type
    else:
        manifest["mediaType"] = media_type
    image.manifest = lambda: oci.dump(manifest)
    oci.write_layout(str(tmp_path / "img"), {"latest": image})
    err = store.fails("prepare", f"oci:{tmp_path}/img")
    assert says in err and media_type in err


def test_tags_of_a_layout(store, tmp_path):
    images = {tag: oci.Image([layer(file(tag))]) for tag in ("one", "two")}
    oci.write_layout(str(tmp_path / "img"), images)
    store.ok("prepare", f"oci:{tmp_path}/img:two")
    err = store.fails("prepare", f"oci:{tmp_path}/img:three")
    assert "no image 'three' in it, only: one, two" in err
    assert "name one of: one, two" in store.fails("prepare", f"oci:{tmp_path}/img")
    assert "no index.json" in store.fails("prepare", f"oci:{tmp_path}")
    assert "No such file" in store.fails("prepare", f"oci:{tmp_path}/nothing")


def test_changed_layout_is_read_again(store, tmp_path):
    ref = layout(tmp_path / "img", layer(file("old")))
    before = store.prepare(ref)["id"]
    assert layout(tmp_path / "img", layer(file("new"))) == ref
    assert store.prepare(ref)["id"] != before


def make_tar(src, dest):
    subprocess.run(["tar", "-C", src, "-cf", dest, "."], check=True)


def test_oci_archive(store, tmp_path):
    layout(tmp_path / "img", layer(file("f", "in archive")), tag="v1")
    make_tar(tmp_path / "img", tmp_path / "img.tar")
    root = store.extract(f"oci-archive:{tmp_path}/img.tar:v1", tmp_path / "out")
    assert (root / "f").read_text() == "in archive"
    subprocess.run(["gzip", "-k", tmp_path / "img.tar"], check=True)
    assert store.ok("load", tmp_path / "img.tar.gz").strip() == "img:v1"
    store.ok("prepare", "img:v1", POLICY="never")
    assert not store.leftovers()


def test_docker_archive(store, tmp_path):
    images = {"app:1": oci.Image([layer(file("f", "one"), compression="none")]),
              "example.org/x/app:2": oci.Image([layer(file("f", "two"))])}
    archive = tmp_path / "saved.tar"
    oci.write_docker_archive(str(archive), images)
    assert store.ok("load", archive).split() == ["app:1", "example.org/x/app:2"]
    assert [line.split()[:2] for line in store.ok("list").splitlines()] == [
        ["app", "1"], ["example.org/x/app", "2"]]
    root = store.extract(f"docker-archive:{archive}:app:1", tmp_path / "out")
    assert (root / "f").read_text() == "one"
    assert "name one of: app:1, example.org/x/app:2" in store.fails(
        "prepare", f"docker-archive:{archive}")


def test_docker_archive_with_links(store, tmp_path):
    """Old archives share layers by symbolic links between their directories."""
    one = layer(file("f", "x"), compression="none")
    image = oci.Image([one, one])
    manifest = [{"Config": "c.json", "RepoTags": ["l:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]
    members = [(tarfile.TarInfo("c.json"), image.config), (tarfile.TarInfo("a/layer.tar"), one.data),
               symlink("b/layer.tar", "../a/layer.tar"),
               (tarfile.TarInfo("manifest.json"), json.dumps(manifest).encode())]
    (tmp_path / "old.tar").write_bytes(oci.tar_of_members(members))
    assert store.ok("load", tmp_path / "old.tar").strip() == "l:1"
    store.ok("prepare", "l:1", POLICY="never")


@pytest.mark.parametrize("what,says", [
    ("missing-layer", "is not in the archive"), ("no-manifest", "neither an OCI layout nor"),
    ("bad-json", "not a list of images"), ("truncated", "runcated"), ("garbage", "tar"),
    ("climbing", "climbs out")])
def test_bad_archives(store, tmp_path, what, says):
    one = layer(file("f", os.urandom(3000)), compression="none")
    image = oci.Image([one])
    names = ["../l.tar" if what == "climbing" else "l.tar"]
    manifest = json.dumps([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": names}]).encode()
    members = [(tarfile.TarInfo("c.json"), image.config)]
    if what != "missing-layer":
        members.append((tarfile.TarInfo(names[0]), one.data))
    if what != "no-manifest":
        members.append((tarfile.TarInfo("manifest.json"),
                        b"{}" if what == "bad-json" else manifest))
    data = oci.tar_of_members(members)
    if what == "truncated":
        data = data[:2500]
    if what == "garbage":
        data = os.urandom(5000)
    (tmp_path / "bad.tar").write_bytes(data)
    err = store.fails("load", tmp_path / "bad.tar")
    assert says in err and "bad.tar" in err
    assert not store.blobs()


def test_archive_with_wrong_digest(store, tmp_path):
    one = layer(file("f", os.urandom(3000)))
    layout(tmp_path / "img", one)
    break_blob(tmp_path / "img", one.digest, lambda b: b[:-4] + b"evil")
    make_tar(tmp_path / "img", tmp_path / "img.tar")
    err = store.fails("load", tmp_path / "img.tar")
    assert one.digest in err and "not what its name says" in err


def test_load_from_standard_input(store, tmp_path):
    oci.write_docker_archive(str(tmp_path / "s.tar"), {"in:1": oci.Image([layer(file("f"))])})
    with open(tmp_path / "s.tar", "rb") as src:
        out = subprocess.run([store.tool, "load", "-"], stdin=src, env=store.env, check=True,
                             stdout=subprocess.PIPE, text=True).stdout
    assert out.strip() == "in:1"


def test_unnamed_and_renamed(store, tmp_path):
    oci.write_docker_archive(str(tmp_path / "s.tar"), {"": oci.Image([layer(file("f"))])})
    assert store.ok("load", tmp_path / "s.tar").strip() == "s:latest"
    assert store.ok("load", tmp_path / "s.tar", NAME="Example.org:5000/a/b:c").strip() == \
        "Example.org:5000/a/b:c"


def test_empty_image(store, tmp_path):
    oci.write_layout(str(tmp_path / "img"), {"latest": oci.Image([])})
    root = store.extract(f"oci:{tmp_path}/img", tmp_path / "out")
    assert not list(root.iterdir())


def test_inspect(store, tmp_path):
    layout(tmp_path / "img", layer(file("f")), config={"Cmd": ["x"], "Labels": {"a": "b"}})
    name = store.ok("load", tmp_path / "img").strip()
    got = json.loads(store.ok("inspect", name))
    assert got["RepoTags"] == ["img:latest"] and got["Config"]["Cmd"] == ["x"]
    assert got["Architecture"] == "amd64" and got["RootFS"]["Type"] == "layers"
    assert json.loads(store.ok("inspect", got["Id"][7:19]))["Id"] == got["Id"]
    assert "no such image: nothing" in store.fails("inspect", "nothing")


def test_tar_reader_is_bounded(store, tmp_path):
    """A header that claims a file far larger than the archive."""
    raw = io.BytesIO()
    info = tarfile.TarInfo("big")
    info.size = 8 << 30
    raw.write(info.tobuf(tarfile.GNU_FORMAT))
    raw.write(b"x" * 4096)
    err = store.fails("prepare", layout(tmp_path / "img", oci.Layer(raw.getvalue(), "none")))
    assert "entry 'big'" in err
    assert hashlib.sha256(raw.getvalue()).hexdigest() not in str(store.leftovers())
