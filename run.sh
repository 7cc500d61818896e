#!/usr/bin/env bash
# An environment with what requirements.txt names, then `python -m src "$@"` — nothing else.
# PYTHON=/path/to/python picks the interpreter.
set -euo pipefail

fail() { printf 'error: %s\n' "$1" >&2; exit 2; }

export PYTHONUTF8=1  # files and names are UTF-8 whatever the locale, in every process begun here
for stream in 0 1 2; do  # one that is closed would become the first file that is opened
  [ ! -d /dev/fd ] || [ -e "/dev/fd/$stream" ] || eval "exec $stream<>/dev/null"
done
called_from=${PWD:-}
[ -n "$called_from" ] && [ . -ef "$called_from" ] || fail "the folder that this was called from is gone${called_from:+ ($called_from)}. Change to another one (cd) [working_folder_gone]"
case $0 in */*) run_as=$0 ;; *) run_as=./$0 ;; esac  # for the commands that it suggests
home=${BASH_SOURCE[0]}
case $home in */*) cd -- "${home%/*}/" ;; esac
stamp=.venv/requirements.installed

install() {  # into .venv; beside a system-wide torch (Kaggle, Colab) that one is used, not a second copy
  [ ! -e bundle.json ] || fail "$1 lacks packages of requirements.txt. packages.txt in this bundle says how to bring them without network [no_package]"
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "Python 3.10 or newer is needed ($1). Name another one with PYTHON=/path/to/python [python_too_old]"
  site=$("$1" -c 'import importlib.util as u; print("--system-site-packages" if u.find_spec("torch") else "")')
  echo "installing what requirements.txt names into .venv, once${site:-; torch with its GPU libraries is about 6 GB}" | sed 's/--system-site-packages/ (beside the torch that is there)/'
  if ! "$1" -m venv --clear $site .venv >/dev/null 2>&1; then  # Debian and Colab without ensurepip
    "$1" -m venv --clear --without-pip $site .venv || fail "cannot make .venv with $1. On Debian: apt install python3-venv [no_venv]"
    "$1" -m pip --python .venv/bin/python install -q -r requirements.txt || fail "pip could not install requirements.txt. Is the network on? Run the same command again to go on [no_install]"
  else
    .venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt || fail "pip could not install requirements.txt. Is the network on? Run the same command again to go on [no_install]"
  fi
  cp requirements.txt "$stamp"
}

active=${PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}}
active=${active:-${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}}
if [ -z "$active" ] && cmp -s requirements.txt "$stamp"; then
  python=.venv/bin/python
else
  python=${active:-$(command -v python3 || command -v python || true)}
  [ -n "$python" ] && command -v "$python" >/dev/null || fail "no Python found (${python:-python3}). Install Python 3.10 or newer, or name one with PYTHON=/path/to/python [no_python]"
  code=0
  said=$("$python" - < src/environment.py 2>&1) || code=$?
  case $code in  # does it have what requirements.txt names? 0: yes, 10: no, else it does not run
    0) ;;
    10) cmp -s requirements.txt "$stamp" || install "$python"
        python=.venv/bin/python ;;
    *) while IFS= read -r line; do  # to install anything would not help
         case $line in *[Ee]rror*) why=$line ;; esac
       done <<< "$said"
       fail "this Python does not run here ($python): ${why:-exit code $code}. Look at the limits of this shell (ulimit -a), or name another one with PYTHON=/path/to/python [python_does_not_run]" ;;
  esac
fi
CALLED_FROM=$called_from RUN_AS=$run_as exec "$python" -m src "$@"
