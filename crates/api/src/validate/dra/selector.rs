//! Expressions that select devices.
//! Upstream counterpart: `k8s.io/dynamic-resource-allocation/cel`.

use super::{At, DOMAIN_BYTES_MAX, Errors, FieldError, ID_BYTES_MAX, slice};
use crate::field::ErrorKind;
use skeg_cel::{Declared, Env, Type};
use std::sync::{Arc, LazyLock};

const EXPRESSION_BYTES_MAX: usize = 10 * 1024;
/// What an evaluation may cost, by the estimate.
const COST_MAX: u64 = 1_000_000;
const DRIVER_BYTES_MAX: u64 = 63;

/// Where selectors are compiled: a `device` with its driver, attributes and capacity by domain and name.
static ENV: LazyLock<Env> = LazyLock::new(|| {
    let by_name = |leaf: Declared| {
        let inner = Declared::named(leaf, ID_BYTES_MAX as u64, slice::ATTRIBUTES_MAX as u64);
        Declared::named(inner, DOMAIN_BYTES_MAX as u64, slice::ATTRIBUTES_MAX as u64)
    };
    let attribute = Declared::new(Type::Dyn, slice::ATTRIBUTE_BYTES_MAX as u64);
    let quantity = Declared::new(Type::opaque("kubernetes.Quantity"), 0);
    let fields = [
        ("allowMultipleAllocations", Declared::new(Type::Bool, 0)),
        ("attributes", by_name(attribute)),
        ("capacity", by_name(quantity)),
        ("driver", Declared::new(Type::String, DRIVER_BYTES_MAX)),
    ];
    let device = Declared::object("kubernetes.DRADevice", fields.map(|(name, of)| (name.to_owned(), of)));
    Env::new().with_bindings().with_declared("device", Arc::new(device))
});

/// Checks the expression of a selector: its length, its types, its cost.
pub(super) fn check(cel: &At<'_>, errors: &mut Errors) {
    let (text, path) = (cel.str("expression"), cel.at("expression"));
    if text.len() > EXPRESSION_BYTES_MAX {
        errors.push(FieldError::too_long(path, EXPRESSION_BYTES_MAX));
        return;
    }
    match ENV.compile(text) {
        Err(issues) if issues.instantiation => {
            let detail = format!("program instantiation failed: {issues}");
            errors.push(FieldError { kind: ErrorKind::Internal, path, value: None, detail });
        }
        Err(issues) => errors.invalid(path, text, format!("compilation failed: {issues}")),
        Ok(program) => match program.value_type() {
            Type::Bool | Type::Dyn if program.estimated_cost().max > COST_MAX => {
                errors.forbidden(path, "too complex, exceeds cost limit");
            }
            Type::Bool | Type::Dyn => {}
            other => {
                let why = format!("must evaluate to bool or the unknown type, not {other}");
                errors.invalid(path, text, why);
            }
        },
    }
}
