#!/bin/bash
# A whole run on the hosts of a TPU pod slice, from your own machine:
#
#     TPU=my-slice ZONE=us-central1-a HOSTS=2 launch/jobs/tpu_vm.sh configs/cityscapes.py /runs/cityscapes \
#         --config.data.root=/runs/data/cityscapes
#
# If the connection drops, the hosts get no signal; run the same command again to resume.
# Adapt: the three variables, and the bounds below if a host does not have 4 chips (8: 2,4,1). Every
# host needs a checkout in ~/qnas_jax, installed in its .venv with pip install -e '.[tpu]'. The workdir must
# be on a file system that all hosts mount.
set -euo pipefail
config=$1
workdir=$2
shift 2
run="--config $config --workdir $workdir --config.supernet.parts=$((HOSTS * 4)) $*"

on() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker "$1" \
      --command "cd qnas_jax && source .venv/bin/activate && $2"
}

# JAX must know that this host runs alone.
alone="TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1 TPU_PROCESS_BOUNDS=1,1,1"
on 0 "$alone python launch/main.py $run --until=teacher"
on all "qnas distributed $run"
on 0 "$alone python launch/main.py $run"
