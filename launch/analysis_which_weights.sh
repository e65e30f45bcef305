#!/usr/bin/env bash
# Which weights should LoRA adapt, with one budget of parameters (Hu et al. 2021, Table 5, there with
# GPT-3)? Here RoBERTa-base on MNLI: one kind at rank 8, two at rank 4, all four at rank 2.
exec "$(dirname "$0")/study.sh" analysis_which_weights "$@"
