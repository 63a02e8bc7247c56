#!/bin/sh
# Install the .deb files of a folder without a network: arguments are the folder, the wanted version of kubeadm, kubelet
# and kubectl as a shell pattern, and whether only to look ("yes"). Says "changed PACKAGE=VERSION" for each that is (or
# would be) installed. Packages that are there in this version already are left alone.
set -eu
folder=$1 wanted=$2 look_only=$3

cd "$folder" || { echo "$folder: no such folder on this machine (kubernetes_prerequisites_packages_dir)" >&2; exit 2; }
set --
for deb in "$PWD"/*.deb; do
    [ -e "$deb" ] || { echo "$folder: there is no .deb file in it" >&2; exit 2; }
    name=$(dpkg-deb --field "$deb" Package) version=$(dpkg-deb --field "$deb" Version)
    case $name in
    kubeadm | kubelet | kubectl)
        # shellcheck disable=SC2254  # a pattern
        case $version in
        $wanted) eval "count_$name=\$((\${count_$name:-0} + 1))" ;;
        *) continue ;;
        esac
        ;;
    esac
    installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Version}' "$name" 2>/dev/null) || installed=
    [ "$installed" = "installed $version" ] && continue
    set -- "$@" "$deb"
    echo "changed $name=$version"
done
for name in kubeadm kubelet kubectl; do
    count=0
    eval "count=\${count_$name:-0}"
    [ "$count" -eq 1 ] && continue
    echo "$folder: has $count files of $name $wanted, one is wanted (kubernetes_prerequisites_package_version)" >&2
    exit 2
done
[ $# -gt 0 ] && [ "$look_only" != yes ] || exit 0
# Dependencies are looked for among these files and what is installed: without sources nothing can be fetched.
DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
    -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/dev/null -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
    --allow-change-held-packages --allow-downgrades \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold -o "DPkg::Lock::Timeout=${LOCK_TIMEOUT:-300}" "$@" >&2
