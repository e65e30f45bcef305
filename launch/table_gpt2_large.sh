#!/usr/bin/env bash
# GPT-2 large on E2E, WebNLG and DART: LoRA and the baselines of Hu et al. 2021, Tables 3, 13 and 14, and of
# the README of microsoft/LoRA; means over three seeds.
exec "$(dirname "$0")/study.sh" table_gpt2_large "$@"
