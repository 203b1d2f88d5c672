#!/bin/bash
# A whole run under Slurm, further settings behind the folder:
#
#     sbatch launch/jobs/slurm.sh configs/cityscapes.py runs/cityscapes \
#         --config.data.root=/data/cityscapes
#
# Change: partition, nodes, GPUs of a node, time; the environment's path. CONFIG's supernet.parts
# must be a multiple of the nodes; the run's folder must lie where all nodes see it.
#SBATCH --job-name=qnas
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
# SIGTERM comes 120 s before the time is up; the state is saved. Send the job again: it goes on.
#
# Teacher and subnets are trained on one GPU: for long ones send those two commands as jobs of
# their own (--dependency=afterok). supernet.parts is what one host's GPUs share, times the hosts;
# it must divide supernet.batch: of 4 nodes with 4 parts each, --config.supernet.batch=16.

set -euo pipefail
config=$1
workdir=$2
shift 2
parts=$((SLURM_JOB_NUM_NODES * 4))
run=(--config "$config" --workdir "$workdir" --config.supernet.parts="$parts" "$@")
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
source .venv/bin/activate

# Whole networks are trained on one node, the supernet and the table on all of them.
srun --nodes=1 --ntasks=1 python launch/main.py "${run[@]}" --until=teacher
# One process a node with all of its GPUs; by itself JAX would give it the first alone.
export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
srun python launch/distributed.py "${run[@]}"
unset JAX_LOCAL_DEVICE_IDS
srun --nodes=1 --ntasks=1 python launch/main.py "${run[@]}"
