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
        ("allowMultipleAllocations", Declared::new(Type::Bool, 1)),
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

#[cfg(test)]
mod tests {
    use super::ENV;

    /// The estimates that upstream's compiler of selectors makes of the same.
    #[test]
    fn selectors_have_upstreams_estimates() {
        let attribute = |rest: &str| format!("device.attributes[\"a.io\"]{rest}");
        let capacity = |rest: &str| format!("device.capacity[\"a.io\"]{rest}");
        let larger = capacity(".name.isGreaterThan(quantity(\"1Ki\"))");
        for (text, cost) in [
            (attribute(".none.isGreaterThan(quantity(\"0\"))"), 6),
            (attribute("[\"none\"].isGreaterThan(quantity(\"0\"))"), 6),
            ("\"a.io\" in device.attributes".into(), 3),
            ("device.driver == \"\"".into(), 2),
            ("device.driver == \"dra.example.com\"".into(), 4),
            (attribute(".name"), 4),
            (attribute("[\"name\"]"), 4),
            (format!("cel.bind(dra, {}, dra.name)", attribute("")), 15),
            (attribute(".name > 0"), 5),
            (attribute(".name == \"fish\""), 5),
            (attribute(".name.isGreaterThan(semver(\"0.0.1\"))"), 6),
            (attribute(".name.exists(x, x > 0)"), 5 + 6 * 64),
            (attribute(".names.all(x, x != \"\")"), 5 + 4 * 64),
            (larger.clone(), 6),
            (format!("\"name\" in {} && {larger}", capacity("")), 10),
            (format!("!(\"name\" in {}) || {larger}", capacity("")), 11),
            ("device.attributes.exists_one(x, x == \"dra.example.com\")".into(), 164),
            (attribute(".exists_one(x, x == \"services\")"), 133),
            (attribute(".services.split(\"example\").size() >= 2"), 19),
            (attribute(".services.matches(\"[^a]?sym\")"), 18),
            ("device.capacity.exists_one(x, x == \"dra.example.com\")".into(), 164),
            (capacity(".exists_one(x, x == \"memory\")"), 133),
            ("device.allowMultipleAllocations == true".into(), 3),
        ] {
            let program = ENV.compile(&text).unwrap_or_else(|issues| panic!("{issues}"));
            assert_eq!(program.estimated_cost().max, cost, "{text}");
        }
    }
}
