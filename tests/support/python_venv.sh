#!/bin/bash
# python_venv.sh PYTHON - Debian ships the venv module of an interpreter in a package of its own: install it
# (root), or say which one is missing.
set -euo pipefail
version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
package=python$version-venv
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -q -y "$package" >&2 || { apt-get update -q >&2 && apt-get install -q -y "$package" >&2; }
else
	echo "python_venv: $1 cannot make a virtual environment:  sudo apt-get install $package" >&2
	exit 1
fi
