#!/usr/bin/env bash
# The work of demo_levin.sh and demo_lai.sh: deblur the benchmark, or the sample where it is not there, and score it.
# Usage: scripts/demo.sh levin|lai [options of selfdeblur_levin.py or selfdeblur_lai.py]
set -euo pipefail
cd "$(dirname "$0")/.."
benchmark=$1
shift

case $benchmark in
levin) blurry=. truth=gt save=results/levin ;;
lai) blurry=uniform_ycbcr truth=ground_truth save=results/lai/uniform ;;
esac
folder=datasets/$benchmark
options=()
sample=no

# shellcheck source=scripts/environment.sh
. scripts/environment.sh
# shellcheck disable=SC2119
environment

if compgen -G "$folder/$blurry/*.png" >/dev/null; then
    echo "Deblurring the $benchmark benchmark in $folder; a run that is stopped goes on where it was."
else
    folder=datasets/sample/$benchmark
    save=results/sample/$benchmark
    sample=yes
    echo "The $benchmark benchmark is not in datasets/$benchmark, so this deblurs the sample instead."
    echo "To get the benchmark: python -m selfdeblur fetch $benchmark"
    "$python" -m selfdeblur sample >/dev/null
fi

data=$folder/$blurry
arguments=("$@")
case " ${arguments[*]} " in
*" --preset"[\ =]* | *" --kernel"[\ =]*) ;;
*)
    affordable=$("$python" -c "from selfdeblur.api import affordable_preset; print(affordable_preset())")
    if [ "$affordable" = fast ]; then
        echo "There is no GPU, so this takes the preset fast instead of release; choose with --preset."
        options=(--preset fast)
        if [ "$sample" = no ]; then save=results/fast/${save#results/}; fi
    elif [ "$sample" = yes ]; then
        echo "On the sample the preset release takes few steps."
        options=(--num_iter 400 --mse_steps 150)
    fi
    ;;
esac
if [ "$sample" = yes ]; then
    options+=(--save_frequency 0)
    if [ "$benchmark" = lai ]; then options+=(--kernel_size 13); fi
fi
for ((i = 0; i < ${#arguments[@]}; i++)); do
    case ${arguments[i]} in
    --save[-_]path=*) save=${arguments[i]#*=} ;;
    --save[-_]path) save=${arguments[i + 1]:-} ;;
    --data[-_]path=*) data=${arguments[i]#*=} ;;
    --data[-_]path) data=${arguments[i + 1]:-} ;;
    --help | -h) exec "$python" "selfdeblur_$benchmark.py" --help ;;
    esac
done

"$python" "selfdeblur_$benchmark.py" --data_path "$data" --save_path "$save" "${options[@]}" "$@"

truth=$data/$([ "$blurry" = . ] || echo ../)$truth
if [ -d "$truth" ]; then
    "$python" "statistic/statistic_$benchmark.py" --results "$save" --ground_truth "$truth" --blurry "$data" --each
else
    echo "There are no sharp images in $truth, so there are no scores."
fi
"$python" -m selfdeblur report "$save" --data_path "$data" >/dev/null
echo "Images: $save/*_x.png, kernels: $save/*_k.png, all on one page: $save/report.html"
