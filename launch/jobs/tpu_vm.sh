#!/bin/bash
# A whole run on the hosts of a TPU pod slice, from your own machine:
#
#     TPU=my-slice ZONE=us-central1-a launch/jobs/tpu_vm.sh configs/cityscapes.py /runs/cityscapes \
#         --config.data.root=/runs/data/cityscapes --config.supernet.parts=8
#
# If the connection drops, the hosts get no signal; run the same command again to resume.
# Every host needs a checkout in ~/qnas_jax, installed in its .venv with pip install -e '.[tpu]'. The
# workdir must be on a file system that all hosts mount. The hosts find each other.
set -euo pipefail
config=$1
workdir=$2
shift 2
gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all --command \
    "cd qnas_jax && source .venv/bin/activate && qnas --config $config --workdir $workdir $*"
