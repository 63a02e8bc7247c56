# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""What to look at, for each kind of problem that a check of the network can find."""

from __future__ import annotations

TLS_CLOCK = "Compare this machine's clock with the certificate's dates first: a wrong clock looks the same."

HINTS = {
    # The machine itself
    "tool_missing": "Install iproute2: interfaces and routes are read with its program ip.",
    "no_interface": "Compare with `ip link`: the driver is missing, or the interface has another name than configured.",
    "interface_down": "Nothing has set it up: look at `networkctl status` (NetworkManager: `nmcli device`) "
    "and its configuration.",
    "no_carrier": "The link is down: the cable, the switch port, or the virtual machine's network device.",
    "no_address": "Look for the DHCP client in the journal; a configuration that is bound to another MAC "
    "address gets no lease.",
    "address_conflict": "Another machine has this IPv6 address (duplicate address detection); see `ip -6 address`.",
    "no_default_route": "Look at `ip route`: DHCP gave no router, or the static configuration names none.",
    "ambiguous_route": "Two default routes have the same metric; give one of them another metric.",
    "route_down": "The default route leads over an interface that is down.",
    "wrong_mtu": "Set the MTU in the network configuration, or look what DHCP says (option 26).",
    # Ways
    "no_route": "No route leads there: look at `ip route get` for this address, and whether the address "
    "family is configured.",
    "host_unreachable": "A router, or ARP on this link, says that there is no such host: its address, its "
    "link, its netmask.",
    "refused": "The host is up, but nothing listens on this port: is the service running, and on this address?",
    "filtered": "Neither an answer nor a refusal: a firewall, a security group or network ACL drops it, or "
    "the host is down.",
    "local_firewall": "This machine itself forbids it: look at `nft list ruleset` and at prohibiting routes.",
    "closed": "The other side closed the connection: a firewall that resets it, or a service that restarts.",
    "timeout": "It did not end in time: a server that is slow or hangs, or a timeout that is too short.",
    "mtu_black_hole": "Large packets vanish without a word, so connections open and then hang: lower the "
    "MTU here, or let the routers "
    "send ICMP 'fragmentation needed'.",
    "mtu_small": "The path carries less than this machine sends at first: lower the MTU, or see that ICMP "
    "is not filtered.",
    "mtu_unknown": "The path's MTU could not be measured: the host does not answer; name a port for a "
    "measurement over TCP.",
    "icmp_no_answer": "Many networks and EC2 security groups drop ICMP; it proves nothing while TCP works.",
    "icmp_not_permitted": "ICMP needs CAP_NET_RAW, a group in net.ipv4.ping_group_range, or the program ping.",
    # Names
    "dns_nxdomain": "The name does not exist for this server: spelling, search domains, or a zone that "
    "only other servers know.",
    "dns_no_data": "The name exists, but has no address of the wanted family.",
    "dns_server_failure": "The server could not find out: its forwarders, or DNSSEC validation (a wrong "
    "clock breaks that too).",
    "dns_refused": "The server answers, but not for this client: its access list.",
    "dns_timeout": "No name server answered: its address in /etc/resolv.conf (`resolvectl status`), the "
    "route to it, port 53.",
    "dns_malformed": "What answers on port 53 does not speak DNS as it should.",
    "dns_no_server": "No name server is configured: /etc/resolv.conf is empty; look at DHCP and `resolvectl status`.",
    "dns_hijack": "The server invents addresses for names that do not exist: a captive portal, or a "
    "provider's redirection.",
    "dns_search_domain": "The name was only found by appending a search domain; use the full name.",
    # HTTP and TLS
    "captive_portal": "Something else answers in place of the server: log in to the network, or use its proxy.",
    "http_status": "The server answers, but not as expected: look at its log and at the URL.",
    "http_body": "The answer is not the expected one: another server, another version, or a portal that rewrites it.",
    "http_malformed": "What answers on this port does not speak HTTP: is it a TLS port, or another service?",
    "proxy_unreachable": "The proxy itself cannot be reached: its address in the option or in http_proxy/https_proxy.",
    "proxy_auth": "The proxy wants a user name and a password.",
    "proxy_refused": "The proxy answers, but does not let this target through: its rules.",
    "tls_expired": "The certificate has expired. " + TLS_CLOCK,
    "tls_not_yet_valid": "The certificate is from the future. " + TLS_CLOCK,
    "tls_name": "The certificate is for another name: the wrong server answers, or the name is missing in "
    "the certificate.",
    "tls_untrusted": "No known authority vouches for the certificate: a private CA (ca_path), "
    "ca-certificates, or an inspecting proxy.",
    "tls_issuer": "Another authority than expected issued the certificate: an inspecting proxy stands in between.",
    "tls_error": "TLS could not be agreed on: is it a TLS port, and do both sides share a version?",
    # Packages and time
    "release_malformed": "What answers is no Release file: the URI, the suite, or a portal in between.",
    "release_expired": "The Release file is past its Valid-Until: a mirror that is no longer updated, or "
    "this machine's clock.",
    "release_not_yet_valid": "The Release file is from the future: this machine's clock is slow.",
    "release_signature": "The Release file is not signed by a key of this keyring: another archive, or a broken proxy.",
    "signature_unchecked": "Install gpgv to check the signature.",
    "no_repository": "apt knows no repository: look at /etc/apt/sources.list.d.",
    "clock_skew": "Set the clock and let a time service keep it; TLS, apt and logins with one-time codes fail without.",
    "unsynchronised": "Nothing keeps the clock: look at `timedatectl`, `chronyc tracking` and whether the "
    "time servers are reachable.",
    "time_source": "The time server does not know the time itself; name another.",
    # AWS
    "imds_unreachable": "Not on EC2, the metadata service is off for this instance, or the hop limit is 1 "
    "and this is a container.",
    "imds_disabled": "The metadata service refuses (403): HttpEndpoint is disabled for this instance.",
    "imds_v1": "The metadata service also answers without a token: require IMDSv2 (HttpTokens=required).",
    "imds_error": "What answers does not behave like the EC2 metadata service.",
    # cloud-init
    "cloud_init_absent": "cloud-init is not installed, disabled, or found no datasource: see "
    "/run/cloud-init/ds-identify.log.",
    "cloud_init_error": "Look at /var/log/cloud-init.log and at /var/log/cloud-init-output.log.",
    "cloud_init_degraded": "cloud-init went on after an error: look for WARNING and ERROR in /var/log/cloud-init.log.",
    "cloud_init_running": "Something in its last stage takes long: `cloud-init analyze show`, `systemctl "
    "status cloud-final`.",
    # The check
    "internal": "An error in the check itself; please report it with the detail.",
}
