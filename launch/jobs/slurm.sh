#!/bin/bash
# A whole run under Slurm; further settings follow the workdir:
#
#     sbatch launch/jobs/slurm.sh configs/cityscapes.py runs/cityscapes \
#         --config.data.root=/data/cityscapes
#
# Adapt: partition, nodes, GPUs per node, time, and the path of the virtual environment. All nodes
# must see the workdir. The number of nodes must divide train.batch (and oneshot.batch). So that all GPUs
# have work while the supernet is trained, set --config.supernet.parts=4 or more (docs/scaling.md).
#SBATCH --job-name=qnas
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
# SIGTERM arrives 120 s before the time limit, and the state is saved. Submit the job again to
# resume, with as many nodes as there are.

set -euo pipefail
config=$1
workdir=$2
shift 2
source .venv/bin/activate
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# One process per node with all of its GPUs; by default, JAX would use only the first.
export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
srun python launch/main.py --config "$config" --workdir "$workdir" "$@"
