#!/usr/bin/env bash
# What `make demo` trains: LoRA of two ranks, fine-tuning and BitFit, two seeds each, on generated
# sentences.
exec "$(dirname "$0")/study.sh" demo "$@"
