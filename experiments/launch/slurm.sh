#!/usr/bin/env bash
# A training on several nodes of a SLURM cluster; edit the lines of #SBATCH and what is below them, then
#
#   sbatch experiments/launch/slurm.sh --dataset=spikes.npy --workdir=runs/spikes
#
# from the folder in which the run lies, which all nodes see. Ahead of the end of its time, and where it is preempted,
# the job is told so: the run is saved and stops with status 128 + 15, and this file puts the job back into the queue;
# there it goes on from its checkpoint. What scancel ends stays ended.

#SBATCH --job-name=vpf
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --time=04:00:00
#SBATCH --nodes=2
# One process for each GPU. GPUs are asked for by the node: JAX takes the one that has the task's number on its node,
# and --gpus-per-task may show each task its own alone, as number 0. Without GPUs leave out --gpus-per-node.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
# Seconds that an epoch and a checkpoint take, and more.
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
set -euo pipefail

python=${PYTHON:-.venv/bin/python}
flags=(--mesh=auto --coordinator=auto --checkpoint_every=10)

step=
told=
stop=
# To the batch file alone comes what --signal asks for; srun passes on what it is sent.
pass_on() {
  told=yes
  stop=yes
  [[ -z $step ]] || kill -TERM "$step" 2>/dev/null || true
}
trap pass_on USR1 TERM

srun --kill-on-bad-exit=1 "$python" -m vpf_jax train "${flags[@]}" "$@" &
step=$!
while true; do
  told=
  status=0
  wait "$step" || status=$?
  # A signal ends the waiting, and not the step.
  [[ -n $told ]] || break
done

if ((status == 128 + 15)) && [[ -n $stop ]]; then
  job=$(scontrol show job "$SLURM_JOB_ID")
  if [[ $job != *JobState=CANCELLED* ]]; then
    echo "stopped and saved; back into the queue" >&2
    # Of a job that is preempted SLURM may have done so itself.
    scontrol requeue "$SLURM_JOB_ID" || true
  fi
fi
exit "$status"
