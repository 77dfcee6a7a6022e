"""Short ways to say what is in a layer."""

import tarfile

import oci


def entry(name, data=None, kind=None, mode=None, link="", uid=0, gid=0, mtime=1700000000, **pax):
    info = tarfile.TarInfo(name)
    if kind is None:
        kind = tarfile.REGTYPE if data is not None else tarfile.DIRTYPE
    info.type = kind
    info.mode = mode if mode is not None else (0o755 if kind == tarfile.DIRTYPE else 0o644)
    info.linkname, info.uid, info.gid, info.mtime = link, uid, gid, mtime
    info.pax_headers = {key.replace("__", "."): value for key, value in pax.items()}
    return info, data.encode() if isinstance(data, str) else data


def directory(name, **kw):
    return entry(name, None, tarfile.DIRTYPE, **kw)


def file(name, data="", **kw):
    return entry(name, data, **kw)


def symlink(name, target, **kw):
    return entry(name, None, tarfile.SYMTYPE, link=target, mode=0o777, **kw)


def hardlink(name, target, **kw):
    return entry(name, None, tarfile.LNKTYPE, link=target, **kw)


def device(name, kind, major, minor, **kw):
    info, data = entry(name, None, kind, **kw)
    info.devmajor, info.devminor = major, minor
    return info, data


def layer(*members, compression="gzip"):
    return oci.Layer(oci.tar_of_members(list(members)), compression)


def layout(path, *layers, tag="latest", config=None, **kw):
    """Writes an OCI layout with one image; gives its reference."""
    oci.write_layout(str(path), {tag: oci.Image(list(layers), config, **kw)})
    return f"oci:{path}:{tag}"
