//! Questions to the authorizer, as the user that sent the request or as a ServiceAccount.

use std::fmt;
use std::sync::Arc;

use super::text;
use crate::error::Error;
use crate::function::Row;
use crate::opaque::Opaque;
use crate::value::Value;

/// Who answers authorization checks: the host. It knows the user of the request.
pub trait Authorizer: Send + Sync {
    /// Decides one check.
    fn authorize(&self, check: &Check<'_>) -> Decision;
}

/// One question.
#[derive(Clone, Copy, Debug)]
pub struct Check<'c> {
    /// The ServiceAccount to ask for instead of the user of the request: namespace and name.
    pub service_account: Option<(&'c str, &'c str)>,
    pub verb: &'c str,
    pub what: What<'c>,
}

/// What may be done.
#[derive(Clone, Copy, Debug)]
pub enum What<'c> {
    /// A request to a path that is no resource.
    Path(&'c str),
    /// A request to a resource of any version.
    Resource(&'c ResourceCheck),
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// As whom to ask.
#[derive(Clone)]
pub struct UserChecks {
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) service_account: Option<Arc<(String, String)>>,
}

impl fmt::Debug for UserChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserChecks").field("service_account", &self.service_account).finish_non_exhaustive()
    }
}

/// A path to ask for.
#[derive(Debug)]
pub struct PathCheck {
    user: UserChecks,
    path: String,
}

