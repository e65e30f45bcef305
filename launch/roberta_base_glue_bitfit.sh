#!/usr/bin/env bash
# The row of BitFit on RoBERTa-base in the table of GLUE (Hu et al. 2021, Table 2): medians over five
# seeds; epochs and batches are those of LoRA, as the paper gives none.
exec "$(dirname "$0")/study.sh" roberta_base_glue_bitfit "$@"
