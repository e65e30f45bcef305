#!/usr/bin/env bash
# Which rank does LoRA need (Hu et al. 2021, Table 6, there with GPT-3; for GPT-2 Table 18)? Here
# RoBERTa-base on MNLI, with the weights of that table.
exec "$(dirname "$0")/study.sh" analysis_which_rank "$@"