/// A resource to ask for. What is empty is not asked for.
#[derive(Clone, Debug)]
pub struct ResourceCheck {
    user: UserChecks,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

impl Opaque {
    /// The variable `authorizer.requestResource`: a check of the resource of the request.
    pub fn request_resource(
        authorizer: Arc<dyn Authorizer>,
        group: &str,
        resource: &str,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> Self {
        let mut check = ResourceCheck::new(UserChecks { authorizer, service_account: None }, group);
        check.resource = resource.into();
        check.subresource = subresource.into();
        check.namespace = namespace.into();
        check.name = name.into();
        Self::ResourceCheck(Arc::new(check))
    }
}

pub(crate) const ROWS: &[Row] = &[
    (
        "path",
        "authorizer_path",
        ".(kubernetes.authorization.Authorizer, string) kubernetes.authorization.PathCheck",
        |_, args| {
            let path = not_blank(text(args, 1)?, "path")?;
            Ok(Value::Opaque(Opaque::PathCheck(Arc::new(PathCheck { user: user(args)?.clone(), path }))))
        },
    ),
    (
        "group",
        "authorizer_group",
        ".(kubernetes.authorization.Authorizer, string) kubernetes.authorization.GroupCheck",
        |_, args| {
            let check = ResourceCheck::new(user(args)?.clone(), text(args, 1)?);
            Ok(Value::Opaque(Opaque::GroupCheck(Arc::new(check))))
        },
    ),
    (
        "serviceAccount",
        "authorizer_serviceaccount",
        ".(kubernetes.authorization.Authorizer, string, string) kubernetes.authorization.Authorizer",
        |_, args| {
            let (namespace, name) = (text(args, 1)?, text(args, 2)?);
            if !super::format::is_subdomain(name) {
                return Err(Error::new("Invalid service account name"));
            }
            if !super::format::is_label(namespace) {
                return Err(Error::new("Invalid service account namespace"));
            }
            let mut user = user(args)?.clone();
            user.service_account = Some(Arc::new((namespace.into(), name.into())));
            Ok(Value::Opaque(Opaque::Authorizer(user)))
        },
    ),
    (
        "resource",
        "groupcheck_resource",
        ".(kubernetes.authorization.GroupCheck, string) kubernetes.authorization.ResourceCheck",
        |_, args| {
            let resource = not_blank(text(args, 1)?, "resource")?;
            match &args[0] {
                Value::Opaque(Opaque::GroupCheck(check)) => changed(check, |check| check.resource = resource),
                _ => Err(Error::no_such_overload()),
            }
        },
    ),
    (
        "subresource",
        "resourcecheck_subresource",
        ".(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck",
        |_, args| with(args, |check, value| check.subresource = value),
    ),
    (
        "namespace",
        "resourcecheck_namespace",
        ".(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck",
        |_, args| with(args, |check, value| check.namespace = value),
    ),
    (
        "name",
        "resourcecheck_name",
        ".(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck",
        |_, args| with(args, |check, value| check.name = value),
    ),
    (
        "fieldSelector",
        "authorizer_fieldselector",
        ".(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck",
        |_, args| with(args, |check, value| check.field_selector = value),
    ),
    (
        "labelSelector",
        "authorizer_labelselector",
        ".(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck",
        |_, args| with(args, |check, value| check.label_selector = value),
    ),
    (
        "check",
        "pathcheck_check",
        ".(kubernetes.authorization.PathCheck, string) kubernetes.authorization.Decision",
        |_, args| match &args[0] {
            Value::Opaque(Opaque::PathCheck(check)) => {
                ask(&check.user, text(args, 1)?, What::Path(&check.path))
            }
            _ => Err(Error::no_such_overload()),
        },
    ),
    (
        "check",
        "resourcecheck_check",
        ".(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.Decision",
        |_, args| match &args[0] {
            Value::Opaque(Opaque::ResourceCheck(check)) => {
                ask(&check.user, text(args, 1)?, What::Resource(check))
            }
            _ => Err(Error::no_such_overload()),
        },
    ),
    ("allowed", "decision_allowed", ".(kubernetes.authorization.Decision) bool", |_, args| {
        Ok(Value::Bool(decision(args)?.allowed))
    }),
    ("reason", "decision_reason", ".(kubernetes.authorization.Decision) string", |_, args| {
        Ok(decision(args)?.reason.clone().into())
    }),
    ("errored", "decision_errored", ".(kubernetes.authorization.Decision) bool", |_, args| {
        Ok(Value::Bool(decision(args)?.error.is_some()))
    }),
    ("error", "decision_error", ".(kubernetes.authorization.Decision) string", |_, args| {
        Ok(decision(args)?.error.clone().unwrap_or_default().into())
    }),
];

impl ResourceCheck {
    fn new(user: UserChecks, group: &str) -> Self {
        Self {
            user,
            group: group.into(),
            resource: String::new(),
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
            field_selector: String::new(),
            label_selector: String::new(),
        }
    }
}

fn user<'v>(args: &'v [Value<'_>]) -> Result<&'v UserChecks, Error> {
    match args.first() {
        Some(Value::Opaque(Opaque::Authorizer(user))) => Ok(user),
        _ => Err(Error::no_such_overload()),
    }
}

fn decision<'v>(args: &'v [Value<'_>]) -> Result<&'v Decision, Error> {
    match args.first() {
        Some(Value::Opaque(Opaque::Decision(decision))) => Ok(decision),
        _ => Err(Error::no_such_overload()),
    }
}

fn not_blank(value: &str, what: &str) -> Result<String, Error> {
    if value.trim().is_empty() {
        return Err(Error::new(format!("{what} must not be empty")));
    }
    Ok(value.to_owned())
}

fn changed<'a>(check: &ResourceCheck, change: impl FnOnce(&mut ResourceCheck)) -> Result<Value<'a>, Error> {
    let mut check = check.clone();
    change(&mut check);
    Ok(Value::Opaque(Opaque::ResourceCheck(Arc::new(check))))
}

fn with<'a>(args: &[Value<'a>], set: fn(&mut ResourceCheck, String)) -> Result<Value<'a>, Error> {
    let value = text(args, 1)?.to_owned();
    match &args[0] {
        Value::Opaque(Opaque::ResourceCheck(check)) => changed(check, |check| set(check, value)),
        _ => Err(Error::no_such_overload()),
    }
}

fn ask<'a>(user: &UserChecks, verb: &str, what: What<'_>) -> Result<Value<'a>, Error> {
    let service_account = user.service_account.as_deref().map(|(namespace, name)| (&**namespace, &**name));
    let decision = user.authorizer.authorize(&Check { service_account, verb, what });
    Ok(Value::Opaque(Opaque::Decision(Arc::new(decision))))
}
