# Make the environment `.venv` in the repository: Python, torch, and this package in place, with its extra `$extra`.
# For start.sh and tests/run.sh, which set `extra` and lie in folders of the repository; run one of these.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."

say() { printf -- '--- %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Leave in `python` the first Python that is new enough.
find_python() {
  for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
  done
  python=${PYTHON:-python3}
  fail "$python is $("$python" --version 2>/dev/null || echo missing), and Python 3.11 or newer is needed:" \
    "install one and name it, PYTHON=/path/to/python3.12 sh $0"
}

# Debian and Ubuntu have venv and pip in a package of their own.
get_venv() {
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then return; fi
  package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  root=$([ "$(id -u)" = 0 ] || echo sudo)
  if ! command -v apt-get >/dev/null || ! command -v ${root:-true} >/dev/null; then
    fail "$python has no venv or ensurepip: install them (in Debian the package $package), and run this again"
  fi
  say "installing Debian's $package: $root apt-get install $package"
  { $root apt-get -qq update && $root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$package"; } >/dev/null ||
    fail "apt-get could not install $package: install it, and run this again"
}

# A machine with a GPU may have a torch that was built for it; a copy of another would take gigabytes and may not run.
make_venv() {
  site=
  if "$python" -c 'import sys, torch
usable = torch.cuda.is_available() and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
sys.exit(not usable)' 2>/dev/null; then site=--system-site-packages; fi
  say "making .venv with $("$python" --version)${site:+, and the torch of this GPU machine}"
  rm -rf .venv
  mkdir .venv
  : >.venv/unfinished
  "$python" -m venv $site .venv
}

get_torch() {
  if .venv/bin/python -c 'import torch' 2>/dev/null; then return; fi
  if nvidia-smi -L >/dev/null 2>&1; then
    say "installing torch for this machine's GPU: some gigabytes, several minutes"
    .venv/bin/pip install $quiet 'torch>=2.10'
  else
    say "installing torch 2.13.0 for the CPU: 200 MB, a minute or two"
    index=https://download.pytorch.org/whl/cpu
    .venv/bin/pip install $quiet --retries 0 --timeout 10 torch==2.13.0 --index-url "$index" 2>/dev/null ||
      { say "not from $index: from PyPI, some gigabytes for GPUs" && .venv/bin/pip install $quiet torch==2.13.0; }
  fi
}

quiet=
[ -t 1 ] || quiet=-q  # a terminal gets pip's progress
export PIP_DISABLE_PIP_VERSION_CHECK=1

wanted="$extra $(cksum <pyproject.toml) $PWD"
is_complete() {
  [ ! -e .venv/unfinished ] && grep -qxF "$wanted" .venv/finished 2>/dev/null && .venv/bin/python -c ''
}

make() {
  if [ -e .venv/unfinished ] || [ ! -e .venv ]; then
    get_venv
    make_venv
  else
    .venv/bin/python -m pip --version >/dev/null 2>&1 || fail ".venv has no working pip: remove it, and run this again"
    say "using .venv"
    [ ! -e .venv/finished ] || : >.venv/unfinished  # not in one of the user's own: that is never removed
  fi
  get_torch
  say "installing speechft-merge with the extra '$extra': a minute or two"
  .venv/bin/pip install -q -e ".[$extra]"
  [ ! -e .venv/unfinished ] || { echo "$wanted" >>.venv/finished && rm .venv/unfinished; }
}

if ! is_complete; then
  find_python
  # Held until it is made, also by a pip that outlives this shell
  exec 9>>pyproject.toml
  lock='import fcntl, sys; fcntl.flock(9, fcntl.LOCK_EX | int(sys.argv[1]) * fcntl.LOCK_NB)'
  "$python" -c "$lock" 1 2>/dev/null || { say "waiting for another run, which makes .venv" && "$python" -c "$lock" 0; }
  is_complete || make
  exec 9>&-
fi
say "the environment .venv is complete"
