//! Acting as somebody else, as the `Impersonate-*` headers ask for and the authorizer allows.
//! Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/filters/impersonation`.

use super::authn::{service_account_groups, split_service_account};
use super::authz::question;
use crate::identity::Identity;
use crate::query;
use crate::request::{Attributes, Decision};
use http::HeaderMap;
use skeg_api::Status;
use std::collections::BTreeMap;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const ANONYMOUS: &str = "system:anonymous";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Whom a request is done as: the asker, or whom the headers name if the asker may.
pub fn resolve(
    asker: Identity,
    headers: &HeaderMap,
    authorize: impl Fn(&Attributes<'_>) -> Decision,
) -> Result<Identity, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let (user, uid) = (text(USER), text(UID));
    let groups: Vec<String> =
        headers.get_all(GROUP).iter().filter_map(|v| v.to_str().ok().map(str::to_owned)).collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX)
            && let Ok(value) = value.to_str()
        {
            extra.entry(query::decode(key, false).to_lowercase()).or_default().push(value.to_owned());
        }
    }
    if user.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(asker);
        }
        return Err(Status::internal(format!(
            "requested [{}] without impersonating a user",
            named(&groups, &uid, &extra).join(" ")
        )));
    }
    let check = |what: [&str; 5]| {
        let asked = question(&asker, "impersonate", what);
        match authorize(&asked) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(super::forbidden(&asked, &reason)),
        }
    };
    let account = split_service_account(&user);
    match account {
        Some((namespace, name)) => check(["", "serviceaccounts", "", namespace, name])?,
        None => check(["", "users", "", "", &user])?,
    }
    for group in &groups {
        check(["", "groups", "", "", group])?;
    }
    for (key, values) in &extra {
        for value in values {
            check(["authentication.k8s.io", "userextras", key, "", value])?;
        }
    }
    if !uid.is_empty() {
        check(["authentication.k8s.io", "uids", "", "", &uid])?;
    }
    let mut all = groups;
    if all.is_empty()
        && let Some((namespace, _)) = account
    {
        all = service_account_groups(namespace);
    }
    let implied = if user == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !all.iter().any(|group| group == UNAUTHENTICATED || group == implied) {
        all.push(implied.to_owned());
    }
    Ok(Identity::new(user, uid, all, extra))
}

fn named(groups: &[String], uid: &str, extra: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut parts: Vec<String> = groups.iter().map(|group| format!("groups {group}")).collect();
    parts.extend(extra.keys().map(|key| format!("userextras {key}")));
    if !uid.is_empty() {
        parts.push(format!("uids {uid}"));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rbac::tests::user;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn all(_: &Attributes<'_>) -> Decision {
        Decision::Allow(String::new())
    }

    #[test]
    fn takes_the_named_identity() {
        let admin = user("admin", &["system:masters"]);
        let got = resolve(admin.clone(), &HeaderMap::new(), all).unwrap();
        assert_eq!(got, admin);
        let asked = headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "dev"),
            ("impersonate-group", "ops"),
            ("impersonate-extra-scopes%2fx", "view"),
            ("impersonate-uid", "7"),
        ]);
        let jane = resolve(admin.clone(), &asked, all).unwrap();
        assert_eq!((jane.user(), jane.uid()), ("jane", "7"));
        assert_eq!(jane.groups(), ["dev", "ops", "system:authenticated"]);
        assert_eq!(jane.extra()["scopes/x"], ["view"]);
        let account = headers(&[("impersonate-user", "system:serviceaccount:a:b")]);
        let account = resolve(admin.clone(), &account, all).unwrap();
        assert_eq!(
            account.groups(),
            ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]
        );
        let nobody =
            resolve(admin.clone(), &headers(&[("impersonate-user", "system:anonymous")]), all).unwrap();
        assert_eq!(nobody.groups(), ["system:unauthenticated"]);
        assert_eq!(resolve(admin, &headers(&[("impersonate-group", "dev")]), all).unwrap_err().code, 500);
    }

    #[test]
    fn each_part_needs_permission() {
        let cases: [(&[(&'static str, &str)], &str); 5] = [
            (&[("impersonate-user", "jane")], "users"),
            (&[("impersonate-user", "system:serviceaccount:a:b")], "serviceaccounts"),
            (&[("impersonate-user", "jane"), ("impersonate-group", "system:masters")], "groups"),
            (&[("impersonate-user", "jane"), ("impersonate-extra-k", "v")], "userextras"),
            (&[("impersonate-user", "jane"), ("impersonate-uid", "v")], "uids"),
        ];
        for (pairs, refused) in cases {
            let authorize = |asked: &Attributes<'_>| match asked.resource == refused {
                true => Decision::NoOpinion(String::new()),
                false => Decision::Allow(String::new()),
            };
            let status = resolve(user("bob", &[]), &headers(pairs), authorize).unwrap_err();
            assert_eq!(status.code, 403, "{refused}");
            assert!(
                status.message.contains("User \"bob\" cannot impersonate resource"),
                "{}",
                status.message
            );
        }
    }
}
