#!/usr/bin/env bash
# What `make demo-prep` runs: simulated footage behind a local web server, metadata with spans, shards, a summary.
# Starts afresh each time: removes datasets/demo_prep and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${BIN:-.venv/bin}
root=datasets/demo_prep

rm -rf $root
mkdir -p $root
"$bin/videodiff" simulate world=bouncing out=$root/footage clips=24 size=96
mkdir $root/footage/again
cp $root/footage/*3.mp4 $root/footage/again/                      # these come twice,
: > $root/footage/empty.mp4                                       # this one is empty,
head -c 3000 $root/footage/again/*13.mp4 > $root/footage/cut.mp4  # and this one ends early.

# At PORT, or any port that is free; its first line says which.
"$bin/python" -u -m http.server "${PORT:-0}" --bind 127.0.0.1 --directory $root/footage > $root/web.log 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
until port=$(grep -m 1 -o 'port [0-9]*' $root/web.log); do
    kill -0 $server 2> /dev/null || { echo "demo_prep.sh: no web server: $(tail -n 1 $root/web.log)" >&2; exit 1; }
    sleep 0.2
done

"$bin/python" - $root "http://127.0.0.1:${port#port }" <<'END'
import json, pathlib, sys

root, url = pathlib.Path(sys.argv[1]), sys.argv[2]
lines = []
for video in sorted(root.glob("footage/**/*.mp4")):
    caption = root / "footage" / f"{video.stem}.txt"
    words = caption.read_text().strip() if caption.is_file() else None
    for start, end in ((0, 0.6), (0.6, 1.2)):
        address = f"{url}/{video.relative_to(root / 'footage')}"
        lines.append({"url": address, "start": start, "end": end, "caption": words, "licence": "CC0-1.0"})
lines.append({"url": f"{url}/missing.mp4", "start": 0, "end": 1})
lines.append({"url": f"{url}/0000.mp4", "start": 2, "end": 1})
text = "".join(json.dumps(line) + "\n" for line in lines) + "this is no JSON\n"
(root / "metadata.jsonl").write_text(text)
END

# Discs on white ground are short, bright and flat: footage that the usual limits are not meant for.
"$bin/videodiff" prep source=$root/metadata.jsonl format=table out=$root/out acquire.rate=1000 acquire.private=true \
    "reader.columns={video:url,start:start,end:end,caption:caption,licence:licence}" \
    prep.filter.duration.min=0.5 prep.filter.brightness.max=null prep.filter.clipped.max=null prep.filter.text.max=null
"$bin/videodiff" inspect $root/out
echo "== $SECONDS s. What became of every input is in $root/out/summary.json:"
cat $root/out/summary.json
