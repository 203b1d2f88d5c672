#!/bin/bash
# Fills a table of measured latencies from a board:
#
#     python launch/tools/profile_latency.py --config configs/streets.py --runtime litert --export_only files
#     launch/jobs/profile_board.sh files runs/imx8mp.csv
#
# Every file is copied to the board and run there by the runtime's own tool; what it prints stays
# beside the file, as FILE.log. What has a log is not run again: after an interruption, or to
# measure something once more, delete its log and start this again. A log without figures is named
# at the end, with exit code 2; all others are in the table.

# The board, and a folder in its user's home (an absolute one for a board behind adb, with
# copy() { adb push "$1" "$FOLDER/"; } and on_board() { adb shell "$1"; }).
BOARD=root@imx8mp
FOLDER=qnas_files
copy() { scp -q "$1" "$BOARD:$FOLDER/"; }
on_board() { ssh -n "$BOARD" "$1"; }

# How it is written in the table, and the tool. Here LiteRT on an i.MX 8M Plus (docs/profiling.md):
# on one of its four Cortex-A53, or with the last line on its NPU, by the VX delegate.
DEVICE="i.MX 8M Plus, Cortex-A53"
RUNTIME=litert
RUNTIME_VERSION=2.16.2
THREADS=1
TOOL="taskset -c 3 /usr/bin/tensorflow-lite-*/examples/benchmark_model --num_threads=$THREADS"
TOOL+=" --warmup_runs=10 --num_runs=100 --max_secs=30 --graph="
DELEGATE=""
# DEVICE="i.MX 8M Plus, NPU" DELEGATE="--external_delegate_path=/usr/lib/libvx_delegate.so"
# For onnxruntime_perf_test: TOOL="onnxruntime_perf_test -I -s -x $THREADS -y 1 -r 200 " DELEGATE=""
# On x86 with AVX2 and without VNNI also TOOL+="-C 'session.x64quantprecision|1' " (docs/export.md).

set -euo pipefail
files=$1
table=$2
[ -f "$files/manifest.csv" ] || { echo "$files/manifest.csv: is missing" >&2; exit 2; }
on_board "mkdir -p $FOLDER"
tail -n +2 "$files/manifest.csv" | tr -d '"\r' | cut -d, -f1 | while read -r name; do
    [ -n "$name" ] || continue  # a blank line that a spreadsheet has left
    log=$files/$name.log
    [ -s "$log" ] && continue
    copy "$files/$name"
    if on_board "$TOOL$FOLDER/$name $DELEGATE; status=\$?; rm $FOLDER/$name; exit \$status" \
        > "$log.part" 2>&1; then
        mv "$log.part" "$log"
        echo "$name"
    else
        echo "$name: failed, see $log.part; it will not be in the table" >&2
    fi
done
python launch/tools/board_table.py --files "$files" --table "$table" --device "$DEVICE" \
    --runtime "$RUNTIME" --runtime_version "$RUNTIME_VERSION" --threads "$THREADS"
