#!/bin/sh
# `mrrn extract` as a job: exit code 3 (finished, some videos failed, they are listed) is a success, not worth a repetition.
mrrn extract "$@"
code=$?
[ "$code" -ne 3 ] || exit 0
exit "$code"
