#!/bin/sh
# Stands for the forwarder in the harness's own tests:
#   agent.sh run --docker D --state-dir S --bpffs-dir B [--refuse]
case "$*" in
*--refuse*)
    echo refused >&2
    exit 1
    ;;
esac
echo "$FORWARDER_GREETING from $(ip -br link show dev up0)" >&2
mkdir -p "$5" "$7"
trap 'exit 3' TERM
echo ready
while :; do
    sleep 0.05
done
