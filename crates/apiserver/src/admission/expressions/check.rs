//! What is wrong with the expressions of a configuration, told when it is written.
//! Upstream counterpart: `pkg/apis/admissionregistration/validation`.

use super::{BOOL, Compiler, Expression, Extra, Gives, OBJECT, PATCH, TEXT, TEXT_OR_NULL, VARIABLES_MAX};
use serde_json::Value;
use skeg_api::Kind;
use skeg_api::field::{ErrorKind, FieldError, Path};

/// The faults of expressions in an object of any kind. What was there before is not looked at again.
pub fn errors(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    if &*kind.gvk.group != "admissionregistration.k8s.io" {
        return Vec::new();
    }
    let is_new = |field: &str| old.is_none_or(|old| old.get(field) != new.get(field));
    let spec = Path::new("spec");
    let mut found = Found::default();
    match &*kind.gvk.kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" if is_new("webhooks") => {
            for (index, hook) in items(new, "webhooks") {
                let path = Path::new("webhooks").index(index);
                found.conditions(hook, &path, &Compiler::default());
            }
        }
        "ValidatingAdmissionPolicy" if is_new("spec") => found.validating(&new["spec"], &spec),
        "MutatingAdmissionPolicy" if is_new("spec") => found.mutating(&new["spec"], &spec),
        _ => {}
    }
    found.0
}

fn items<'v>(holder: &'v Value, field: &str) -> impl Iterator<Item = (usize, &'v Value)> {
    holder[field].as_array().into_iter().flatten().enumerate()
}

#[derive(Default)]
struct Found(Vec<FieldError>);

impl Found {
    /// Compiles an expression unless it is empty, which is told elsewhere.
    fn compile(&mut self, compiler: &Compiler, (text, path): (&str, Path), gives: Gives, extra: Extra) {
        if !text.trim().is_empty() {
            self.told(&compiler.compile(text, gives, extra), path);
        }
    }

    fn told(&mut self, expression: &Expression, path: Path) {
        let Err(fault) = &expression.program else { return };
        self.0.push(match fault.is_internal {
            true => {
                FieldError { kind: ErrorKind::Internal, path, value: None, detail: fault.message.clone() }
            }
            false => FieldError::invalid(path, expression.text.clone(), fault.message.clone()),
        });
    }

    fn conditions(&mut self, holder: &Value, path: &Path, compiler: &Compiler) {
        let compiler = compiler.without_variables();
        for (index, condition) in items(holder, "matchConditions") {
            let path = path.child("matchConditions").index(index).child("expression");
            let text = condition["expression"].as_str().unwrap_or_default().trim();
            self.compile(&compiler, (text, path), BOOL, Extra::Asks);
        }
    }

    /// What both kinds of policies have; returns what their own expressions are compiled with.
    fn policy(&mut self, spec: &Value, path: &Path) -> Compiler {
        let mut compiler = Compiler::with_variables(spec["paramKind"].is_object());
        self.conditions(spec, path, &compiler);
        let count = items(spec, "variables").count();
        if count > VARIABLES_MAX {
            self.0.push(FieldError::too_many(path.child("variables"), count, VARIABLES_MAX));
        }
        for (index, variable) in items(spec, "variables").take(VARIABLES_MAX) {
            let text = |field: &str| variable[field].as_str().unwrap_or_default();
            if text("expression").trim().is_empty() {
                continue;
            }
            let compiled = compiler.variable(text("name"), text("expression"));
            self.told(&compiled.expression, path.child("variables").index(index).child("expression"));
        }
        // Without variables there is no `variables` either.
        if items(spec, "variables").next().is_none() { compiler.without_variables() } else { compiler }
    }

    fn validating(&mut self, spec: &Value, path: &Path) {
        let compiler = self.policy(spec, path);
        for (list, field, gives, extra) in [
            ("validations", "expression", BOOL, Extra::Asks),
            ("validations", "messageExpression", TEXT, Extra::Nothing),
            ("auditAnnotations", "valueExpression", TEXT_OR_NULL, Extra::Asks),
        ] {
            for (index, item) in items(spec, list) {
                let text = item[field].as_str().unwrap_or_default();
                self.compile(&compiler, (text, path.child(list).index(index).child(field)), gives, extra);
            }
        }
    }

    fn mutating(&mut self, spec: &Value, path: &Path) {
        let compiler = self.policy(spec, path);
        for (index, mutation) in items(spec, "mutations") {
            let (field, gives) = match mutation["patchType"].as_str() {
                Some("JSONPatch") => ("jsonPatch", PATCH),
                Some("ApplyConfiguration") => ("applyConfiguration", OBJECT),
                _ => continue,
            };
            let text = mutation[field]["expression"].as_str().unwrap_or_default();
            let path = path.child("mutations").index(index).child(field).child("expression");
            self.compile(&compiler, (text, path), gives, Extra::Mutates);
        }
    }
}
