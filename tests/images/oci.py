"""Write OCI layouts: layers from a directory tree or from tarfile members, config, manifest, index."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile

MT_INDEX = "application/vnd.oci.image.index.v1+json"
MT_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MT_CONFIG = "application/vnd.oci.image.config.v1+json"
MT_LAYER = "application/vnd.oci.image.layer.v1.tar"

EPOCH = "2024-01-01T00:00:00Z"
EPOCH_SECONDS = 1704067200


def sha256_bytes(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def dump(obj):
    return json.dumps(obj, indent=None, separators=(",", ":"), sort_keys=True).encode()


class Layer:
    """One layer blob: its bytes as stored, media type, digest and diff id."""

    def __init__(self, tar_bytes, compression="gzip"):
        self.diff_id = sha256_bytes(tar_bytes)
        if compression == "gzip":
            self.data = gzip.compress(tar_bytes, 6, mtime=0)
            self.media_type = MT_LAYER + "+gzip"
        elif compression == "zstd":
            self.data = subprocess.run(
                ["zstd", "-q", "-3", "-c"], input=tar_bytes, stdout=subprocess.PIPE, check=True
            ).stdout
            self.media_type = MT_LAYER + "+zstd"
        else:
            self.data = tar_bytes
            self.media_type = MT_LAYER
        self.digest = sha256_bytes(self.data)

    def descriptor(self):
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


def tar_of_tree(root):
    """A tar of a directory, numeric owners, fixed order, hard links and devices kept."""
    return subprocess.run(
        ["tar", "--numeric-owner", "--sort=name", "--xattrs", "--xattrs-include=*",
         "--format=posix", "--pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f",
         "-C", root, "-cf", "-", "."],
        stdout=subprocess.PIPE, check=True).stdout


def tar_of_members(members):
    """A tar made of (tarfile.TarInfo, bytes or None), in that order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            if data is not None:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if data is not None else None)
    return out.getvalue()


class Image:
    """Layers and configuration of one image for one platform."""

    def __init__(self, layers, config=None, architecture="amd64", os_name="linux", created=EPOCH):
        self.layers = layers
        self.config = dump({
            "architecture": architecture,
            "os": os_name,
            "created": created,
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": created, "created_by": "mkimage"} for _ in layers],
        })
        self.platform = {"architecture": architecture, "os": os_name}

    def manifest(self):
        return dump({
            "schemaVersion": 2,
            "mediaType": MT_MANIFEST,
            "config": {"mediaType": MT_CONFIG, "digest": sha256_bytes(self.config),
                       "size": len(self.config)},
            "layers": [layer.descriptor() for layer in self.layers],
        })

    def blobs(self):
        yield sha256_bytes(self.config), self.config
        for layer in self.layers:
            yield layer.digest, layer.data


def write_layout(path, images, annotate=True):
    """Write {tag: Image} as an OCI layout directory; the directory appears whole or not at all."""
    parent = os.path.dirname(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    tmp = tempfile.mkdtemp(prefix=".new-", dir=parent)
    os.chmod(tmp, 0o755)
    blobs = os.path.join(tmp, "blobs", "sha256")
    os.makedirs(blobs)
    manifests = []
    for tag, image in images.items():
        manifest = image.manifest()
        for digest, data in [*image.blobs(), (sha256_bytes(manifest), manifest)]:
            with open(os.path.join(blobs, digest.split(":", 1)[1]), "wb") as out:
                out.write(data)
        desc = {"mediaType": MT_MANIFEST, "digest": sha256_bytes(manifest),
                "size": len(manifest), "platform": image.platform}
        if annotate:
            desc["annotations"] = {"org.opencontainers.image.ref.name": tag}
        manifests.append(desc)
    with open(os.path.join(tmp, "oci-layout"), "w") as out:
        out.write('{"imageLayoutVersion":"1.0.0"}')
    with open(os.path.join(tmp, "index.json"), "wb") as out:
        out.write(dump({"schemaVersion": 2, "mediaType": MT_INDEX, "manifests": manifests}))
    old = None
    if os.path.exists(path):
        old = tempfile.mkdtemp(prefix=".old-", dir=parent)
        os.rename(path, os.path.join(old, "x"))
    os.rename(tmp, path)
    if old:
        shutil.rmtree(old)


def write_docker_archive(path, images):
    """Write {repo_tag: Image} in the form of `docker save`."""
    members, manifest, seen = [], [], set()

    def add(name, data):
        if name not in seen:
            seen.add(name)
            members.append((tarfile.TarInfo(name), data))

    for tag, image in images.items():
        config = sha256_bytes(image.config)[7:] + ".json"
        add(config, image.config)
        names = []
        for layer in image.layers:
            name = layer.diff_id[7:] + "/layer.tar"
            add(name, layer.data)
            names.append(name)
        manifest.append({"Config": config, "RepoTags": [tag] if tag else None, "Layers": names})
    add("manifest.json", dump(manifest))
    with open(path, "wb") as out:
        out.write(tar_of_members(members))
