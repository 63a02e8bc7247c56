#!/bin/sh
# Put images into containerd's store for Kubernetes: arguments are pull=REFERENCE and import=ARCHIVE. Says "changed IMAGE"
# for each that was (or, with LOOK_ONLY, would be) put in or pinned.
#   HOSTS_DIR  containerd's folder with one folder a registry
#   PIN        whether the kubelet must keep them even when the disk is full
set -eu

images() { ctr --namespace k8s.io images "$@"; }
# Name, digest and whether it is pinned, one image a line.
listed() { images ls | awk 'NR > 1 { print $1, $3, /io.cri-containerd.pinned=pinned/ ? "pinned" : "unpinned" }' | sort; }
has() { printf '%s\n' "$1" | awk -v name="$2" '$1 == name { found = 1 } END { exit !found }'; }
pin() { [ -z "$PIN" ] || images label "$1" io.cri-containerd.pinned=pinned >/dev/null; }
# The full name of a reference: ctr knows no Docker Hub, and no tag by default.
full() {
    name=$1
    case $name in
    */*) case ${name%%/*} in *.* | *:* | localhost) ;; *) name=docker.io/$name ;; esac ;;
    *) name=docker.io/library/$name ;;
    esac
    case ${name##*/} in *:* | *@*) ;; *) name=$name:latest ;; esac
    echo "$name"
}

# The images of an archive (docker save, ctr images export), by its own account; none if Python cannot unpack it (zstd).
named() {
    python3 - "$1" <<'END' 2>/dev/null | while read -r name; do full "$name"; done
import json, sys, tarfile

with tarfile.open(sys.argv[1]) as archive:
    files = {name.removeprefix("./"): name for name in archive.getnames()}
    read = "manifest.json" if "manifest.json" in files else "index.json"
    content = json.load(archive.extractfile(files[read]))
if read == "manifest.json":
    names = [name for image in content for name in image["RepoTags"] or []]
else:
    names = [image.get("annotations", {}).get("io.containerd.image.name") for image in content["manifests"]]
print(*filter(None, names), sep="\n")
END
}

# Before the first run, in check mode, there is no daemon to ask.
if [ -n "$LOOK_ONLY" ] && ! ctr version >/dev/null 2>&1; then
    for argument; do echo "changed ${argument#*=}"; done
    exit 0
fi
before=$(listed)
# With LOOK_ONLY: what is there, and pinned if it has to be, is left as it is.
settled=$before
[ -z "$PIN" ] || settled=$(printf '%s\n' "$before" | sed '/ unpinned$/d')
for argument; do
    case $argument in
    pull=*)
        image=$(full "${argument#pull=}")
        if [ -n "$LOOK_ONLY" ]; then
            has "$settled" "$image" || echo "changed $image"
            continue
        fi
        has "$before" "$image" || images pull --hosts-dir "$HOSTS_DIR" "$image" >&2
        pin "$image"
        ;;
    import=*)
        archive=${argument#import=}
        if [ ! -r "$archive" ]; then
            echo "$archive: there is no such archive on this machine (container_runtime_image_archives)" >&2
            exit 2
        fi
        names=$(named "$archive")
        if [ -n "$LOOK_ONLY" ]; then
            for image in ${names:-"$archive"}; do
                has "$settled" "$image" || echo "changed $image"
            done
            continue
        fi
        known=$(listed)
        images import "$archive" >&2
        # Whatever its names: an image that is imported again loses its labels, and so is seen as new here as well.
        listed | while read -r image rest; do
            if has "$names" "$image" || ! printf '%s\n' "$known" | grep -qxF "$image $rest"; then pin "$image"; fi
        done
        ;;
    esac
done
[ -z "$LOOK_ONLY" ] || exit 0
listed | while read -r image rest; do
    printf '%s\n' "$before" | grep -qxF "$image $rest" || echo "changed $image"
done
