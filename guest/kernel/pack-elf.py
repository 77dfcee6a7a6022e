#!/usr/bin/env python3
"""Packs a kernel's ELF file: pack-elf.py IN OUT

The linker places segments at multiples of 2 MiB in the file too, which leaves holes of several
MiB. Loaders go by the program headers alone, so only the segments are kept, at multiples of 4 KiB.
"""
import struct
import sys

EHDR, PHDR = "<16sHHIQQQIHHHHHH", "<IIQQQQQQ"
PT_LOAD, PAGE = 1, 4096


def main(source, target):
    with open(source, "rb") as f:
        elf = f.read()
    ehdr = list(struct.unpack_from(EHDR, elf))
    if ehdr[0][:6] != b"\x7fELF\x02\x01":
        sys.exit(f"pack-elf: {source} is not a 64-bit little-endian ELF file")
    phoff, phentsize, phnum = ehdr[5], ehdr[9], ehdr[10]
    headers = [list(struct.unpack_from(PHDR, elf, phoff + i * phentsize)) for i in range(phnum)]

    loads, data, end = [], [], PAGE
    for p in headers:
        if p[0] == PT_LOAD:
            loads.append((p[2], p[5], end))
            data.append((end, elf[p[2]:p[2] + p[5]]))
            end += (p[5] + PAGE - 1) // PAGE * PAGE
    for p in headers:
        old, size = p[2], p[5]
        at = [new + old - start for start, length, new in loads
              if start <= old and old + size <= start + length]
        if not at:
            sys.exit(f"pack-elf: {source}: a program header lies outside of every segment")
        p[2] = at[0]
        p[7] = min(p[7], PAGE)
    ehdr[5], ehdr[6] = struct.calcsize(EHDR), 0
    ehdr[11:] = [0, 0, 0]

    out = bytearray(end)
    struct.pack_into(EHDR, out, 0, *ehdr)
    for i, p in enumerate(headers):
        struct.pack_into(PHDR, out, ehdr[5] + i * phentsize, *p)
    for offset, content in data:
        out[offset:offset + len(content)] = content
    with open(target, "wb") as f:
        f.write(out)


main(*sys.argv[1:])
