//! Every Pod has a service account and, unless it or the account declines, its credentials.
//! Upstream counterpart: `plugin/pkg/admission/serviceaccount`.

use super::{Admission, Operation, Plugin, ready};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use skeg_api::{Status, meta};
use skeg_base::Random;
use std::sync::Arc;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
pub const MIRROR: &str = "kubernetes.io/config.mirror";
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
/// An hour and a little: the odd number marks tokens that the API server may extend.
pub const TOKEN_SECONDS: i64 = 3607;

pub struct ServiceAccount {
    reader: Arc<dyn Reader>,
    random: Random,
}

impl ServiceAccount {
    pub fn new(reader: Arc<dyn Reader>, random: Random) -> Self {
        ServiceAccount { reader, random }
    }

    fn change(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        if a.operation != Operation::Create || !a.is("", "pods", "") {
            return Ok(());
        }
        let Some(pod) = a.object.take() else { return Ok(()) };
        let result = self.equip(a, pod);
        a.object = Some(pod);
        result
    }

    fn check(&self, a: &Admission<'_>) -> Result<(), Status> {
        if a.operation != Operation::Update || !a.is("", "pods", "ephemeralcontainers") {
            return Ok(());
        }
        let Some(pod) = a.object.as_deref() else { return Ok(()) };
        let (namespace, name) = (a.namespace, pod["spec"]["serviceAccountName"].as_str().unwrap_or_default());
        if name.is_empty() {
            let pod = meta::name(pod);
            return Err(a.forbid(format!("no service account specified for pod {namespace}/{pod}")));
        }
        match self.reader.get_value(&resources::SERVICE_ACCOUNTS, namespace, name) {
            Some(account) => ephemeral(a, &pod["spec"], &account),
            None => Err(a.forbid(unknown(namespace, name))),
        }
    }

    fn equip(&self, a: &Admission<'_>, pod: &mut Value) -> Result<(), Status> {
        if meta::annotation(pod, MIRROR).is_some() {
            return mirror(a, &pod["spec"]);
        }
        let name = match pod["spec"]["serviceAccountName"].as_str() {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => "default".to_owned(),
        };
        pod["spec"]["serviceAccountName"] = name.as_str().into();
        pod["spec"]["serviceAccount"] = name.as_str().into();
        let Some(account) = self.reader.get_value(&resources::SERVICE_ACCOUNTS, a.namespace, &name) else {
            return Err(a.forbid(unknown(a.namespace, &name)));
        };
        if meta::annotation(&account, ENFORCE_MOUNTABLE) == Some("true") {
            mountable(a, &pod["spec"], &account)?;
        }
        let automount =
            [&pod["spec"], &*account].iter().find_map(|o| o["automountServiceAccountToken"].as_bool());
        if automount.unwrap_or(true) {
            self.mount(&mut pod["spec"]);
        }
        let own_secrets = pod["spec"]["imagePullSecrets"].as_array().is_some_and(|list| !list.is_empty());
        if !own_secrets
            && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|list| !list.is_empty())
        {
            pod["spec"]["imagePullSecrets"] = secrets.clone().into();
        }
        Ok(())
    }

    fn mount(&self, spec: &mut Value) {
        let volumes = spec["volumes"].as_array().into_iter().flatten();
        let existing = volumes
            .filter_map(|volume| volume["name"].as_str().filter(|_| !volume["projected"].is_null()))
            .find(|name| name.starts_with(VOLUME_PREFIX))
            .map(str::to_owned);
        let name = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", self.random.suffix()));
        let mut needed = false;
        for field in ["initContainers", "containers"] {
            for container in spec[field].as_array_mut().into_iter().flatten() {
                let mounts = container["volumeMounts"].as_array().map(Vec::as_slice).unwrap_or_default();
                if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                    continue;
                }
                needed = true;
                push(
                    container,
                    "volumeMounts",
                    json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}),
                );
            }
            // Indexing for the loop leaves a null where the field was absent.
            if spec[field].is_null()
                && let Some(fields) = spec.as_object_mut()
            {
                fields.remove(field);
            }
        }
        if needed && existing.is_none() {
            push(spec, "volumes", volume(&name));
        }
    }
}

fn unknown(namespace: &str, name: &str) -> String {
    format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found")
}

