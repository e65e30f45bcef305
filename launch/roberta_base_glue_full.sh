#!/usr/bin/env bash
# The row of fine-tuning on RoBERTa-base in the table of GLUE (microsoft/LoRA, README; Hu et al. 2021, Table 2):
# medians over five seeds; MRPC, RTE and STS-B start from the best MNLI run, so they are trained last.
exec "$(dirname "$0")/study.sh" roberta_base_glue_full "$@"
