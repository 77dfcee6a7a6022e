"""The store under many processes, kill -9, and a full disk."""

import os
import random
import signal
import subprocess
import time

import pytest

import oci
from conftest import Store
from layers import file, layer, layout


def finish(procs):
    for proc in procs:
        _, err = proc.communicate(timeout=120)
        assert proc.returncode == 0, err


def test_new_store_opened_by_many(tmp_path):
    """Eight processes make one brand-new store at once, over and over."""
    ref = layout(tmp_path / "img", layer(file("f", os.urandom(50000))))
    for i in range(6):
        store = Store(tmp_path / f"root{i}", os.environ["IMAGE_TOOL"])
        finish([store.start("prepare", ref) for _ in range(8)])
        assert len(store.blobs()) == 3 and not store.leftovers()
        assert len(list((store.images / "rootfs").glob("*.erofs"))) == 1


def test_different_images_at_once(store, tmp_path):
    base = layer(file("base", os.urandom(200000)))
    refs = [layout(tmp_path / f"img{i}", base, layer(file(f"f{i}", str(i)))) for i in range(8)]
    finish([store.start("prepare", ref) for ref in refs])
    assert len(store.ok("list").splitlines()) == 8 and not store.leftovers()
    # A base, eight layers, configs and manifests.
    assert len(store.blobs()) == 1 + 3 * 8


def test_remove_collects(store, tmp_path):
    base = layer(file("base", os.urandom(20000)))
    one = layout(tmp_path / "one", base, layer(file("1")))
    two = layout(tmp_path / "two", base, layer(file("2")))
    store.ok("prepare", one)
    keep = store.blobs()
    store.ok("prepare", two)
    assert store.ok("rm", two).strip() == two
    assert store.blobs() == keep and len(list((store.images / "rootfs").iterdir())) == 1
    store.ok("rm", store.ok("list").split()[2][7:19])
    assert not store.blobs() and not list((store.images / "rootfs").iterdir())
    assert not store.ok("list") and not list((store.images / "refs").iterdir())
    assert "no such image: gone" in store.fails("rm", "gone")


def test_image_that_lost_its_name(store, tmp_path):
    """It stays, nameless, until pruned: a container may need it."""
    ref = layout(tmp_path / "img", layer(file("old")))
    old = store.prepare(ref)
    layout(tmp_path / "img", layer(file("new")))
    new = store.prepare(ref)
    assert os.path.exists(old["rootfs"]) and len(store.ok("list").splitlines()) == 2
    assert "<none> <none>" in store.ok("list")
    assert store.prepare(old["id"])["rootfs"] == old["rootfs"]
    store.ok("gc")
    assert os.path.exists(old["rootfs"])
    store.ok("prune")
    assert not os.path.exists(old["rootfs"]) and os.path.exists(new["rootfs"])
    assert len(store.ok("list").splitlines()) == 1


def test_remove_while_preparing(store, tmp_path):
    """Names come and go while others are prepared; nobody loses a blob in use."""
    base = layer(file("base", os.urandom(100000)))
    refs = [layout(tmp_path / f"img{i}", base, layer(file(f"f{i}"))) for i in range(4)]
    for _ in range(5):
        procs = [store.start("prepare", ref) for ref in refs]
        removers = [store.start("rm", ref) for ref in refs] + [store.start("gc")]
        finish(procs)
        for proc in removers:
            proc.communicate(timeout=60)
    for ref in refs:
        store.run("rm", ref)
    store.ok("gc")
    assert not store.blobs() and not store.leftovers()


def test_kill_at_random(store, tmp_path):
    """kill -9 anywhere: the next run works, and the collector leaves nothing of the dead."""
    rng = random.Random(7)
    ref = layout(tmp_path / "img", layer(file("a", os.urandom(3 << 20))),
                 layer(file("b", os.urandom(1 << 20))))
    for _ in range(40):
        proc = store.start("prepare", ref)
        time.sleep(rng.uniform(0, 0.25))
        proc.send_signal(signal.SIGKILL)
        proc.communicate()
        if rng.random() < 0.3:
            store.run("rm", ref)
    store.ok("prepare", ref)
    store.ok("gc")
    assert not store.leftovers() and len(store.blobs()) == 4
    assert not [p for p in (store.images / "refs").iterdir() if p.suffix != ".json"]


def test_partial_blob_is_kept_for_an_hour(store, tmp_path):
    store.ok("list")
    tmp = store.images / "tmp"
    fresh, stale = tmp / ("blob-" + "a" * 64 + ".part"), tmp / ("blob-" + "b" * 64 + ".part")
    fresh.write_bytes(b"x")
    stale.write_bytes(b"x")
    os.utime(stale, (0, 0))
    (tmp / "rootfs-dead").mkdir()
    (tmp / "rootfs-dead/root").mkdir()
    store.ok("list")
    assert store.leftovers() == [fresh.name]
    store.ok("gc")
    assert not store.leftovers()


def test_partial_blob_goes_on(store, tmp_path):
    one = layer(file("f", os.urandom(100000)))
    ref = layout(tmp_path / "img", one)
    store.ok("list")
    part = store.images / "tmp" / f"blob-{one.digest[7:]}.part"
    part.write_bytes(one.data[:5000])
    store.ok("prepare", ref)
    part.write_bytes(b"junk" * 100)
    store.ok("rm", ref)
    part.write_bytes(b"junk" * 100)
    assert "is corrupt" in store.fails("prepare", ref)
    store.ok("prepare", ref)


def test_damaged_store(store, tmp_path):
    ref = layout(tmp_path / "img", layer(file("f")))
    store.ok("prepare", ref)
    for blob in store.blobs():
        (store.images / "blobs/sha256" / blob).unlink()
    name = store.ok("list").split()[0]
    assert "img" in name
    assert "is missing from the image store" in store.fails("inspect", ref)
    store.ok("rm", ref)
    store.ok("prepare", ref)


def test_cancel(store, tmp_path):
    """SIGINT in the middle: one message, nothing left."""
    ref = layout(tmp_path / "img", *[layer(file(f"f{i}", os.urandom(4 << 20))) for i in range(4)])
    seen = 0
    for delay in (0.05, 0.1, 0.2, 0.3):
        proc = store.start("prepare", ref)
        time.sleep(delay)
        proc.send_signal(signal.SIGINT)
        _, err = proc.communicate(timeout=60)
        if proc.returncode == 1:
            assert "ECANCELED" in err and len(err.splitlines()) == 1
            seen += 1
        assert not store.leftovers()
        store.run("rm", ref)
    assert seen > 0


@pytest.mark.parametrize("size,where", [("3m", "blob"), ("9m", "unpack or build")])
def test_no_space(tmp_path, size, where):
    """A full disk, on a small file system of the test's own."""
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", full], check=True)
    try:
        store = Store(full, os.environ["IMAGE_TOOL"])
        ref = layout(tmp_path / "img", layer(file("f", os.urandom(4 << 20))))
        err = store.fails("prepare", ref)
        assert "ENOSPC" in err and "o space left" in err, where
        assert not store.blobs() or where != "blob"
        assert not list((store.images / "rootfs").iterdir())
    finally:
        subprocess.run(["umount", full], check=True)


def test_store_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file", os.environ["IMAGE_TOOL"])
    code, _, err = store.run("list")
    assert code == 1 and "image store" in err
