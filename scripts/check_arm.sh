#!/bin/sh
# Builds the extension for ARM (aarch64) and runs the tests of its ops under qemu, on x86-64 Linux.
#
#   scripts/check_arm.sh FOLDER [pytest arguments]
#
# Needs root (for debootstrap), python3.11 or later with pip and pybind11, and on Debian:
#   apt-get install qemu-user g++-aarch64-linux-gnu debootstrap unzip
#
# FOLDER gets a Debian system, PyTorch for aarch64 and the built extension, 2 GB in all; a second
# call uses them again. PyTorch's wheel for aarch64 is built for CUDA: empty libraries replace those
# of CUDA, which only a GPU needs. qemu-user shows programs the /proc/cpuinfo of the host, with which
# PyTorch crashes, so that the Debian system has its own.
#
# Without pytest arguments the parity tests of the C++ kernels run, on neoverse-n1, which has SDOT.
# CPU=max is an emulated processor that also has I8MM; whole networks need CPU=max,sve=off,sme=off.
# It is slow: qemu takes half a minute of processor time to import PyTorch.
set -eu

folder=$(mkdir -p "${1:?usage: scripts/check_arm.sh FOLDER [pytest arguments]}" && cd "$1" && pwd)
shift
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
cross=aarch64-linux-gnu
torch=${TORCH_VERSION:-2.13.0}
system=$folder/system
site=$folder/site
lib=$site/torch/lib
for tool in qemu-aarch64 $cross-g++ debootstrap unzip "$python"; do
  command -v "$tool" > /dev/null || { echo "$tool is missing; see the head of $0" >&2; exit 1; }
done

if [ ! -e "$system/usr/bin/python3.11" ]; then
  debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libgomp1,libstdc++6 \
    bookworm "$system"
  for package in "$system"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$system"; done
fi
mkdir -p "$system/proc" "$system/sys/devices/system/cpu"
printf 'processor\t: 0\nFeatures\t: fp asimd atomics fphp asimdhp asimddp\nCPU implementer\t: 0x41
CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n' \
  > "$system/proc/cpuinfo"
echo 0 > "$system/sys/devices/system/cpu/possible"
echo 0 > "$system/sys/devices/system/cpu/present"

if [ ! -e "$site/cv2" ]; then  # of the package that is installed last
  wheels() {
    "$python" -m pip install --target "$site" --platform manylinux_2_28_aarch64 \
      --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --only-binary=:all: \
      --python-version 3.11 "$@"
  }
  wheels --no-deps "torch==$torch" triton
  wheels numpy sympy networkx jinja2 fsspec filelock pytest hypothesis pillow safetensors rich \
    huggingface-hub packaging tqdm setuptools
  wheels --no-deps opencv-python-headless
fi

# One empty library for each missing one, with the symbols, and their versions, that PyTorch uses.
"$python" - "$lib" "$system" "$cross" "$folder" <<'PY'
import collections
import pathlib
import re
import subprocess
import sys

lib, system, cross, folder = pathlib.Path(sys.argv[1]), *sys.argv[2:]


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


files = [*lib.glob("libtorch*.so"), *lib.glob("libc10*.so"), lib / "libcaffe2_nvrtc.so"]
missing: dict[str, set[str]] = {}
for path in files:
    for name in re.findall(r"NEEDED.*\[(.*)\]", run(f"{cross}-readelf", "-d", str(path))):
        if re.match(r"lib(cu|nv(rtc|shmem)|nccl)", name) and not (lib / name).exists():
            missing[name] = set()
owner: dict[str, str] = {}
used: dict[str, set[str]] = collections.defaultdict(set)
for path in files if missing else ():
    for line in run(f"{cross}-readelf", "-V", str(path)).splitlines():
        if found := re.search(r"File: (\S+)", line):
            needed = found[1]
        elif found := re.search(r"Name: (\S+)", line):
            owner[found[1]] = needed
    for line in run(f"{cross}-nm", "-D", "--undefined-only", str(path)).splitlines():
        name, _, version = line.split()[-1].partition("@")
        used[version].add(name)
prefix = re.compile(r"_*cu[a-z]*[A-Z]|nccl|nvrtc|nvshmem")
for name in missing:
    versions = [version for version, library in owner.items() if library == name]
    script = "".join(f"{v} {{ global: {'; '.join(sorted(used[v]))}; }};\n" for v in versions)
    symbols = {s for v in versions for s in used[v]}
    symbols |= set() if versions else {s for s in used[""] if prefix.match(s)}
    code = ".text\n" + "".join(
        f".globl {s}\n.type {s},%function\n{s}: mov x0, #{100 * (s == 'cudaGetDeviceCount')}\nret\n"
        for s in sorted(symbols)
    )
    source, versions_file = pathlib.Path(folder, "empty.s"), pathlib.Path(folder, "empty.map")
    source.write_text(code)
    versions_file.write_text(script)
    option = [f"-Wl,--version-script={versions_file}"] if script else []
    subprocess.run([f"{cross}-gcc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", *option,
                    str(source), "-o", str(lib / name)], check=True)
PY

# The flags of setup.py. `_C` is named for CPython 3.11 on aarch64, so that x86-64 ignores it.
includes="-I$root/csrc/include -I$site/torch/include -I$site/torch/include/torch/csrc/api/include
  -I$("$python" -c 'import pybind11; print(pybind11.get_include())')
  -I$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
mkdir -p "$folder/objects"
minimum=$(sed -n 's/^MIN_TORCH = "\(0x[0-9a-f]*\)".*/\1/p' "$root/setup.py")
(cd "$root" && ls csrc/*.cpp csrc/cpu/*.cpp) | xargs -P "$(nproc)" -I FILE sh -c "
  object=$folder/objects/\$(echo FILE | tr / _).o
  $cross-g++ -std=c++20 -O3 -g0 -fPIC -fvisibility=hidden -fno-trapping-math \
    -DTORCH_TARGET_VERSION=$minimum -DTORCH_EXTENSION_NAME=_C $(echo $includes) \
    -c $root/FILE -o \$object"
$cross-g++ -shared "$folder"/objects/*.o -L"$lib" -Wl,--unresolved-symbols=ignore-all -ltorch \
  -ltorch_cpu -ltorch_python -lc10 -o "$root/dafast/_C.cpython-311-aarch64-linux-gnu.so"

[ $# -gt 0 ] || set -- tests/ops -m "not slow and not exhaustive" -k "cpp or portable or dotprod or i8mm"
cd "$root"
exec qemu-aarch64 -cpu "${CPU:-neoverse-n1}" -L "$system" -E OMP_NUM_THREADS=1 \
  -E LD_LIBRARY_PATH="$lib" -E PYTHONPATH="$site:$root" "$system/usr/bin/python3.11" \
  -m pytest -q -p no:cacheprovider "$@"
