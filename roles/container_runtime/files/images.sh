#!/bin/sh
# Put images into containerd's store for Kubernetes: arguments are pull=REFERENCE and import=ARCHIVE. Says "changed IMAGE"
# for each that was (or, with LOOK_ONLY, would be) put in or pinned.
#   HOSTS_DIR  containerd's folder with one folder a registry
#   PIN        whether the kubelet must keep them even when the disk is full
set -eu

images() { ctr --namespace k8s.io images "$@"; }
# Name, digest and whether it is pinned, one image a line.
listed() { images ls | awk 'NR > 1 { print $1, $3, /io.cri-containerd.pinned=pinned/ ? "pinned" : "" }' | sort; }
has() { printf '%s\n' "$1" | grep -qF "$2 "; }
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

# Before the first run, in check mode, there is no daemon to ask.
if [ -n "$LOOK_ONLY" ] && ! ctr version >/dev/null 2>&1; then
    for argument; do echo "changed ${argument#*=}"; done
    exit 0
fi
before=$(listed)
for argument; do
    case $argument in
    pull=*)
        image=$(full "${argument#pull=}")
        if [ -n "$LOOK_ONLY" ]; then
            has "$before" "$image" || echo "changed $image"
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
        [ -z "$LOOK_ONLY" ] || continue
        known=$(listed)
        images import "$archive" >&2
        # An image that is imported again loses its labels, and so is seen here as well.
        listed | while read -r image rest; do
            printf '%s\n' "$known" | grep -qxF "$image $rest" || pin "$image"
        done
        ;;
    esac
done
[ -z "$LOOK_ONLY" ] || exit 0
listed | while read -r image rest; do
    printf '%s\n' "$before" | grep -qxF "$image $rest" || echo "changed $image"
done
