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
    command -v msrun > /dev/null || fail "msrun was not found; it comes with MindSpore: source .venv/bin/activate"
    run_in_group "$log_dir" msrun --bind_core=True --worker_num=$((nodes * nproc)) --local_worker_num="$nproc" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-9000}" --node_rank="$rank" \
        --log_dir="$log_dir" --join=True "$@"
}

# Runs msrun in a process group of its own, passes signals on to it, and prints why it failed. The exit status is
# msrun's, or 128 and the number of the signal that ended the run.
run_in_group() {
    local log_dir=$1 started status=0 waiting=1 guard=()
    shift
    started=$(date +%s)
    if setpriv --pdeathsig TERM true 2> /dev/null; then
        guard=(setpriv --pdeathsig TERM)  # msrun ends also if this shell is killed
    fi
    stopped=0 children=
    set -m  # a background process gets a group of its own, and does not ignore SIGINT
    "${guard[@]}" "$@" &
    group=$!
    set +m
    trap 'stop_group 15' TERM
    trap 'stop_group 2' INT
    trap 'stop_group 1' HUP
    while ((waiting)); do
        interrupted=0
        wait "$group" && status=0 || status=$?
        waiting=$interrupted
    done
    if ((stopped)); then
        while any_alive $children; do sleep 0.2; done
        exit $((128 + stopped))
    fi
    if ((status)); then
        python -m opensora.utils.failed_ranks "$log_dir" --since "$started" >&2 || true
    fi
    exit "$status"
}

# msrun ends at once on SIGTERM; the processes that it started save their state and end after it. A second signal goes
# to them directly and ends them at once. SIGINT is passed on as SIGTERM, because msrun would kill them without warning.
stop_group() {
    interrupted=1
    if ((stopped)); then
        kill -TERM $children 2> /dev/null || true
        return
    fi
    stopped=$1
    children=$(cat "/proc/$group/task/$group/children" 2> /dev/null) || true
    kill -TERM -- "-$group" 2> /dev/null || true
}

any_alive() {
    local pid
    for pid in "$@"; do
        ! kill -0 "$pid" 2> /dev/null || return 0
    done
    return 1
}
