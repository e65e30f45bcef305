#!/usr/bin/env bash
# The row of LoRA on DeBERTa-v2-XXL in the table of GLUE (microsoft/LoRA, README): medians over five
# seeds; MRPC, RTE and STS-B start from the best MNLI run, so they are trained last.
exec "$(dirname "$0")/study.sh" deberta_v2_xxl_glue "$@"
