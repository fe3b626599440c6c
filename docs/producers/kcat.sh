#!/bin/sh
# Publish one request with kcat, and wait for its answer on the responses topic.
#   sh docs/producers/kcat.sh HOST:PORT [PREFIX]
set -eu
kafka=$1
prefix=${2:-headrace}
id=kcat-$(date +%s)-$$
since=$(date +%s)000

# The key is the request id. A file that is named on the command line is one record, whatever line breaks are in it.
kcat -P -b "$kafka" -t "$prefix.requests" -k "$id" "$(dirname "$0")/request.json"

# Read from the time of sending to the present end, until the answer is there. The first record of a key is the answer.
for _ in 1 2 3 4 5; do
    answer=$(kcat -C -q -b "$kafka" -t "$prefix.responses" -o "s@$since" -e -f '%k %s\n' | grep -m 1 "^$id " || true)
    if [ -n "$answer" ]; then
        echo "${answer#* }"
        exit 0
    fi
    sleep 0.2
done
echo "no answer for $id" >&2
exit 1
