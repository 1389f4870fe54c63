"""The Pod Security Standard `restricted` of Kubernetes 1.34, applied to a pod spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}
SECCOMP = {"RuntimeDefault", "Localhost"}
SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
APPARMOR = {None, "RuntimeDefault", "Localhost"}


def violations(pod: dict[str, Any]) -> list[str]:
    """Return the reasons why a namespace that enforces the profile would refuse a pod."""
    faults = [*_of_pod(pod)]
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in pod.get(kind, ()):
            faults += [f"{container['name']}: {fault}" for fault in _of_container(container, pod)]
    return faults


def _of_pod(pod: dict[str, Any]) -> Iterator[str]:
    yield from (name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    for volume in pod.get("volumes", ()):
        yield from (f"volume {kind}" for kind in volume.keys() - VOLUMES - {"name"})
    yield from (f"sysctl {sysctl['name']}" for sysctl in _security(pod).get("sysctls", ()))
    yield from _of_context(_security(pod))


def _of_container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    own = _security(container)
    either = {**_security(pod), **own}
    if either.get("runAsNonRoot") is not True:
        yield "runAsNonRoot"
    if either.get("seccompProfile", {}).get("type") not in SECCOMP:
        yield "seccompProfile"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if own.get("privileged"):
        yield "privileged"
    if own.get("procMount") not in (None, "Default"):
        yield "procMount"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield "capabilities are not dropped"
    yield from (f"adds {name}" for name in {*capabilities.get("add", ())} - {"NET_BIND_SERVICE"})
    yield from ("hostPort" for port in container.get("ports", ()) if port.get("hostPort"))
    for hook in _hooks(container):
        yield from (f"host of {kind}" for kind in ("httpGet", "tcpSocket") if _host(hook, kind))
    yield from _of_context(own)


def _of_context(context: dict[str, Any]) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield "runAsUser 0"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    if context.get("appArmorProfile", {}).get("type") not in APPARMOR:
        yield "appArmorProfile"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"


def _hooks(container: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield container.get(probe, {})
    yield from container.get("lifecycle", {}).values()


def _host(hook: dict[str, Any], kind: str) -> bool:
    return bool(hook.get(kind, {}).get("host"))


def _security(of: dict[str, Any]) -> dict[str, Any]:
    return of.get("securityContext") or {}
