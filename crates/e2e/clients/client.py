"""The Python client: typed and dynamic API, watch, exec, logs, server-side apply, leader election.

Arguments: the namespace. Says what it does not find as it should be by an AssertionError.
"""

import sys
import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
from kubernetes.stream import stream

namespace = sys.argv[1]
config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()

assert client.VersionApi().get_code().minor.startswith("36")
assert {r.name for r in core.get_api_resources().resources} >= {"pods", "pods/exec", "services"}

# Watched from the list's version on: nothing is missed, nothing comes twice.
start = core.list_namespaced_pod(namespace)
core.create_namespaced_pod(
    namespace,
    {
        "metadata": {"name": "python", "labels": {"app": "python"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "main",
                    "image": "busybox",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", "echo begun; sleep 1000"],
                }
            ],
        },
    },
)
watcher, seen = watch.Watch(), []
for event in watcher.stream(
    core.list_namespaced_pod,
    namespace,
    label_selector="app=python",
    resource_version=start.metadata.resource_version,
    timeout_seconds=60,
):
    seen.append(event["type"])
    pod = event["object"]
    if any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or []):
        watcher.stop()
assert seen[0] == "ADDED" and set(seen[1:]) == {"MODIFIED"}, seen

said = stream(
    core.connect_get_namespaced_pod_exec,
    "python",
    namespace,
    command=["sh", "-c", "echo out; echo err >&2; cat"],
    stdin=True,
    stdout=True,
    stderr=True,
    _preload_content=False,
)
assert said.readline_stdout(timeout=10) == "out"
assert said.readline_stderr(timeout=10) == "err"
said.write_stdin("typed\n")
assert said.readline_stdout(timeout=10) == "typed"
said.close()
said = core.read_namespaced_pod_log("python", namespace, _preload_content=False).data
assert said == b"begun\n", said

# Patches of each type, a conflict, a refusal.
core.create_namespaced_config_map(namespace, {"metadata": {"name": "python"}, "data": {"a": "1"}})
patched = core.patch_namespaced_config_map("python", namespace, [{"op": "add", "path": "/data/b", "value": "2"}])
assert patched.data == {"a": "1", "b": "2"}, patched.data
patched = core.patch_namespaced_config_map("python", namespace, {"data": {"a": None}})
assert patched.data == {"b": "2"}, patched.data
patched.metadata.resource_version = "1"
try:
    core.replace_namespaced_config_map("python", namespace, patched)
    raise AssertionError("an old version was taken")
except client.ApiException as refused:
    assert refused.status == 409, refused
try:
    apps.create_namespaced_deployment(namespace, {"metadata": {"name": "X"}, "spec": {"selector": {}, "template": {}}})
    raise AssertionError("an invalid Deployment was taken")
except client.ApiException as refused:
    assert refused.status == 422 and "metadata.name" in refused.body, refused

# What discovery says is enough for the dynamic client, which applies as a manager of its own.
maps = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="ConfigMap")
applied = maps.server_side_apply(
    body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "python"}, "data": {"c": "3"}},
    name="python",
    namespace=namespace,
    field_manager="dynamic",
)
assert applied.data.to_dict() == {"b": "2", "c": "3"}, applied.data
assert [m.manager for m in applied.metadata.managedFields if m.operation == "Apply"] == ["dynamic"]

# The first candidate leads; the second sees it.
led = threading.Event()


def lead():
    led.set()
    sys.exit()


threading.Thread(
    target=leaderelection.LeaderElection(
        electionconfig.Config(
            ConfigMapLock("election", namespace, "first"),
            lease_duration=17,
            renew_deadline=15,
            retry_period=1,
            onstarted_leading=lead,
            onstopped_leading=None,
        )
    ).run,
    daemon=True,
).start()
assert led.wait(30), "nobody leads"
assert "first" in str(core.read_namespaced_config_map("election", namespace).metadata.annotations)

core.delete_namespaced_pod("python", namespace)
for event in watch.Watch().stream(core.list_namespaced_pod, namespace, label_selector="app=python", timeout_seconds=60):
    if event["type"] == "DELETED":
        break
else:
    raise AssertionError("the Pod does not go")
print("done")
