#!/bin/sh
# SageMath's sage-rebase.sh, done by rebaser from this checkout; see bin/rebaser.
case $0 in
*/*) here=${0%/*}/.. ;;
*) here=.. ;;
esac
if [ -L "$0" ]; then
    here=$(dirname -- "$(readlink -f -- "$0")")/..
fi
if [ "$here/pyproject.toml" -nt "$here/.venv/ready" ] || ! [ -e "$here/.venv/ready" ]; then
    "$here/bin/make-venv" || exit
fi
exec "$here/.venv/bin/python" -I -c 'from rebaser.sage_rebase import main; main()' "$@"
