"""What the type information (BTF) inside a kernel image says about sched_ext.

This decides whether a kernel is of use before anything boots. sched_ext's
kernel functions take a hidden last argument, `aux`. A correctly built kernel
shows BPF programs `scx_bpf_kick_cpu(cpu, flags)` and keeps `aux` for the twin
`scx_bpf_kick_cpu_impl(cpu, flags, aux)`. Kernels whose BTF was made by pahole
older than 1.31 let `aux` slip into the public prototype; every scheduler is
then refused with "func_proto incompatible with vmlinux"."""

import enum
import lzma
import re
import struct
import subprocess
import zlib
from pathlib import Path

from . import Error


class Verdict(enum.Enum):
    GOOD = "good"
    MALFORMED = "malformed-btf"
    NO_SCX = "no-scx"


def judge(vmlinuz: Path) -> Verdict:
    found = Verdict.NO_SCX
    for name, parameters in _functions(_section(_vmlinux(vmlinuz), b".BTF")):
        if not name.startswith(b"scx_bpf_") or name.endswith(b"_impl"):
            continue
        if parameters and parameters[-1] == b"aux":
            return Verdict.MALFORMED
        found = Verdict.GOOD
    return found


def release(image: Path) -> str:
    """What `uname -r` will say of it; "" if it does not tell."""
    with open(image, "rb") as file:
        head = file.read(0x10000)
        if head[0x202:0x206] == b"HdrS":
            (offset,) = struct.unpack_from("<H", head, 0x20E)
            return _string(head, offset + 0x200).decode().split(" ")[0]
        found = re.search(rb"Linux version (\S+)", head + file.read())
        return found[1].decode() if found else ""


def _vmlinux(vmlinuz: Path) -> bytes:
    """The ELF file inside an x86 bzImage (Documentation/arch/x86/boot.rst)."""
    image = vmlinuz.read_bytes()
    if image.startswith(b"\x7fELF"):
        return image
    if image[0x202:0x206] != b"HdrS":
        raise Error(f"{vmlinuz} is not an x86 kernel image")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The kernel's build appends the unpacked size, which zstd rejects
        # after it has unpacked everything: its exit status means nothing.
        return subprocess.run(
            ["zstd", "-dc"], input=payload, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ).stdout
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(payload)
    raise Error(f"{vmlinuz}: unknown compression {payload[:6].hex()}")


def _section(elf: bytes, wanted: bytes) -> bytes:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        if _string(elf, strings + name) == wanted:
            return elf[offset : offset + length]
    raise Error(f"the kernel has no {wanted.decode()} section")


# BTF (Documentation/bpf/btf.rst): each type is 12 bytes plus, by kind, a fixed
# number of bytes and a number per member.
_KIND_FUNC, _KIND_FUNC_PROTO = 12, 13
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_MEMBER = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
_LAST_KIND = 19


def _functions(btf: bytes):
    """Yields (name, [names of the parameters]) of every function."""
    magic, _, _, header, types, types_len, strings, _ = struct.unpack_from("<HBBIIIII", btf)
    if magic != 0xEB9F:
        raise Error("the kernel's .BTF section is not BTF")
    strings += header
    position, end = header + types, header + types + types_len
    prototypes: dict[int, tuple[int, int]] = {}
    functions = []
    index = 1
    while position < end:
        name, info, target = struct.unpack_from("<III", btf, position)
        kind, members = info >> 24 & 0x7F, info & 0xFFFF
        if not 0 < kind <= _LAST_KIND:
            # Of unknown length: all that follows would be misread.
            raise Error(f"the kernel's BTF has types of kind {kind}, which vm/syrup_vm/btf.py must learn")
        position += 12
        if kind == _KIND_FUNC:
            functions.append((name, target))
        elif kind == _KIND_FUNC_PROTO:
            prototypes[index] = (position, members)
        position += _FIXED.get(kind, 0) + _PER_MEMBER.get(kind, 0) * members
        index += 1
    for name, target in functions:
        start, members = prototypes[target]
        yield _string(btf, strings + name), [
            _string(btf, strings + struct.unpack_from("<I", btf, start + 8 * i)[0])
            for i in range(members)
        ]


def _string(data: bytes, start: int) -> bytes:
    return data[start : data.index(b"\0", start)]
