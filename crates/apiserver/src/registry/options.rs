//! The parameters of writes.

use super::Context;
use crate::identity::Identity;
use crate::negotiate;
use crate::query::Query;
use bytes::Bytes;
use http::header::{HeaderMap, USER_AGENT};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skeg_api::decode::{Encoding, FieldValidation};
use skeg_api::field::{FieldError, Path};
use skeg_api::fieldset::manager_name;
use skeg_api::patch::PatchType;
use skeg_api::{Status, names};

const META: &str = "meta.k8s.io/v1";

/// Of create, update and patch; `dryRun` of deletes too.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// What RBAC calls the request: `create`, `update` or `patch`.
    pub verb: &'static str,
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    /// Who the changed fields belong to.
    pub manager: String,
    /// Whether the request itself says so.
    pub names_manager: bool,
    /// Take what others own; of applies only.
    pub force: bool,
}

impl WriteOptions {
    /// Of a request for `verb`; `patch` is the type of a patch.
    pub fn parse(
        verb: &'static str,
        patch: Option<PatchType>,
        query: &Query,
        identity: &Identity,
        headers: &HeaderMap,
    ) -> Result<Self, Status> {
        let kind = match verb {
            "create" => "CreateOptions",
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            _ => "DeleteOptions",
        };
        let mut errors = Vec::new();
        let (field_manager, force) = (query.text("fieldManager"), query.flag("force"));
        if patch == Some(PatchType::Apply) {
            if field_manager.is_empty() {
                errors.push(FieldError::required(Path::new("fieldManager"), "is required for apply patch"));
            }
        } else if patch.is_some() && force.is_some() {
            errors
                .push(FieldError::forbidden(Path::new("force"), "may not be specified for non-apply patch"));
        }
        errors.extend(names::validate_field_manager(field_manager, &Path::new("fieldManager")));
        let dry_run: Vec<&str> = query.all("dryRun").filter(|v| !v.is_empty()).collect();
        errors.extend(dry_run_errors(&dry_run));
        let text = query.text("fieldValidation");
        let field_validation = FieldValidation::parse(text);
        if field_validation.is_none() {
            errors.push(FieldError::not_supported(
                Path::new("fieldValidation"),
                text,
                &FieldValidation::SUPPORTED,
            ));
        }
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", kind, "", &errors));
        }
        let agent = headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let mut manager = manager_name(field_manager, agent);
        if manager.is_empty() {
            // Clients without an agent are told apart by their user at least.
            manager = identity.user().rsplit(':').next().unwrap_or("unknown").to_owned();
        }
        Ok(WriteOptions {
            verb,
            dry_run: !dry_run.is_empty(),
            field_validation: field_validation.unwrap_or_default(),
            manager,
            names_manager: !field_manager.is_empty(),
            force: force.unwrap_or(false),
        })
    }
}

impl WriteOptions {
    /// As `CreateOptions` or `UpdateOptions`.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut value = json!({"kind": kind, "apiVersion": META});
        if self.dry_run {
            value["dryRun"] = json!(["All"]);
        }
        if self.names_manager {
            value["fieldManager"] = self.manager.as_str().into();
        }
        value
    }
}

fn dry_run_errors(values: &[&str]) -> Vec<FieldError> {
    let wrong = values.iter().filter(|value| **value != "All");
    wrong.map(|value| FieldError::not_supported(Path::new("dryRun"), *value, &["All"])).collect()
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub api_version: Option<String>,
    pub kind: Option<String>,
    pub grace_period_seconds: Option<i64>,
    pub preconditions: Option<Preconditions>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<String>,
    pub dry_run: Option<Vec<String>>,
}

impl DeleteOptions {
    /// From the body, or where there is none from the query.
    pub fn parse(ctx: Context<'_>, headers: &HeaderMap, body: &Bytes) -> Result<Self, Status> {
        let mut options: DeleteOptions = if body.is_empty() {
            Self::of_query(ctx)?
        } else {
            match negotiate::input(headers)? {
                Encoding::Json => serde_json::from_slice(body).map_err(|e| e.to_string()),
                Encoding::Yaml => serde_saphyr::from_slice(body).map_err(|e| e.to_string()),
            }
            .map_err(|error| {
                Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type DeleteOptions): {error}"
                ))
            })?
        };
        if let Some(kind) = options.kind.as_deref()
            && !kind.is_empty()
            && kind != "DeleteOptions"
        {
            return Err(Status::bad_request(format!(
                "decoded object cannot be converted to DeleteOptions: {kind}"
            )));
        }
        options.validate()?;
        if options.grace_period_seconds.is_some_and(|seconds| seconds < 0) {
            options.grace_period_seconds = Some(1);
        }
        Ok(options)
    }

    fn of_query(ctx: Context<'_>) -> Result<Self, Status> {
        let query = ctx.query;
        let grace = match query.text("gracePeriodSeconds") {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
            })?),
        };
        let policy = query.text("propagationPolicy");
        let dry_run: Vec<String> = query.all("dryRun").filter(|v| !v.is_empty()).map(str::to_owned).collect();
        Ok(DeleteOptions {
            grace_period_seconds: grace,
            orphan_dependents: query.flag("orphanDependents"),
            propagation_policy: (!policy.is_empty()).then(|| policy.to_owned()),
            dry_run: (!dry_run.is_empty()).then_some(dry_run),
            ..Default::default()
        })
    }

    fn validate(&self) -> Result<(), Status> {
        let mut errors = Vec::new();
        if self.orphan_dependents.is_some() && self.propagation_policy.is_some() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid(Path::new("propagationPolicy"), self.policy(), why));
        }
        if !matches!(self.policy(), "" | "Foreground" | "Background" | "Orphan") {
            let supported = ["Foreground", "Background", "Orphan", "nil"];
            errors.push(FieldError::not_supported(Path::new("propagationPolicy"), self.policy(), &supported));
        }
        let dry_run: Vec<&str> = self.dry_run.iter().flatten().map(String::as_str).collect();
        errors.extend(dry_run_errors(&dry_run));
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors))
        }
    }

    /// As `DeleteOptions` of the API.
    pub fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["kind"] = "DeleteOptions".into();
        value["apiVersion"] = META.into();
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        value
    }

    pub fn policy(&self) -> &str {
        self.propagation_policy.as_deref().unwrap_or_default()
    }

    pub fn is_dry_run(&self) -> bool {
        self.dry_run.as_ref().is_some_and(|values| !values.is_empty())
    }
}
