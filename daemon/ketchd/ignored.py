"""dockerd's flags and daemon.json keys that mean nothing to ketchd, each with why. They are accepted, and said to be ignored once at start.

What would leave a container with less protection than was asked for is not among them: that is refused (`config`).
"""

IGNORED = {
    "add-runtime": "ketch starts containers itself", "runtimes": "ketch starts containers itself",
    "allow-nondistributable-artifacts": "foreign URLs are never followed",
    "api-cors-header": "the API is not for browsers", "bip6": "the default bridge has no IPv6",
    "builder": "the builder has settings of its own", "cluster-advertise": "there is no swarm", "cluster-store": "there is no swarm",
    "cluster-store-opt": "there is no swarm", "cluster-store-opts": "there is no swarm",
    "containerd": "there is no containerd", "containerd-namespace": "there is no containerd",
    "containerd-plugins-namespace": "there is no containerd", "cpu-rt-period": "no real-time scheduling",
    "cpu-rt-runtime": "no real-time scheduling", "cri-containerd": "there is no containerd",
    "data-path-addr": "there is no swarm",
    "default-gateway-v6": "the default bridge has no IPv6",
    "default-network-opt": "networks have options of their own",
    "default-network-opts": "networks have options of their own", "exec-opt": "the cgroup driver is chosen at start",
    "exec-opts": "the cgroup driver is chosen at start", "experimental": "nothing is hidden", "features": "nothing is hidden",
    "fixed-cidr-v6": "the default bridge has no IPv6",
    "init-path": "ketch has an init of its own", "ip6tables": "nftables is used", "iptables": "nftables is used",
    "ipv6": "the default bridge has no IPv6", "metrics-addr": "no metrics endpoint",
    "network-control-plane-mtu": "there is no swarm", "network-diagnostic-port": "there is no swarm",
    "node-generic-resource": "there is no swarm", "node-generic-resources": "there is no swarm",
    "oom-score-adjust": "the unit file sets it", "raw-logs": "logs have no colour unless on a terminal",
    "rootless": "root is needed", "ip-forward-no-drop": "the host's own rules stay", "bridge-accept-fwmark": "nftables rules decide",
    "selinux-enabled": "SELinux labels are not set", "storage-opt": "layers have no options",
    "storage-opts": "layers have no options", "swarm-default-advertise-addr": "there is no swarm",
    "userland-proxy": "no port has a process", "userland-proxy-path": "no port has a process",
    "allow-direct-routing": "nftables rules decide", "cdi-spec-dirs": "no CDI devices", "cdi-spec-dir": "no CDI devices",
    "firewall-backend": "nftables is used", "min-api-version": "1.12 is accepted",
}  # fmt: skip

# A container would run with other rights than the setting asks for: refused, with why.
REFUSED = {
    "authorization-plugin": "there are no plugins, and requests would go unchecked",
    "authorization-plugins": "there are no plugins, and requests would go unchecked",
}


def ignored_because(name: str) -> str:
    """Why a setting of dockerd's is ignored."""
    return IGNORED[name]
