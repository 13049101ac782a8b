// The JavaScript client: typed API, informer, watch, exec over WebSocket, logs, patch, scale.
// Arguments: the namespace. Exits with an error about what is not as it should be.

import assert from "node:assert/strict";
import { once } from "node:events";
import { PassThrough, Readable } from "node:stream";
import * as k8s from "@kubernetes/client-node";

const namespace = process.argv[process.argv.length - 1];
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);

const version = await config.makeApiClient(k8s.VersionApi).getCode();
assert.match(version.minor, /^36/);

// An informer sees what is created, changed and deleted.
const seen = new k8s.makeInformer(
  config,
  `/api/v1/namespaces/${namespace}/pods`,
  () => core.listNamespacedPod({ namespace, labelSelector: "app=javascript" }),
  "app=javascript",
);
const ready = new Promise((resolve, reject) => {
  seen.on("error", reject);
  const look = (pod) => {
    if (pod.status?.conditions?.some((c) => c.type === "Ready" && c.status === "True")) resolve(pod);
  };
  seen.on("add", look);
  seen.on("update", look);
});
const gone = new Promise((resolve) => seen.on("delete", resolve));
await seen.start();
await apps.createNamespacedDeployment({
  namespace,
  body: {
    metadata: { name: "javascript" },
    spec: {
      selector: { matchLabels: { app: "javascript" } },
      template: {
        metadata: { labels: { app: "javascript" } },
        spec: {
          terminationGracePeriodSeconds: 1,
          containers: [
            {
              name: "main",
              image: "busybox",
              imagePullPolicy: "IfNotPresent",
              command: ["sh", "-c", "echo begun; sleep 1000"],
            },
          ],
        },
      },
    },
  },
});
const pod = await ready;
const name = pod.metadata.name;

const out = new PassThrough();
const status = new Promise((resolve, reject) => {
  new k8s.Exec(config)
    .exec(namespace, name, "main", ["sh", "-c", "cat; exit 3"], out, null, Readable.from(["typed\n"]), false, resolve)
    .catch(reject);
});
const [typed] = await once(out, "data");
assert.equal(String(typed), "typed\n");
assert.equal((await status).details.causes[0].message, "3");

const log = new PassThrough();
await new k8s.Log(config).log(namespace, name, "main", log, { follow: true });
assert.equal(String((await once(log, "data"))[0]), "begun\n");

const json = k8s.setHeaderOptions("Content-Type", k8s.PatchStrategy.JsonPatch);
const scaled = await apps.patchNamespacedDeploymentScale(
  { namespace, name: "javascript", body: [{ op: "replace", path: "/spec/replicas", value: 0 }] },
  json,
);
assert.equal(scaled.spec.replicas ?? 0, 0);
assert.equal((await gone).metadata.name, name);

const refused = await core.readNamespacedPod({ namespace, name: "nobody" }).catch((error) => error);
assert.equal(refused.code, 404);
await seen.stop();
console.log("done");
process.exit(0);
