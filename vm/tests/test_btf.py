"""What a kernel image says about its sched_ext."""

import lzma
import struct
import tempfile
import unittest
import zlib
from pathlib import Path

from syrup_vm import Error, btf
from syrup_vm.btf import Verdict

INT, STRUCT, FUNC, FUNC_PROTO, ENUM64 = 1, 4, 12, 13, 19


class Blob:
    """BTF, made by hand (Documentation/bpf/btf.rst)."""

    def __init__(self):
        self.strings, self.types, self.count = b"\0", b"", 0

    def name(self, text):
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, kind, name="", members=0, target=0, payload=b""):
        self.types += struct.pack("<III", self.name(name), kind << 24 | members, target) + payload
        self.count += 1
        return self.count

    def function(self, name, *parameters):
        payload = b"".join(struct.pack("<II", self.name(p), 0) for p in parameters)
        proto = self.add(FUNC_PROTO, "", len(parameters), 0, payload)
        self.add(FUNC, name, 0, proto)

    def encoded(self):
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


def kernel(*functions):
    """BTF with `functions` between types of other kinds and sizes."""
    blob = Blob()
    blob.add(INT, "int", 0, 4, bytes(4))
    blob.add(STRUCT, "s", 2, 8, bytes(24))
    blob.add(ENUM64, "e", 3, 8, bytes(36))
    for function in functions:
        blob.function(*function)
        blob.add(STRUCT, "t", 1, 4, bytes(12))
    return blob


def elf(section):
    names = b"\0.BTF\0.shstrtab\0"
    data = 64
    table = data + len(section) + len(names)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    rows = [
        (0, 0, 0), (1, data, len(section)), (6, data + len(section), len(names)),
    ]  # fmt: skip
    table = b"".join(struct.pack("<IIQQQQIIQQ", n, 1, 0, 0, at, size, 0, 0, 1, 0) for n, at, size in rows)
    return header + section + names + table


def image(payload, release=b"7.2.13+deb14-cloud-amd64 (debian) #1 SMP"):
    """A bzImage with one setup sector."""
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x300 - 0x200)
    head[0x300 : 0x300 + len(release)] = release
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload


GOOD = [("scx_bpf_kick_cpu", "cpu", "flags"), ("scx_bpf_kick_cpu_impl", "cpu", "flags", "aux")]
MALFORMED = [("scx_bpf_kick_cpu", "cpu", "flags", "aux"), ("other", "aux")]
NO_SCX = [("schedule",), ("sys_scx_bpf_x", "aux")]


class Judge(unittest.TestCase):
    def judge(self, data):
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            return btf.judge(Path(file.name))

    def test_tells_kernels_apart_however_they_are_packed(self):
        for functions, verdict in (
            (GOOD, Verdict.GOOD), (MALFORMED, Verdict.MALFORMED), (NO_SCX, Verdict.NO_SCX),
            (NO_SCX + GOOD, Verdict.GOOD), (GOOD + MALFORMED, Verdict.MALFORMED),
        ):  # fmt: skip
            vmlinux = elf(kernel(*functions).encoded())
            gzip = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
            for form, data in {
                "vmlinux": vmlinux,
                "xz": image(lzma.compress(vmlinux)),
                "gzip": image(gzip.compress(vmlinux) + gzip.flush()),
            }.items():
                with self.subTest(verdict=verdict, form=form):
                    self.assertEqual(self.judge(data), verdict)

    def test_refuses_what_it_cannot_read(self):
        blob = kernel(*GOOD)
        blob.add(20, "new")
        unknown_flag = kernel(*GOOD)
        unknown_flag.add(0x20 | INT, "int", 0, 4, bytes(4))
        for what, data in {
            "kind 20": image(lzma.compress(elf(blob.encoded()))),
            "kind 33": image(lzma.compress(elf(unknown_flag.encoded()))),
            "not BTF": image(lzma.compress(elf(bytes(100)))),
            "unknown compression": image(b"LZ4!"),
            "not an x86 kernel image": bytes(2048),
        }.items():
            with self.subTest(what), self.assertRaisesRegex(Error, what):
                self.judge(data)

    def test_reads_the_release(self):
        for data in (image(b""), b"\x7fELF" + bytes(70000) + b"Linux version 7.2.13+deb14-cloud-amd64 (x)"):
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                self.assertEqual(btf.release(Path(file.name)), "7.2.13+deb14-cloud-amd64")
