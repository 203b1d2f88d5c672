#!/bin/bash
# A whole run under Slurm:  sbatch launch/jobs/slurm.sh configs/cityscapes.py runs/cityscapes
#
# Change: partition, nodes, GPUs of a node, time; the environment's path. CONFIG's supernet.parts
# must be a multiple of the nodes, and the run's folder must lie where all nodes see it.
#SBATCH --job-name=qnas
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
# SIGTERM comes 120 s before the time is up; the state is saved and the job may be sent again.

set -euo pipefail
config=$1
workdir=$2
nodes=$SLURM_JOB_NUM_NODES
source .venv/bin/activate

# Whole networks are trained on one node, the supernet and the table on all of them.
srun --nodes=1 --ntasks=1 python launch/main.py --config "$config" --workdir "$workdir" \
    --config.supernet.parts="$nodes" --until=teacher
srun python launch/distributed.py --config "$config" --workdir "$workdir" \
    --config.supernet.parts="$nodes"
srun --nodes=1 --ntasks=1 python launch/main.py --config "$config" --workdir "$workdir" \
    --config.supernet.parts="$nodes"
