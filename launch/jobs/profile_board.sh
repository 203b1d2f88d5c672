#!/bin/bash
# Measures latencies on a board and writes the latency table:
#
#     qnas profile_latency --config configs/streets.py --runtime litert --export_only files
#     launch/jobs/profile_board.sh files runs/imx8mp.csv
#
# Each file is copied to the board and run by the runtime's own tool. The output is saved as
# FILE.log next to the file. Files with a log are skipped, so after an interruption start the same
# command again. To repeat a measurement, delete its log first. Logs without figures are listed at
# the end, with exit code 2; all others are in the table.

# The board, and a folder in the user's home directory. With adb, use an absolute path,
# copy() { adb push "$1" "$FOLDER/"; } and on_board() { adb shell "$1"; }.
BOARD=root@imx8mp
FOLDER=qnas_files
copy() { scp -q "$1" "$BOARD:$FOLDER/"; }
on_board() { ssh -n "$BOARD" "$1"; }

# The names in the table, and the tool. This example is LiteRT on an i.MX 8M Plus
# (docs/profiling.md): on one of its four Cortex-A53 or, with the commented line, on its NPU by the
# VX delegate.
DEVICE="i.MX 8M Plus, Cortex-A53"
RUNTIME=litert
RUNTIME_VERSION=2.16.2
THREADS=1
TOOL="taskset -c 3 /usr/bin/tensorflow-lite-*/examples/benchmark_model --num_threads=$THREADS"
TOOL+=" --warmup_runs=10 --num_runs=100 --max_secs=30 --graph="
DELEGATE=""
# DEVICE="i.MX 8M Plus, NPU" DELEGATE="--external_delegate_path=/usr/lib/libvx_delegate.so"
# For onnxruntime_perf_test: TOOL="onnxruntime_perf_test -I -s -x $THREADS -y 1 -r 200 " DELEGATE=""
# On x86 with AVX2 and without VNNI, also TOOL+="-C 'session.x64quantprecision|1' " (docs/export.md).

set -euo pipefail
files=$1
table=$2
[ -f "$files/manifest.csv" ] || { echo "$files/manifest.csv: no such file; export the files first" >&2; exit 2; }
on_board "mkdir -p $FOLDER"
tail -n +2 "$files/manifest.csv" | tr -d '"\r' | cut -d, -f1 | while read -r name; do
    [ -n "$name" ] || continue  # a blank line from a spreadsheet
    log=$files/$name.log
    [ -s "$log" ] && continue
    copy "$files/$name"
    if on_board "$TOOL$FOLDER/$name $DELEGATE; status=\$?; rm $FOLDER/$name; exit \$status" \
        > "$log.part" 2>&1; then
        mv "$log.part" "$log"
        echo "$name"
    else
        echo "$name: failed, see $log.part; the table will not contain it" >&2
    fi
done
python -m qnas_jax board_table --files "$files" --table "$table" --device "$DEVICE" \
    --runtime "$RUNTIME" --runtime_version "$RUNTIME_VERSION" --threads "$THREADS"
