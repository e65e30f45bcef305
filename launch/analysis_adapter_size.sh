#!/usr/bin/env bash
# What does the size of adapters bring (Hu et al. 2021, Figure 2, there with GPT-3)? RoBERTa-base on MNLI.
exec "$(dirname "$0")/study.sh" analysis_adapter_size "$@"
