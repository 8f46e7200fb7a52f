#!/usr/bin/env bash
# Stage 3 on several machines; run it on each of them, with its number from 0 as NODE_RANK:
#     NODE_RANK=0 NODES=8 MASTER_ADDR=10.0.0.1 bash scripts/text_condition/multi-devices/train_t2v_stage3_multi_node.sh
# Eight neighbouring processes, those of one machine, share each video.
set -euo pipefail
: "${NODES:?how many machines there are}" "${NODE_RANK:?the number of this one, from 0}"
: "${MASTER_ADDR:?the address of machine 0}"
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_t2v_stage3.sh" --sp_size "${WORKERS:-8}" "$@"
