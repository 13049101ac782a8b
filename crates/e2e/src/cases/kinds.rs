//! One object of many kinds with kubectl: apply, get, explain, delete.

use crate::{Case, Scope};
use anyhow::{Result, ensure};

pub const CASES: &[Case] = &[Case { name: "an_object_of_each_kind", run: each_kind }];

const OBJECTS: &[u8] = b"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: nginx}]}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template: {metadata: {labels: {app: agent}}, spec: {nodeSelector: {none: here}, containers: [{name: c, image: nginx}]}}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec:
  replicas: 0
  template: {metadata: {labels: {app: old}}, spec: {containers: [{name: c, image: nginx}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: pi}
spec: {suspend: true, template: {spec: {restartPolicy: Never, containers: [{name: c, image: busybox}]}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec: {schedule: '0 3 * * *', timeZone: Europe/Berlin, suspend: true, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: busybox}]}}}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 50%, selector: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: '', resources: {requests: {storage: 1Gi}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec: {rules: [{host: example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {}, policyTypes: [Egress]}
---
apiVersion: v1
kind: LimitRange
metadata: {name: small}
spec: {limits: [{type: PersistentVolumeClaim, max: {storage: 10Gi}}]}
";

fn each_kind(scope: &Scope<'_>) -> Result<()> {
    let said = scope.kubectl_stdin(&["apply", "-f", "-"], OBJECTS)?;
    for made in
        ["statefulset.apps/db", "job.batch/pi", "persistentvolumeclaim/data", "ingress.networking.k8s.io/web"]
    {
        ensure!(said.contains(&format!("{made} created")), "{made}: {said}");
    }
    let again = scope.kubectl_stdin(&["apply", "-f", "-"], OBJECTS)?;
    // kubectl always replaces the selector of a budget, and says that it configured it.
    let mut lines = again.lines().filter(|line| !line.contains("poddisruptionbudget") && line.contains('/'));
    ensure!(lines.all(|line| line.ends_with(" unchanged") || line.starts_with("Warning")), "{again}");
    let all = scope.kubectl(&["get", "all"])?;
    for part in [
        "statefulset.apps/db",
        "daemonset.apps/agent",
        "replicationcontroller/old",
        "job.batch/pi",
        "cronjob.batch/nightly",
        "horizontalpodautoscaler.autoscaling/web",
        "NODE SELECTOR",
        "none=here",
    ] {
        ensure!(all.contains(part), "no {part}: {all}");
    }
    let wide = scope.kubectl(&["get", "sts,ds,rc,job,cj,hpa,pdb,pvc,ing,netpol", "-o", "wide"])?;
    for part in [
        "TIMEZONE",
        "Europe/Berlin",
        "cpu: <unknown>/80%",
        "ALLOWED DISRUPTIONS",
        "VOLUMEMODE",
        "VOLUMEATTRIBUTESCLASS",
        "example.com",
        "POD-SELECTOR",
        "CONTAINERS",
        "IMAGES",
    ] {
        ensure!(wide.contains(part), "no {part}: {wide}");
    }
    let explained = scope.kubectl(&["explain", "cronjob.spec.jobTemplate.spec.backoffLimit"])?;
    ensure!(explained.contains("KIND:       CronJob") && explained.contains("integer"), "{explained}");
    let scaled = scope.kubectl(&["scale", "statefulset/db", "--replicas=5"])?;
    ensure!(scaled.contains("statefulset.apps/db scaled"), "{scaled}");
    let ready = scope.kubectl(&["get", "sts", "db"])?;
    ensure!(ready.contains("/5"), "{ready}");
    let change = "--patch={\"spec\": {\"serviceName\": \"other\"}}";
    let refused = scope.kubectl_fails(&["patch", "statefulset", "db", change])?;
    ensure!(refused.contains("updates to statefulset spec for fields other than"), "{refused}");
    let gone = scope.kubectl_stdin(&["delete", "-f", "-", "--wait=false"], OBJECTS)?;
    ensure!(gone.contains("statefulset.apps \"db\" deleted"), "{gone}");
    Ok(())
}
