"""Builds gpfast._C: C++ linked to libtorch_cpu and c10, .cu files by nvcc with the static CUDA runtime, so that one
binary imports with and without a GPU. GPFAST_NO_EXT=1: pure Python. GPFAST_CUDA=0|1: as told (unset: where nvcc is)."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import setup

nvcc = shutil.which("nvcc") or shutil.which(os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc"))
with_cuda = os.environ.get("GPFAST_CUDA") or ("1" if nvcc else "0")
arguments = {}
if os.environ.get("GPFAST_NO_EXT", "0") in ("", "0"):
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        raise SystemExit("gpfast builds against the installed torch: use pip install --no-build-isolation .") from None
    if with_cuda == "1" and not nvcc:
        raise SystemExit("GPFAST_CUDA=1 needs nvcc, which is neither on PATH nor in CUDA_HOME/bin.")
    extension = CppExtension(
        "gpfast._C",
        [str(path) for path in sorted(Path("csrc").rglob("*.cpp"))],
        depends=[str(path) for path in sorted(Path("csrc").rglob("*")) if path.suffix in (".h", ".cu")],
        include_dirs=[os.path.abspath("csrc")],
        py_limited_api=True,
        # OpenMP is libtorch_cpu's: not linked. fp16 loops vectorise without traps; uncontracted, bits are eager's.
        extra_compile_args="-O3 -g0 -fopenmp -fno-trapping-math -ffp-contract=off -fvisibility=hidden".split(),
    )
    extension.libraries = ["c10", "torch_cpu"]

    class Build(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # Objects stay, also those of an editable install, for the next build against the same torch.
            self.build_temp = os.path.join("build", f"torch-{torch.__version__}")

        def build_extensions(self):
            if with_cuda == "1":
                # The nvcc on PATH may be a wrapper script: it says itself where its libraries are.
                said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
                extension.library_dirs += re.findall(r'"-L([^"]+)"', re.search("LIBRARIES=(.*)", said.stderr)[1])
                extension.extra_link_args += ["-Wl,--exclude-libs,ALL", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
                extension.extra_compile_args.append("-DGPFAST_WITH_CUDA")
                extension.extra_objects += [self.compile_cuda(path) for path in sorted(Path("csrc").rglob("*.cu"))]
            super().build_extensions()

        def compile_cuda(self, source):
            wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0 9.0 10.0+PTX"
            targets = re.findall(r"(\d+)\.(\d+\w*)(\+PTX)?", wanted)
            assert targets, f"TORCH_CUDA_ARCH_LIST must hold numbers, as in 8.0;9.0+PTX, and is {wanted}"
            codes = [f"sm_{a}{b}" for a, b, _ in targets] + [f"compute_{a}{b}" for a, b, ptx in targets if ptx]
            flags = [f"-gencode=arch=compute_{code.split('_')[1]},code={code}" for code in codes]
            flags += [f'-DGPFAST_CUDA_TARGETS="{" ".join(codes)}"', "-Xcompiler=-fPIC,-fvisibility=hidden"]
            out = Path(self.build_temp, source).with_suffix(".cu.o")
            command = [nvcc, *flags, "--threads=0", "-O3", "-Icsrc", "-c", str(source), "-o", str(out)]
            read = [source, *sorted(Path("csrc").rglob("*.h"))]
            digest = hashlib.sha256(repr((command, [path.read_bytes() for path in read])).encode()).hexdigest()
            made_of = out.with_suffix(".sha256")
            if not (out.exists() and made_of.exists() and made_of.read_text() == digest):
                out.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(command, check=True)
                made_of.write_text(digest)
            return str(out)

    arguments = {"ext_modules": [extension], "cmdclass": {"build_ext": Build}}
    arguments["options"] = {"bdist_wheel": {"py_limited_api": "cp310"}}

setup(**arguments)
