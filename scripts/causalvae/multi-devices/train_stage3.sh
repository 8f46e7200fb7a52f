#!/usr/bin/env bash
# Another name of train_stage_3.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_stage_3.sh" "$@"
