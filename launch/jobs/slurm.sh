#!/bin/bash
# A whole run under Slurm; further settings follow the workdir:
#
#     sbatch launch/jobs/slurm.sh configs/cityscapes.py runs/cityscapes \
#         --config.data.root=/data/cityscapes
#
# Adapt: partition, nodes, GPUs per node, time, and the path of the virtual environment. All nodes
# must see the workdir. This script sets supernet.parts to 4 per node.
#SBATCH --job-name=qnas
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
# SIGTERM arrives 120 s before the time limit, and the state is saved. Submit the job again to
# resume.
#
# The teacher and the subnets train on one GPU. If they take long, submit the first and the last
# command as separate jobs (--dependency=afterok). supernet.parts (parts per host times hosts) must
# divide supernet.batch; e.g. 4 nodes with 4 parts each need --config.supernet.batch=16.

set -euo pipefail
config=$1
workdir=$2
shift 2
parts=$((SLURM_JOB_NUM_NODES * 4))
run=(--config "$config" --workdir "$workdir" --config.supernet.parts="$parts" "$@")
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
source .venv/bin/activate

# Whole networks are trained on one node; the supernet and the LUT use all nodes.
srun --nodes=1 --ntasks=1 python launch/main.py "${run[@]}" --until=teacher
# One process per node with all of its GPUs; by default, JAX would use only the first.
export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
srun qnas distributed "${run[@]}"
unset JAX_LOCAL_DEVICE_IDS
srun --nodes=1 --ntasks=1 python launch/main.py "${run[@]}"
