#!/bin/sh
# The whole system on a made-up world whose truth is known; `make demo` runs this.
# Every line that starts with "$" is a command you can run yourself. A second run continues.
set -eu
DEMO=${DEMO:-demo}

run() {
    printf '\n$'
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_./=-]*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$@"
}

say() {
    printf '\n# %s\n' "$*"
}

say "1. Draw scenes with exact masks, in SA-1B's own layout"
run tap-data sample $DEMO/scenes --scenes 200 --validation 60 --captioned 40 --size 256

say "2. Crop every masked region, embed it with the small teacher, write Lance tables"
run tap-data build-semantic $DEMO/scenes/train --source sample --teacher sample --out $DEMO/store
run tap-data build-semantic $DEMO/scenes/validation --source sample --teacher sample --out $DEMO/held-out

say "3. Check every promise of the store; compare its concepts with the truth"
run tap-data verify $DEMO/store
run tap-data sample-accuracy $DEMO/held-out --truth $DEMO/scenes/truth --at-least 0.75

say "4. Look at it, and ask it things"
run tap-data picture $DEMO/held-out --out $DEMO/store.png --truth $DEMO/scenes/truth
cats="concept = 'cat' AND area > 1500"
run tap-data query $DEMO/store --filter "$cats"
key=$(tap-data query $DEMO/store --filter "$cats" --columns key --limit 1 --format csv | tail -n 1)
run tap-data nearest $DEMO/store --key "$key" --top 5
