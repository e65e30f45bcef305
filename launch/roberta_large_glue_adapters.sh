#!/usr/bin/env bash
# LoRA and adapters on RoBERTa-large in the restricted setting of Hu et al. 2021 (Table 2, the dagger): 128
# tokens, one batch size, always from the pre-trained backbone; medians over five seeds.
exec "$(dirname "$0")/study.sh" roberta_large_glue_adapters "$@"
