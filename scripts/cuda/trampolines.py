"""Makes static archives that stand for CUDA's libraries at link time: libcuda.a, libcublas.a, ...

Every function is a few instructions that look the real one up with dlopen and dlsym at its first call and jump to it.
Without the library (or the function) the call returns that library's error status, so the program starts everywhere
and falls back to the processor. x86-64 Linux; needs gcc and ar.

usage: trampolines.py FOLDER LIBCUDART_STATIC < SYMBOLS
"""

import collections
import pathlib
import subprocess
import sys

# Prefix of the functions, name of the archive, names of the real library, status when it is missing. The first prefix
# that fits counts.
LIBRARIES = [
    ("cublasLt", "cublasLt", ["libcublasLt.so.13", "libcublasLt.so.12"], 1),
    ("cublas", "cublas", ["libcublas.so.13", "libcublas.so.12"], 1),
    ("curand", "curand", ["libcurand.so.10"], 101),
    ("nvrtc", "nvrtc", ["libnvrtc.so.13", "libnvrtc.so.12"], 1),
    ("cudnn", "cudnn", ["libcudnn.so.9"], 1001),
    ("nccl", "nccl", ["libnccl.so.2"], 3),
    ("cu", "cuda", ["libcuda.so.1"], 100),
]

# Called by a trampoline with the function's number on the stack and all argument registers to be kept. On entry of a
# function rsp is 8 off a multiple of 16; number, six registers, 136 and 8 bytes more make it one for the call.
RESOLVE = """
{lib}_resolve_entry:
 pushq %rdi
 pushq %rsi
 pushq %rdx
 pushq %rcx
 pushq %r8
 pushq %r9
 subq $136,%rsp
{save}
 movq 184(%rsp),%rdi
 subq $8,%rsp
 call {lib}_resolve
 addq $8,%rsp
 movq %rax,%r11
{restore}
 addq $136,%rsp
 popq %r9
 popq %r8
 popq %rcx
 popq %rdx
 popq %rsi
 popq %rdi
 addq $8,%rsp
 jmp *%r11
"""

TRAMPOLINE = """
.globl {symbol}
.type {symbol},@function
{symbol}:
 movq {lib}_table+{offset}(%rip),%r11
 testq %r11,%r11
 je 1f
 jmp *%r11
1: pushq ${number}
 jmp {lib}_resolve_entry
"""

# CUDA_LIB_DIRS names folders to look in before the system's.
LOOK_UP = """
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
__attribute__((visibility("hidden"))) void *{lib}_table[{count}];
static const char *symbols[] = {{{symbols}}};
static const char *names[] = {{{names}, 0}};
static void *library;
static int missing(void) {{ return {status}; }}
static void *open_library(void) {{
    const char *folders = getenv("CUDA_LIB_DIRS");
    char path[4096];
    for (int k = 0; names[k]; k++) {{
        for (const char *p = folders; p && *p;) {{
            size_t length = strcspn(p, ":");
            snprintf(path, sizeof path, "%.*s/%s", (int)length, p, names[k]);
            void *found = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
            if (found) return found;
            p += length;
            if (*p) p++;
        }}
        void *found = dlopen(names[k], RTLD_NOW | RTLD_GLOBAL);
        if (found) return found;
    }}
    return (void *)-1;
}}
__attribute__((visibility("hidden"))) void *{lib}_resolve(long number) {{
    if (!library) library = open_library();
    void *function = library == (void *)-1 ? 0 : dlsym(library, symbols[number]);
    if (!function) function = (void *)missing;
    {lib}_table[number] = function;
    return function;
}}
"""


def assembly(lib, symbols):
    lines = [".section .note.GNU-stack,\"\",@progbits", ".text"]
    for number, symbol in enumerate(symbols):
        lines.append(TRAMPOLINE.format(symbol=symbol, lib=lib, offset=8 * number, number=number))
    save = "\n".join(f" movdqu %xmm{k},{16 * k}(%rsp)" for k in range(8))
    restore = "\n".join(f" movdqu {16 * k}(%rsp),%xmm{k}" for k in range(8))
    return "\n".join(lines) + RESOLVE.format(lib=lib, save=save, restore=restore)


def main():
    folder, cudart = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    by_library = collections.defaultdict(list)
    for symbol in sorted(set(sys.stdin.read().split())):
        # The runtime (cuda...) is linked for good.
        library = next((lib for prefix, lib, _, _ in LIBRARIES if symbol.startswith(prefix)), None)
        if library and not symbol.startswith("cuda"):
            by_library[library].append(symbol)
    for _, lib, names, status in LIBRARIES:
        symbols = by_library[lib]
        (folder / f"{lib}.S").write_text(assembly(lib, symbols))
        quoted = lambda values: ", ".join(f'"{value}"' for value in values)
        text = LOOK_UP.format(
            lib=lib, count=max(1, len(symbols)), symbols=quoted(symbols) or "0", names=quoted(names), status=status
        )
        (folder / f"{lib}.c").write_text(text)
        for source, target in [(f"{lib}.S", f"{lib}.S.o"), (f"{lib}.c", f"{lib}.c.o")]:
            subprocess.run(["gcc", "-O2", "-fPIC", "-c", source, "-o", target], cwd=folder, check=True)
        (folder / f"lib{lib}.a").unlink(missing_ok=True)
        subprocess.run(["ar", "rcs", f"lib{lib}.a", f"{lib}.S.o", f"{lib}.c.o"], cwd=folder, check=True)
        print(f"{lib}: {len(symbols)} functions")
    (folder / "libcudart.so").write_text(f"INPUT({cudart})\n")


main()
