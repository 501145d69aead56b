"""Kernel modules that do what no test of this project should: without one, a
stock kernel cannot be made to warn, oops or stall.

Assembled here, without the kernel's headers: what the kernel compares before it
loads a module (vermagic, the size of its struct module and where in that the
init function stands) is read from one of its own modules."""

import lzma
import re
import subprocess
import tempfile
from pathlib import Path

_SOURCE = """
	.section .modinfo, "a"
	.asciz "license=GPL"
	.asciz "vermagic={vermagic}"
	.section .gnu.linkonce.this_module, "aw"
	.balign 64
	.zero 24			# state, list
	.asciz "{name}"
	.org {init}
	.quad init_module
	.org {size}
	.text
	.globl init_module
	.type init_module, @function
init_module:
	endbr64
	{code}
	mov $-16, %eax			# EBUSY: it never stays
	ret
	.section .note.GNU-stack, "", @progbits
"""

CODE = {
    # As if a reference count had become negative (REFCOUNT_SUB_UAF).
    "warn": "sub $24, %rsp; mov %rsp, %rdi; mov $3, %esi; call refcount_warn_saturate; add $24, %rsp",
    "oops": "ud2",
    # With interrupts off, for ever.
    "stall": "cli; jmp .",
}


def make(what: str, modules: Path, folder: Path) -> Path:
    """Makes the module that does `what`, for the kernel that `modules` belong to."""
    own = next(iter(sorted(modules.glob("kernel/drivers/**/*.ko.xz"))))
    with tempfile.NamedTemporaryFile(suffix=".ko") as donor:
        donor.write(lzma.decompress(own.read_bytes()))
        donor.flush()
        ask = lambda *command: subprocess.run(
            [*command, donor.name], stdout=subprocess.PIPE, check=True, text=True).stdout
        facts = {
            # It ends with a blank.
            "vermagic": ask("/sbin/modinfo", "-F", "vermagic").rstrip("\n"),
            "size": "0x" + re.search(
                r" \.gnu\.linkonce\.this_module +PROGBITS +\w+ +\w+ +(\w+)", ask("readelf", "-SW"))[1],
            "init": "0x" + re.search(
                r"\.rela\.gnu\.linkonce\.this_module.*?^(\w+) [^\n]* init_module ",
                ask("readelf", "-rW"), re.S | re.M)[1],
        }  # fmt: skip
    module = folder / f"{what}.ko"
    source = _SOURCE.format(name=f"syrup_{what}", code=CODE[what], **facts)
    subprocess.run(["cc", "-c", "-x", "assembler", "-", "-o", module], input=source, text=True, check=True)
    return module
