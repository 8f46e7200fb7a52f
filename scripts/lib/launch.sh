# Starts a command of the project on one device or several. The scripts source this file.
#
#   launch COMMAND.py FLAGS...      runs the command with python, or with --nproc_per_node N among the flags under msrun,
#                                   as N processes
#   read_launch_flags FLAGS...      sets `nproc` to N (empty without the flag) and `flags` to the other flags
#
# These variables change what is started:
#   LAUNCH                          what starts the command in place of python and msrun, such as "echo"
#   NODES, NODE_RANK                how many machines take part (1), and the number of this one, from 0
#   MASTER_ADDR, PORT               where the processes meet (127.0.0.1:9000)
#   LOG_DIR                         the folder for the processes' logs; default: parallel_logs in the folder of results

fail() {
    echo "error: $*" >&2
    exit 2
}

read_launch_flags() {
    nproc= device=${DEVICE:-} results=.
    flags=()
    while [ $# -gt 0 ]; do
        case $1 in
            --nproc[-_]per[-_]node) nproc=${2:-missing}; shift ;;
            --nproc[-_]per[-_]node=*) nproc=${1#*=} ;;
            *)
                case $1 in
                    --device=*) device=${1#*=} ;;
                    --device) device=${2:-} ;;
                    --output_dir=* | --save_img_path=* | --generated_video_dir=* | --output_path=*) results=${1#*=} ;;
                    --output_dir | --save_img_path | --generated_video_dir | --output_path) results=${2:-.} ;;
                esac
                flags+=("$1")
                ;;
        esac
        shift $(($# > 0))
    done
    if [ -n "$nproc" ] && ! [[ $nproc =~ ^[1-9][0-9]*$ ]]; then
        fail "--nproc_per_node $nproc: should be the number of processes on this machine, 1 or more"
    fi
}

launch() {
    read_launch_flags "$@"
    if [ "$device" = GPU ]; then
        fail "MindSpore 2.7 has no build for GPUs; set DEVICE=Ascend or DEVICE=CPU"
    fi
    if [ -z "$nproc" ]; then
        exec ${LAUNCH:-python} "${flags[@]}"
    fi
    set -- "${flags[0]}" --use_parallel True "${flags[@]:1}"
    if [ -n "${LAUNCH:-}" ]; then
        exec $LAUNCH "$@"
    fi
    local nodes=${NODES:-1} rank=${NODE_RANK:-0}
    local log_dir=${LOG_DIR:-$results/parallel_logs$( ((nodes == 1)) || echo "_$rank")}
    exec python -m opensora.launch --bind_core=True --worker_num=$((nodes * nproc)) --local_worker_num="$nproc" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-9000}" --node_rank="$rank" \
        --log_dir="$log_dir" --join=True "$@"
}
