//! Resource amounts as whole numbers, quick to add and compare.
//! Upstream counterpart: `framework.Resource`.

use skeg_api::predicates::Resources;
use std::collections::BTreeMap;

/// CPU in thousandths, memory and ephemeral storage in bytes, others in units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
    /// Extended resources and huge pages; usually none.
    pub scalars: BTreeMap<String, i64>,
}

impl Amounts {
    pub fn of(resources: &Resources) -> Self {
        let mut amounts = Amounts::default();
        for (name, quantity) in resources {
            match name.as_str() {
                "cpu" => amounts.cpu_millis = quantity.millis(),
                "memory" => amounts.memory_bytes = quantity.units(),
                "ephemeral-storage" => amounts.ephemeral_bytes = quantity.units(),
                "pods" => {}
                _ => {
                    amounts.scalars.insert(name.clone(), quantity.units());
                }
            }
        }
        amounts
    }

    pub fn is_zero(&self) -> bool {
        self.cpu_millis == 0 && self.memory_bytes == 0 && self.ephemeral_bytes == 0 && self.scalars.is_empty()
    }

    pub fn add(&mut self, other: &Amounts) {
        self.combine(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Amounts) {
        self.combine(other, i64::saturating_sub);
    }

    fn combine(&mut self, other: &Amounts, with: fn(i64, i64) -> i64) {
        self.cpu_millis = with(self.cpu_millis, other.cpu_millis);
        self.memory_bytes = with(self.memory_bytes, other.memory_bytes);
        self.ephemeral_bytes = with(self.ephemeral_bytes, other.ephemeral_bytes);
        for (name, amount) in &other.scalars {
            let total = self.scalars.entry(name.clone()).or_insert(0);
            *total = with(*total, *amount);
            if *total == 0 {
                self.scalars.remove(name);
            }
        }
    }
}
