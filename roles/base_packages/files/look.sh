#!/bin/sh
# Say which of the packages named as arguments are missing ("missing NAME"), and what decides about apt's lists and about
# ifupdown. Nothing is changed. On a booted machine wait for whoever may be installing packages right now, each time with a deadline:
#   CLOUD_INIT_TIMEOUT  seconds for the first boot of cloud-init (no process is started once it is done)
#   LOCK_TIMEOUT        seconds for apt's own periodic jobs, waited for only if something has to be installed
set -u

booted() { [ -d /run/systemd/system ]; }

if booted && command -v cloud-init >/dev/null 2>&1 && [ -d /run/cloud-init ] &&
    [ ! -e /run/cloud-init/disabled ] && [ ! -e /run/cloud-init/result.json ]; then
    timeout "${CLOUD_INIT_TIMEOUT:-600}" cloud-init status --wait >/dev/null
    code=$?
    # 2 is "done, with warnings" since cloud-init 23.4; 1 is an error that must not stop other work on the machine.
    if [ "$code" -eq 124 ]; then
        echo "cloud-init has not finished after ${CLOUD_INIT_TIMEOUT:-600} s" >&2
        exit 3
    fi
fi

# One process for all names; dpkg-query has no output for names that it does not know.
installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null)
missing=0
for package; do
    case "
$installed
" in
    *"
installed $package
"*) ;;
    *)
        echo "missing $package"
        missing=1
        ;;
    esac
done

for file in /var/lib/apt/lists/*_Packages*; do
    # The age of apt's lists says nothing when somebody has emptied them.
    [ -e "$file" ] && echo "lists present" && break
done
[ -e /var/lib/dpkg/info/ifupdown.list ] && echo "present ifupdown"
for file in /etc/systemd/network/*.network /run/systemd/network/*.network /etc/netplan/*.yaml; do
    [ -e "$file" ] && echo "networkd configured" && break
done

if [ "$missing" -eq 1 ] && booted; then
    # A job that is ordered after running oneshot jobs is done when they are: a wait without polling.
    timeout "${LOCK_TIMEOUT:-300}" systemd-run --quiet --collect --wait \
        --property="After=apt-daily.service apt-daily-upgrade.service" true || {
        echo "apt's periodic jobs have not finished after ${LOCK_TIMEOUT:-300} s" >&2
        exit 4
    }
fi
exit 0
