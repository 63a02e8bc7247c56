#!/bin/sh
# Installs Cisco Modeling Labs from the package in /provision, once. Written by the role goldsmith.images.cml_host.
set -eu

provision=${CML_PROVISION:-/provision}
marker=${CML_MARKER:-/var/lib/goldsmith-images/cml-installed}
issue=/etc/issue.d/cml-install.issue
wanted=${CML_PACKAGE_NAME:-cml2}
work=

# Whoever looks at the console of a machine that does not come up must see why: there is no other way in.
say() {
  echo "cml-install: $*" >&2
  [ ! -w /dev/console ] || echo "cml-install: $*" >/dev/console 2>/dev/null || true
}

finish() {
  code=$?
  [ -z "$work" ] || rm -rf "$work"
  if [ "$code" -ne 0 ]; then
    say "FAILED (exit status $code): Cisco Modeling Labs is NOT installed. See: journalctl -u cml-install"
    mkdir -p "${issue%/*}"
    echo "Cisco Modeling Labs is NOT installed, see: journalctl -u cml-install" >"$issue"
  fi
  exit "$code"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

if [ -e "$marker" ]; then
  say "already installed: $(cat "$marker")"
  exit 0
fi

set -- "$provision"/*.pkg "$provision"/*.deb
package=
for file; do
  [ -e "$file" ] || continue
  if [ -n "$package" ]; then
    say "there is more than one package in $provision: ${package##*/} and ${file##*/}"
    exit 1
  fi
  package=$file
done
if [ -z "$package" ]; then
  say "there is no .pkg or .deb in $provision"
  exit 1
fi

if ! (cd "$provision" && sha256sum --check --strict --quiet SHA256SUMS) >&2; then
  say "${package##*/} does not match $provision/SHA256SUMS: it is not installed"
  exit 1
fi
if ! grep -qF "  ${package##*/}" "$provision/SHA256SUMS"; then
  say "$provision/SHA256SUMS has no line for ${package##*/}: it is not installed"
  exit 1
fi

# Not /tmp: that is memory on Debian 13, and the package has several GB.
work=$(mktemp -d -p /var/tmp)
chmod 0755 "$work" # apt reads as another user
case $package in
*.pkg) tar --extract --no-same-owner --directory "$work" --file "$package" ;;
*) cp "$package" "$work/" ;;
esac
find "$work" -name '*.deb' >"$work/list"
if [ ! -s "$work/list" ]; then
  say "${package##*/} holds no .deb"
  exit 1
fi
set --
while IFS= read -r file; do set -- "$@" "$file"; done <"$work/list"
# The programs of IOL nodes have 32 bits: where a package is of that architecture, or needs one that is, apt must know it.
for file; do
  case $(dpkg-deb --field "$file" Package Architecture Pre-Depends Depends) in
  "Package: iol-tools"* | *"Architecture: i386"* | *:i386*)
    say "${file##*/} needs the architecture i386"
    dpkg --add-architecture i386
    apt-get --quiet -o DPkg::Lock::Timeout=600 update
    break
    ;;
  esac
done
say "installing ${package##*/}: $# packages"
DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes -o DPkg::Lock::Timeout=600 install "$@"

status=$(dpkg-query --show --showformat='${db:Status-Abbrev}' "$wanted" 2>/dev/null || true)
case $status in
ii*) ;;
*)
  say "apt-get succeeded, but the package $wanted is not installed (status '${status:-none}')"
  exit 1
  ;;
esac

mkdir -p "${marker%/*}"
dpkg-query --show "$wanted" >"$marker"
rm -f "$issue"
say "installed: $(cat "$marker")"
