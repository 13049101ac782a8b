//! Who looks once more at an object that others changed after them.
//! Upstream counterpart: `k8s.io/apiserver/pkg/admission/reinvocation`.

use serde_json::Value;
use std::collections::BTreeSet;

/// How far the mutation of one write has come.
#[derive(Default)]
pub struct Reinvocation {
    /// Another round was asked for.
    pub wanted: bool,
    /// This is it.
    pub is_again: bool,
    pub policies: Invoked,
    pub webhooks: Invoked,
}

/// What one plugin has asked.
#[derive(Default)]
pub struct Invoked {
    /// Those who were asked and want to see later changes.
    interested: BTreeSet<String>,
    /// Those of them to ask again.
    due: BTreeSet<String>,
    /// The object when the last one had been asked.
    seen: Option<Value>,
}

impl Invoked {
    /// A plugin begins: what changed in the first round after it was done is for all of its own.
    pub fn begin(&mut self, is_again: bool, object: Option<&Value>) {
        if is_again && object != self.seen.as_ref() {
            self.changed();
        }
    }

    /// Something has changed after these were asked.
    pub fn changed(&mut self) {
        self.due.append(&mut self.interested);
    }

    pub fn is_due(&self, key: &str) -> bool {
        self.due.contains(key)
    }

    pub fn interested(&mut self, key: String) {
        self.interested.insert(key);
    }

    pub fn end(&mut self, object: Option<&Value>) {
        self.seen = object.cloned();
    }
}
