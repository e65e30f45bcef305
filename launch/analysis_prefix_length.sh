#!/usr/bin/env bash
# What does the length of a prefix bring (Hu et al. 2021, Figure 2, there with GPT-3)? RoBERTa-base on
# MNLI.
exec "$(dirname "$0")/study.sh" analysis_prefix_length "$@"
