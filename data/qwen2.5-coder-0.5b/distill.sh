#!/bin/bash
# Answers all prompts in parts of 640, behind other work: one thread, low priority. Run it again after an interruption.
# Usage: distill.sh MODEL.gguf DIRECTORY
set -euo pipefail
model=$1 out=$2 here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out/prompts"
[ -e "$out/prompts/15" ] || xz -dc "$here/prompts.jsonl.xz" | split -l 640 -d - "$out/prompts/"
[ -e "$out/prompts/fim-03" ] || xz -dc "$here/prompts-fim.jsonl.xz" | split -l 640 -d - "$out/prompts/fim-"
for file in "$out"/prompts/*; do
  part=$(basename "$file") number=$((10#${file: -2}))
  [ -e "$here/part-$part.jsonl.xz" ] && continue
  case $part in fim-*) tokens=128 excluded=(--exclude fim) ;; *) tokens=224 excluded=() ;; esac
  OMP_NUM_THREADS=1 nice -n 19 orthrus distill --model "$model" --data "$file" --output "$out/part-$part" \
    --temperature "$([ $((number % 2)) = 0 ] && echo 0 || echo 0.8)" --max-new-tokens "$tokens" --max-prompt-tokens 420 \
    --batch-size 32 --seed 1 --exclude humaneval --exclude mbpp --exclude gsm8k --exclude spec_bench --exclude math500 \
    "${excluded[@]}"
  orthrus pack "$out/part-$part" --output "$here/part-$part.jsonl.xz"
done
