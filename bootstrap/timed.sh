#!/bin/sh
# timed.sh HEADING COMMAND...: runs the command under a heading and says how long it took.
heading=$1
shift
echo "== $heading"
started=$(date +%s)
"$@" </dev/null
code=$?
echo "== $heading: $(($(date +%s) - started)) s"
exit $code
