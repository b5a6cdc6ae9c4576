"""What old API versions say and are told."""

from __future__ import annotations

from typing import Any

import pytest

from ketch_wire.faults import InvalidInput
from ketchd.api import versions
from ketchd.containers.shapes import CONFIG


def host(version: tuple[int, int], cgroup_version: int = 1, **sent: Any) -> dict[str, Any]:
    """The HostConfig that a create request of `version` means."""
    request = versions.create_request({"Image": "x", "HostConfig": sent}, version, cgroup_version)
    return dict(request["HostConfig"])


def test_defaults_that_old_clients_count_on() -> None:
    """Shareable IPC before 1.40, the host's cgroup namespace before 1.41 on cgroups of version 1; what is asked stays."""
    assert host((1, 39)) == {"IpcMode": "shareable", "CgroupnsMode": "host"}
    assert host((1, 39), 2) == {"IpcMode": "shareable"}
    assert host((1, 40)) == {"CgroupnsMode": "host"}
    assert host((1, 41)) == host((1, 50)) == {}
    assert host((1, 39), IpcMode="private", CgroupnsMode="private") == {
        "IpcMode": "private",
        "CgroupnsMode": "private",
    }


def test_before_1_25_the_client_removes_its_container() -> None:
    assert host((1, 24), AutoRemove=True)["AutoRemove"] is False
    assert host((1, 25), AutoRemove=True)["AutoRemove"] is True


def test_limits_beside_the_host_config() -> None:
    """In any version, as dockerd's ContainerConfigWrapper has them: all of it without a HostConfig, five behind its own."""
    for version in ((1, 17), (1, 43), (1, 50)):
        sent = {
            "Image": "x",
            "memory": 1,
            "MemorySwap": 2,
            "CpuShares": 3,
            "Cpuset": "0",
            "Binds": ["/a:/b"],
            "VolumeDriver": "local",
        }
        alone = versions.create_request(sent, version, 2)["HostConfig"]
        wanted = {"Memory": 1, "MemorySwap": 2, "CpuShares": 3, "CpusetCpus": "0", "VolumeDriver": "local"}
        assert alone.items() >= {**wanted, "Binds": ["/a:/b"]}.items()
        beside = versions.create_request({**sent, "HostConfig": {"Memory": 9, "MemorySwap": 0}}, version, 2)[
            "HostConfig"
        ]
        assert beside.items() >= {**wanted, "Memory": 9}.items() and "Binds" not in beside
        nothing = versions.create_request({"Image": "x", "Cpuset": "0"}, version, 2)
        assert not nothing.get("HostConfig", {}).get("CpusetCpus")
    with pytest.raises(InvalidInput, match="cannot unmarshal string into field Memory of type int64"):
        versions.create_request({"Image": "x", "Memory": "1"}, (1, 50), 2)


def test_what_older_clients_do_not_mean() -> None:
    """The number of processes of an update, and what is mounted below a bind, before 1.40; shares beyond the kernel's before 1.19."""
    assert versions.update_request({"pidsLimit": 5, "Memory": 1}, (1, 39)) == {"Memory": 1}
    assert versions.update_request({"PidsLimit": 5}, (1, 40)) == {"PidsLimit": 5}
    mount = {
        "Type": "bind",
        "Source": "/a",
        "Target": "/b",
        "BindOptions": {"NonRecursive": True, "Propagation": "private"},
    }
    assert host((1, 39), Mounts=[mount])["Mounts"][0]["BindOptions"] == {"Propagation": "private"}
    assert host((1, 40), Mounts=[mount])["Mounts"] == [mount]
    assert [host((1, 18), CpuShares=shares)["CpuShares"] for shares in (0, 1, 2, 1 << 20)] == [
        0,
        2,
        2,
        1 << 18,
    ]
    assert host((1, 19), CpuShares=1)["CpuShares"] == 1


def test_several_networks_at_the_create_are_new() -> None:
    sent = {"Image": "x", "NetworkingConfig": {"EndpointsConfig": {"one": {}, "two": {}}}}
    assert versions.create_request(sent, (1, 44), 1) == sent
    with pytest.raises(InvalidInput, match="cannot be connected to network endpoints: one, two"):
        versions.create_request(sent, (1, 43), 1)


SHOWN: dict[str, Any] = {
    "Id": "a", "Config": {"Image": "x"}, "Mounts": [{"Destination": "/v", "Source": "/s", "RW": False, "Type": "bind"}],
    "HostConfig": {"VolumeDriver": "local", "Memory": 1, "MemorySwap": 2, "CpuShares": 3, "CpusetCpus": "0"},
    "NetworkSettings": {"IPAddress": "10.0.0.2", "Networks": {"bridge": {}}},
}  # fmt: skip


def test_an_inspected_container_of_old() -> None:
    """1.21 is as today; before, no map of networks; before 1.20, limits in Config and volumes as two maps."""
    assert versions.container(SHOWN, CONFIG, (1, 21)) is SHOWN

    middle = versions.container(SHOWN, CONFIG, (1, 20))
    assert middle["Mounts"] == SHOWN["Mounts"]
    assert middle["NetworkSettings"] == {"IPAddress": "10.0.0.2"}
    assert middle["Config"] == {
        "Image": "x", "MacAddress": "", "NetworkDisabled": False, "ExposedPorts": None, "VolumeDriver": "local",
    }  # fmt: skip

    oldest = versions.container(SHOWN, CONFIG, (1, 19))
    assert "Mounts" not in oldest
    assert (oldest["Volumes"], oldest["VolumesRW"]) == ({"/v": "/s"}, {"/v": False})
    limits = {key: oldest["Config"][key] for key in ("Memory", "MemorySwap", "CpuShares", "Cpuset")}
    assert limits == {"Memory": 1, "MemorySwap": 2, "CpuShares": 3, "Cpuset": "0"}


def test_interfaces_are_summed_up_before_1_21() -> None:
    one = {f"{way}_{what}": 1 for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")}
    shown = {"read": "now", "networks": {"eth0": one, "eth1": one}}
    assert versions.stats(shown, (1, 21)) is shown
    assert versions.stats(shown, (1, 20)) == {"read": "now", "network": dict.fromkeys(one, 2)}
    assert versions.stats({"read": "now"}, (1, 20)) == {"read": "now"}
