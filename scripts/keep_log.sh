#!/usr/bin/env bash
# Let the log of a job go on where that of its earlier attempts ended: keep_log.sh LOG
# Snakemake removes a log before it runs the job again, even while an earlier copy of the job still
# writes to it. So the lines go to a hidden file beside it, of which LOG is a second name.
set -euo pipefail
kept=$(dirname "$1")/.$(basename "$1")
touch "$kept"
ln -f "$kept" "$1" || touch "$1" # on a file system without hard links, each attempt has its own
