#!/usr/bin/env bash
# A training on all hosts of a Cloud TPU slice of spot machines; edit the lines below, then, from one's own machine,
#
#   pip wheel --no-deps --wheel-dir=dist . && gcloud storage cp dist/vpf_jax-*.whl gs://BUCKET/vpf/
#   gcloud storage cp spikes.npy gs://BUCKET/vpf/data/
#   experiments/launch/cloud_tpu.sh --dataset=data/spikes.npy
#
# The slice is asked for as a queued resource. The first host keeps the run, and every few minutes a copy of it goes
# to the bucket. Where the slice is preempted another one is asked for, and the run goes on from the copy: a
# checkpoint that was copied half is known by its checksum, and the one before it is taken. At the end the slice is
# given back; so it is where this file is interrupted or the training fails, and the same command goes on.
set -euo pipefail

name=${NAME:-vpf}
zone=${ZONE:-us-west4-a}
type=${TYPE:-v5litepod-16}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
bucket=${BUCKET:-gs://BUCKET/vpf}
minutes=${MINUTES:-5}
run=runs/$name
flags=(--mesh=auto --coordinator=auto --checkpoint_every=10 "--workdir=$run")

queued() { gcloud compute tpus queued-resources "$@" "--zone=$zone"; }
on() { gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" "--worker=$1" "--command=$2"; }
state() { queued describe "$name" --format="value(state.state)" 2>/dev/null || echo NONE; }
keep() { on 0 "if [ -d $run ]; then gcloud storage rsync --recursive $run $bucket/$run; fi"; }

copies=
finish() {
  [[ -z $copies ]] || kill "$copies" 2>/dev/null || true
  [[ $(state) == NONE ]] || queued delete "$name" --force --quiet
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The quotes are for the shell of the hosts.
train="~/.venv/bin/python -m vpf_jax train$(printf ' %q' "${flags[@]}" "$@")"
prepare="python3 -m venv ~/.venv && mkdir -p data $run \
&& gcloud storage cp '$bucket/vpf_jax-*.whl' . && gcloud storage rsync --recursive $bucket/data data \
&& ~/.venv/bin/pip install --quiet 'jax[tpu]' ./vpf_jax-*.whl"
# A run that has not begun has no copy.
fetch="if gcloud storage ls $bucket/$run/ >/dev/null 2>&1; then gcloud storage rsync --recursive $bucket/$run $run; fi"

while true; do
  case $(state) in
    NONE)
      queued create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" --spot
      continue
      ;;
    ACTIVE) ;;
    FAILED)
      echo "$0: there is no such slice to be had; gcloud compute tpus queued-resources describe $name says why" >&2
      trap - EXIT
      exit 1
      ;;
    SUSPENDED)
      queued delete "$name" --force --quiet
      continue
      ;;
    *)
      sleep 30
      continue
      ;;
  esac
  status=0
  if on all "$prepare" && on 0 "$fetch"; then
    while sleep $((60 * minutes)); do keep >/dev/null 2>&1 || true; done &
    copies=$!
    on all "$train" || status=$?
    kill "$copies" 2>/dev/null || true
    copies=
    keep || true
    ((status)) || exit 0
  else
    status=1
  fi
  # What has been preempted is not said to be at once.
  sleep 60
  if [[ $(state) == ACTIVE ]]; then
    echo "$0: the training has failed on a slice that is there" >&2
    exit "$status"
  fi
done
