#!/bin/sh
# The whole system on a made-up world whose truth is known; `make demo` runs this.
# Every line that starts with "$" is a command you can run yourself. A second run continues.
set -eu

run() {
    printf '\n$'
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_.,/=-]*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$@"
}

say() {
    printf '\n# %s\n' "$*"
}

say "1. Draw scenes with exact masks, in SA-1B's own layout"
run tap-data sample demo/scenes --scenes 200 --validation 60 --captioned 40 --size 256

say "2. Crop every masked region, embed it with the small teacher, write Lance tables"
run tap-data build-semantic demo/scenes/train --source sample --teacher sample --out demo/store
run tap-data build-semantic demo/scenes/validation --source sample --teacher sample --out demo/held-out

say "3. Check every promise of the store; compare its concepts with the truth"
run tap-data verify demo/store
run tap-data sample-accuracy demo/held-out --truth demo/scenes/truth --at-least 0.75

say "4. Look at it, and ask it things"
run tap-data picture demo/held-out --out demo/store.png --truth demo/scenes/truth
cats="concept = 'cat' AND area > 1500"
run tap-data query demo/store --filter "$cats"
key=$(tap-data query demo/store --filter "$cats" --columns key --limit 1 --format csv | tail -n 1)
run tap-data nearest demo/store --key "$key" --top 5

say "5. Fine-tune the small TAP that comes with the package; truth beside what it predicts"
run tap-train run --recipe sample_tune --store demo/store --out demo/tuned
run tap-train measure demo/tuned --store demo/held-out --truth demo/scenes/truth --images 8 \
    --picture demo/prediction.png

say "6. Ask the shipped model about one scene: three boxes and a point"
run tap predict demo/scenes/visual_genome/VG_100K/30000004.jpg --model sample \
    --box 150,108,209,160 --box 6,125,83,183 --box 21,164,80,224 --point 218,148 --out demo/one.png

say "Done. Look at demo/store.png, demo/prediction.png and demo/one.png"