fn push(object: &mut Value, field: &str, item: Value) {
    match object[field].as_array_mut() {
        Some(list) => list.push(item),
        None => object[field] = json!([item]),
    }
}

/// Token, authority and namespace, with everything that defaulting would fill in.
fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

/// A mirror Pod shows what a node runs by itself; it gets and names no credentials.
fn mirror(a: &Admission<'_>, spec: &Value) -> Result<(), Status> {
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Err(a.forbid("a mirror pod may not reference service accounts"));
    }
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    if secrets(spec).next().is_some() {
        return Err(a.forbid("a mirror pod may not reference secrets"));
    }
    let mut sources =
        volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    if sources.any(|source| !source["serviceAccountToken"].is_null()) {
        return Err(a.forbid("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

/// Where it is enforced, ephemeral containers too use only secrets that the account lists.
fn ephemeral(a: &Admission<'_>, spec: &Value, account: &Value) -> Result<(), Status> {
    if meta::annotation(account, ENFORCE_MOUNTABLE) != Some("true") {
        return Ok(());
    }
    let listed = |name: &str| account["secrets"].as_array().into_iter().flatten().any(|s| s["name"] == name);
    let account = meta::name(account);
    for container in spec["ephemeralContainers"].as_array().into_iter().flatten() {
        let name = container["name"].as_str().unwrap_or_default();
        let each = |field: &str| container[field].as_array().into_iter().flatten();
        let single = each("env").map(|env| {
            let which = format!("envVar {}", env["name"].as_str().unwrap_or_default());
            (which, &env["valueFrom"]["secretKeyRef"]["name"])
        });
        let whole = each("envFrom").map(|from| ("envFrom".to_owned(), &from["secretRef"]["name"]));
        for (which, secret) in single.chain(whole) {
            let Some(secret) = secret.as_str().filter(|secret| !listed(secret)) else { continue };
            return Err(a.forbid(format!(
                "ephemeral container {name} with {which} referencing secret.secretName={secret:?} is not allowed because \
                 service account {account} does not reference that secret"
            )));
        }
    }
    Ok(())
}

/// Every secret that a Pod names outside imagePullSecrets.
fn secrets(spec: &Value) -> impl Iterator<Item = &str> {
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let mounted = volumes.flat_map(|volume| {
        let sources = volume["projected"]["sources"].as_array().into_iter().flatten();
        [&volume["secret"]["secretName"]].into_iter().chain(sources.map(|source| &source["secret"]["name"]))
    });
    let set = skeg_api::pod::all_containers(spec).flat_map(|(_, _, container)| {
        let each = |field: &str| container[field].as_array().into_iter().flatten();
        let from = each("envFrom").map(|e| &e["secretRef"]["name"]);
        from.chain(each("env").map(|e| &e["valueFrom"]["secretKeyRef"]["name"])).collect::<Vec<_>>()
    });
    mounted.chain(set).filter_map(Value::as_str)
}

/// The deprecated rule that a Pod uses only the secrets that its account lists.
fn mountable(a: &Admission<'_>, spec: &Value, account: &Value) -> Result<(), Status> {
    let listed =
        |field: &str, name: &str| account[field].as_array().into_iter().flatten().any(|s| s["name"] == name);
    let account_name = meta::name(account);
    for name in secrets(spec) {
        if !listed("secrets", name) {
            return Err(a.forbid(format!(
                "volume with secret.secretName={name:?} is not allowed because service account {account_name} does not \
                 reference that secret"
            )));
        }
    }
    for secret in spec["imagePullSecrets"].as_array().into_iter().flatten() {
        let name = secret["name"].as_str().unwrap_or_default();
        if !listed("imagePullSecrets", name) {
            return Err(a.forbid(format!(
                "imagePullSecrets[0].name={name:?} is not allowed because service account {account_name} does not \
                 reference that imagePullSecret"
            )));
        }
    }
    Ok(())
}

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.change(request))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.check(request))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kind};
    use super::*;
    use crate::Identity;
    use crate::reader::fake::Fake;

    fn admit(account: Value, pod: Value) -> Result<Value, Status> {
        let reader = Arc::new(Fake::default());
        reader.put(&resources::SERVICE_ACCOUNTS, account);
        let plugin = ServiceAccount::new(reader, Random::seeded(1));
        let mut case = Case {
            operation: Operation::Create,
            kind: kind("", "Pod", "pods", true),
            subresource: "",
            identity: Identity::anonymous(),
            object: Some(pod),
            old: None,
        };
        case.run(&plugin)?;
        Ok(case.object.unwrap())
    }

    fn account(more: Value) -> Value {
        let mut account = json!({"metadata": {"name": "default", "namespace": "a"}});
        for (key, value) in more.as_object().unwrap() {
            account[key] = value.clone();
        }
        account
    }

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "x", "namespace": "a"}, "spec": spec})
    }

    #[test]
    fn a_plain_pod_gets_account_and_token() {
        let account = account(json!({"imagePullSecrets": [{"name": "pull"}]}));
        let pod = admit(account, pod(json!({"containers": [{"name": "c"}]}))).unwrap();
        let spec = &pod["spec"];
        assert_eq!(
            (&spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!("default"), &json!("default"))
        );
        let name = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5);
        assert_eq!(spec["volumes"][0], volume(name));
        let mount = json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}]);
        assert_eq!(spec["containers"][0]["volumeMounts"], mount);
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
        assert!(spec.get("initContainers").is_none());
    }

    #[test]
    fn pod_and_account_may_decline_and_own_mounts_stay() {
        let declined =
            admit(account(json!({"automountServiceAccountToken": false})), pod(json!({"containers": [{}]})));
        assert!(declined.unwrap()["spec"].get("volumes").is_none());
        let wins = pod(json!({"containers": [{}], "automountServiceAccountToken": true}));
        assert!(
            admit(account(json!({"automountServiceAccountToken": false})), wins).unwrap()["spec"]
                .get("volumes")
                .is_some()
        );
        let own = pod(json!({"containers": [{"volumeMounts": [{"name": "v", "mountPath": MOUNT_PATH}]}]}));
        let admitted = admit(account(json!({})), own).unwrap();
        assert!(admitted["spec"].get("volumes").is_none());
        let status =
            admit(account(json!({})), pod(json!({"serviceAccountName": "b", "containers": []}))).unwrap_err();
        assert_eq!(
            status.message,
            "pods \"x\" is forbidden: error looking up service account a/b: serviceaccount \"b\" not found"
        );
    }

    #[test]
    fn ephemeral_containers_use_listed_secrets_where_that_is_enforced() {
        let env = |secret: &str| json!([{"name": "E", "valueFrom": {"secretKeyRef": {"name": secret, "key": "k"}}}]);
        let debug = |secret: &str| {
            pod(
                json!({"serviceAccountName": "default", "ephemeralContainers": [{"name": "d", "env": env(secret)}]}),
            )
        };
        let add = |account: Value, pod: Value| {
            let reader = Arc::new(Fake::default());
            reader.put(&resources::SERVICE_ACCOUNTS, account);
            let mut case = Case {
                operation: Operation::Update,
                kind: kind("", "Pod", "pods", true),
                subresource: "ephemeralcontainers",
                identity: Identity::anonymous(),
                object: Some(pod),
                old: None,
            };
            case.run(&ServiceAccount::new(reader, Random::seeded(1))).map_err(|status| status.message)
        };
        let mut strict = account(json!({"secrets": [{"name": "listed"}]}));
        strict["metadata"]["annotations"] = json!({ENFORCE_MOUNTABLE: "true"});
        assert_eq!(add(account(json!({})), debug("other")), Ok(()));
        assert_eq!(add(strict.clone(), debug("listed")), Ok(()));
        assert_eq!(
            add(strict.clone(), debug("other")).unwrap_err(),
            "pods \"x\" is forbidden: ephemeral container d with envVar E referencing secret.secretName=\"other\" is not \
             allowed because service account default does not reference that secret"
        );
        let from = json!([{"name": "d", "envFrom": [{"secretRef": {"name": "other"}}]}]);
        let from = pod(json!({"serviceAccountName": "default", "ephemeralContainers": from}));
        assert!(add(strict, from).unwrap_err().contains("container d with envFrom referencing"));
        let none = add(account(json!({})), pod(json!({}))).unwrap_err();
        assert_eq!(none, "pods \"x\" is forbidden: no service account specified for pod a/x");
    }
}
