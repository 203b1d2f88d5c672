#!/bin/bash
# A whole run on the hosts of a TPU pod slice, from your own machine:
#
#     TPU=my-slice ZONE=us-central1-a HOSTS=2 launch/jobs/tpu_vm.sh configs/cityscapes.py /runs/cityscapes \
#         --config.data.root=/runs/data/cityscapes
#
# If the connection drops, the hosts are not told: call it again, it goes on.
# Change: the three variables, and the bounds below for hosts of other than 4 chips (8: 2,4,1). The project and its environment (.venv with jax[tpu]) must lie in
# ~/qnas_jax on every host, and the run's folder on a file system that all of them mount.
set -euo pipefail
config=$1
workdir=$2
shift 2
run="--config $config --workdir $workdir --config.supernet.parts=$((HOSTS * 4)) $*"

on() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker "$1" \
      --command "cd qnas_jax && source .venv/bin/activate && $2"
}

# Of a host by itself JAX must know that it is alone.
alone="TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1 TPU_PROCESS_BOUNDS=1,1,1"
on 0 "$alone python launch/main.py $run --until=teacher"
on all "python launch/distributed.py $run"
on 0 "$alone python launch/main.py $run"
