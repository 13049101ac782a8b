//! Puts a token, the cluster's authority and the namespace into Secrets of type
//! `kubernetes.io/service-account-token`, and deletes those whose ServiceAccount is gone. A token is
//! bound to its Secret and ends with it. Upstream counterpart:
//! `pkg/controller/serviceaccount/tokens_controller.go`.

use crate::context::{ControllerContext, Controllers};
use crate::error::{Result, ignore_not_found};
use crate::meta;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use skeg_client::{Api, Change, Informer, ListOptions, gvr_of};
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 1;
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const TOKEN: &str = "token";
/// The longest that may be asked for, 136 years: such tokens end with their Secrets.
const EXPIRATION_S: i64 = 1 << 32;

/// A Secret and the account that it names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Task {
    namespace: String,
    secret: String,
    account: String,
}

impl Task {
    fn of(secret: &Secret) -> Option<Self> {
        let meta = &secret.metadata;
        (secret.type_.as_deref() == Some(TYPE)).then(|| Task {
            namespace: meta::namespace(meta).to_owned(),
            secret: meta::name(meta).to_owned(),
            account: annotation(secret, ACCOUNT_NAME).to_owned(),
        })
    }
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> &'a str {
    secret.metadata.annotations.as_ref().and_then(|all| all.get(key)).map_or("", String::as_str)
}

struct Controller {
    secrets: Api<Secret>,
    accounts: Api<ServiceAccount>,
    root_ca: Option<String>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) {
    let of_type = ListOptions::fields(format!("type={TYPE}"));
    let secrets: Informer<Secret> = ctx.informers.selected("", &of_type);
    let accounts = ctx.informers.metadata(&gvr_of::<ServiceAccount>());
    let client = ctx.client("tokens-controller");
    let controller = Arc::new(Controller {
        secrets: client.api(),
        accounts: client.api(),
        root_ca: ctx.config.root_ca.clone(),
    });
    let queue = ctx.queue::<Task>();
    let to = queue.clone();
    secrets.subscribe(move |change| {
        if let Some(task) = Task::of(change.object()) {
            to.add(task);
        }
    });
    let (to, all) = (queue.clone(), secrets.clone());
    accounts.subscribe(move |change| {
        if let Change::Added(_) = change {
            return;
        }
        let key = change.key();
        let tasks = all.list(Some(&key.namespace)).into_iter().filter_map(|secret| Task::of(&secret));
        tasks.filter(|task| task.account == *key.name).for_each(|task| to.add(task));
    });
    let ready = async move {
        secrets.synced().await;
        accounts.synced().await;
    };
    controllers.work("serviceaccount-token", WORKERS, queue, ready, move |task| {
        let controller = controller.clone();
        async move { controller.sync(&task).await }
    });
}

impl Controller {
    async fn sync(&self, task: &Task) -> Result<Option<Duration>> {
        let Task { namespace, secret: name, account } = task;
        let secret = self.secrets.get_opt(namespace, name).await?;
        let account = self.accounts.get_opt(namespace, account).await?;
        match (secret, account) {
            (None, Some(account)) => {
                if let Some(wanted) = without_reference(&account, name) {
                    ignore_not_found(self.accounts.update(namespace, &task.account, &wanted).await)?;
                }
            }
            (None, None) => {}
            (Some(secret), Some(account)) if is_of(&secret, &account) => {
                let (mut wanted, has_token) = filled(&secret, &account, self.root_ca.as_deref());
                if !has_token {
                    let token = self.token(&secret, task).await?;
                    wanted.data.get_or_insert_default().insert(TOKEN.into(), ByteString(token.into()));
                }
                if wanted != secret {
                    ignore_not_found(self.secrets.update(namespace, name, &wanted).await)?;
                }
            }
            (Some(secret), _) => {
                let options = meta::delete_options(meta::uid(&secret.metadata));
                ignore_not_found(self.secrets.delete(namespace, name, &options).await)?;
            }
        }
        Ok(None)
    }

    async fn token(&self, secret: &Secret, task: &Task) -> Result<String> {
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Secret".into()),
            name: secret.metadata.name.clone(),
            uid: secret.metadata.uid.clone(),
        };
        let spec = TokenRequestSpec {
            audiences: None,
            bound_object_ref: Some(bound),
            expiration_seconds: Some(EXPIRATION_S),
        };
        let request = TokenRequest { spec: Some(spec), ..Default::default() };
        let answer: TokenRequest =
            self.accounts.create_subresource(&task.namespace, &task.account, "token", &request).await?;
        Ok(answer.status.and_then(|status| status.token).unwrap_or_default())
    }
}

/// Whether the Secret is the account's, and not of one that had its name before.
fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    let uid = annotation(secret, ACCOUNT_UID);
    uid.is_empty() || uid == meta::uid(&account.metadata)
}

/// The Secret as it should be but for its token, and whether it has one.
fn filled(secret: &Secret, account: &ServiceAccount, root_ca: Option<&str>) -> (Secret, bool) {
    let mut wanted = secret.clone();
    let uid = meta::uid(&account.metadata).to_owned();
    wanted.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid);
    let data = wanted.data.get_or_insert_default();
    if let Some(root_ca) = root_ca {
        data.insert("ca.crt".into(), ByteString(root_ca.into()));
    }
    let is_empty = |value: Option<&ByteString>| value.is_none_or(|value| value.0.is_empty());
    if is_empty(data.get("namespace")) {
        data.insert("namespace".into(), ByteString(meta::namespace(&secret.metadata).into()));
    }
    let has_token = !is_empty(data.get(TOKEN));
    (wanted, has_token)
}

/// The account without the Secret in its list, if it is there.
fn without_reference(account: &ServiceAccount, secret: &str) -> Option<ServiceAccount> {
    let mut wanted = account.clone();
    wanted.secrets.as_mut()?.retain(|reference| reference.name.as_deref() != Some(secret));
    (wanted != *account).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_secret_is_filled_once_and_belongs_to_one_account() {
        let account: ServiceAccount = serde_json::from_value(json!({
            "metadata": {"name": "robot", "namespace": "team", "uid": "1"}, "secrets": [{"name": "a"}, {"name": "b"}]
        }))
        .unwrap();
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "team", "annotations": {ACCOUNT_NAME: "robot"}}, "type": TYPE
        }))
        .unwrap();
        assert!(is_of(&secret, &account));
        let (mut full, has_token) = filled(&secret, &account, Some("PEM"));
        assert!(!has_token);
        full.data.as_mut().unwrap().insert(TOKEN.into(), ByteString(b"x".into()));
        assert_eq!(filled(&full, &account, Some("PEM")), (full.clone(), true));
        // Another authority replaces the former; the namespace is whatever its user wrote.
        let (renewed, _) = filled(&full, &account, Some("NEW"));
        assert_eq!(renewed.data.unwrap()["ca.crt"].0, b"NEW");
        let mut namesake = account.clone();
        namesake.metadata.uid = Some("2".into());
        assert!(!is_of(&full, &namesake));
        let left = without_reference(&account, "a").unwrap();
        assert_eq!(left.secrets.as_ref().unwrap().len(), 1);
        assert_eq!(without_reference(&left, "a"), None);
    }
}
