#!/usr/bin/env bash
# A whole study: launch/study.sh NAME [--dry-run] [OVERRIDE ...]; the scripts beside it name theirs.
#   on this machine   launch/roberta_base_glue.sh
#   on a cluster      launch/roberta_base_glue.sh hydra/launcher=slurm hydra.launcher.partition=gpu
# --dry-run shows the runs, jobs and resources, and starts nothing. The same command, given again,
# goes on with what is left. PYTHON chooses the interpreter.
set -euo pipefail
overrides=()
for argument in "${@:2}"; do
  if [[ $argument == --dry-run ]]; then argument=dry_run=true; fi
  overrides+=("$argument")
done
exec "${PYTHON:-python}" -m lora_exp -m "study=$1" "${overrides[@]}"
