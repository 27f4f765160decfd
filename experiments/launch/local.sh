#!/usr/bin/env bash
# Starts several processes on this machine that work as one run, and ends with them.
#
#   experiments/launch/local.sh 2 vpf_jax train --dataset=spikes.npy --workdir=runs/spikes
#
# The first argument is the number of processes; the others are what follows `python -m`. Flags given here win over
# those that this file adds. SIGTERM and Ctrl-C go to every process: the run is saved and stops. Where one process
# fails the others are ended, and its exit status is that of this command. The same command again goes on from the
# last checkpoint.
#
# Of GPUs each process takes one, the first of CUDA_VISIBLE_DEVICES the first.
set -euo pipefail
# Each process in a group of its own: Ctrl-C reaches this file alone, which passes it on once.
set -m

python=${PYTHON:-python}
usage="usage: $0 PROCESSES MODULE ARGUMENTS..., such as $0 2 vpf_jax train --dataset=spikes.npy --workdir=runs/spikes"
if (($# < 2)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "$usage" >&2
  exit 2
fi
processes=$1
module=$2
shift 2
arguments=()
# A subcommand, as of vpf_jax, stands before all flags.
while (($#)) && [[ $1 != -* ]]; do
  arguments+=("$1")
  shift
done

IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((processes - 1)))}"
if ((${#gpus[@]} < processes)); then
  echo "$0: got CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES; it takes one GPU for each of $processes processes" >&2
  exit 2
fi
free='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=${PORT:-$("$python" -c "$free")}

running=()
received=
forward() {
  received=$1
  ((${#running[@]} == 0)) || kill "-$1" "${!running[@]}" 2>/dev/null || true
}
trap 'forward TERM' TERM
trap 'forward INT' INT

for ((number = 0; number < processes; number++)); do
  several=("--mesh=auto" "--coordinator=127.0.0.1:$port" "--processes=$processes" "--process=$number")
  CUDA_VISIBLE_DEVICES=${gpus[number]} "$python" -m "$module" "${arguments[@]}" "${several[@]}" "$@" </dev/null &
  running[$!]=$number
done

status=0
while ((${#running[@]})); do
  # In the background, as a signal ends `wait` at once, and one at the terminal would end the sleep alone.
  sleep 0.2 &
  wait "$!" || true
  for process in "${!running[@]}"; do
    ! kill -0 "$process" 2>/dev/null || continue
    unset "running[$process]"
    code=0
    wait "$process" || code=$?
    if ((code != 0 && status == 0)); then
      status=$code
      # A second signal would not let them save.
      [[ -n $received ]] || forward TERM
    fi
  done
done
exit "$status"
