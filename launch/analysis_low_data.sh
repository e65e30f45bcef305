#!/usr/bin/env bash
# How many examples does each method need (Hu et al. 2021, Table 16, there with GPT-3)? RoBERTa-base on
# 100, 1,000, 10,000 and all examples of MNLI, each trained for as many updates as the 10,000 take in
# 30 epochs.
exec "$(dirname "$0")/study.sh" analysis_low_data "$@"
