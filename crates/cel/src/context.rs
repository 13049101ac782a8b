//! What one evaluation may spend, and what it has spent.

use std::collections::BTreeMap;

use crate::error::Error;

/// The bounds of one evaluation.
#[derive(Clone, Copy)]
pub struct Limits<'i> {
    /// Cost units, counted as upstream counts them.
    pub cost: u64,
    /// Bytes that values made by the expression may take, all together.
    pub memory_bytes: u64,
    /// Steps of work that no cost accounts for, such as comparing deep objects.
    pub work: u64,
    /// Asked now and then; the evaluation ends once it answers true.
    pub interrupt: Option<&'i (dyn Fn() -> bool + Sync)>,
}

/// The cost that one call of a rule may have.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// The cost that all calls for one object or one policy binding may have.
pub const RUNTIME_BUDGET: u64 = 10_000_000;
/// The estimated cost that one rule of a definition may have.
pub const RULE_ESTIMATE_LIMIT: u64 = 10_000_000;
/// The estimated cost that all rules of a definition may have.
pub const DEFINITION_ESTIMATE_LIMIT: u64 = 100_000_000;
/// Bytes of a message that a `messageExpression` makes.
pub const MESSAGE_BYTES_MAX: usize = 5 * 1024;

impl Default for Limits<'_> {
    fn default() -> Self {
        Self { cost: PER_CALL_LIMIT, memory_bytes: 64 << 20, work: 100_000_000, interrupt: None }
    }
}

impl Limits<'_> {
    /// The bounds of one call of which `left` of a budget is left.
    pub fn within(left: u64) -> Self {
        Self { cost: left.min(PER_CALL_LIMIT), ..Self::default() }
    }
}

/// Patterns that one evaluation keeps; others are compiled again.
const PATTERNS_MAX: usize = 16;
/// Work between two questions whether to go on.
const INTERRUPT_EVERY: u64 = 10_000;

pub(crate) struct Context<'i> {
    limits: Limits<'i>,
    pub cost: u64,
    memory_bytes: u64,
    work: u64,
    asked_at: u64,
    patterns: BTreeMap<String, regex::Regex>,
}

impl<'i> Context<'i> {
    pub fn new(limits: Limits<'i>) -> Self {
        Self { limits, cost: 0, memory_bytes: 0, work: 0, asked_at: 0, patterns: BTreeMap::new() }
    }

    /// Adds to the cost.
    pub fn spend(&mut self, cost: u64) -> Result<(), Error> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limits.cost { Err(Error::cost()) } else { Ok(()) }
    }

    /// Adds steps of work.
    pub fn work(&mut self, steps: u64) -> Result<(), Error> {
        self.work = self.work.saturating_add(steps);
        if self.work > self.limits.work {
            return Err(Error::interrupted());
        }
        if self.work - self.asked_at >= INTERRUPT_EVERY {
            self.asked_at = self.work;
            if self.limits.interrupt.is_some_and(|interrupt| interrupt()) {
                return Err(Error::interrupted());
            }
        }
        Ok(())
    }

    /// Asks for memory before it is taken.
    pub fn take(&mut self, bytes: usize) -> Result<(), Error> {
        self.memory_bytes = self.memory_bytes.saturating_add(bytes as u64);
        if self.memory_bytes > self.limits.memory_bytes {
            return Err(Error::memory());
        }
        self.work(bytes as u64 / 16)
    }

    /// The compiled pattern.
    pub fn pattern(&mut self, pattern: &str) -> Result<regex::Regex, Error> {
        if let Some(regex) = self.patterns.get(pattern) {
            return Ok(regex.clone());
        }
        self.work(1_000 + 100 * pattern.len() as u64)?;
        let regex = crate::library::regex::compile(pattern).map_err(Error::new)?;
        if self.patterns.len() < PATTERNS_MAX {
            self.patterns.insert(pattern.to_owned(), regex.clone());
        }
        Ok(regex)
    }
}
