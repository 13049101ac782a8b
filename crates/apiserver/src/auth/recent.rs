//! A bounded memory of what was looked at lately.

use skeg_base::{HashMap, new_map};
use std::hash::Hash;

/// Keeps at most `2 * generation_max` entries: when one generation is full, the one before it is
/// forgotten as a whole. An entry that is used moves to the newer generation.
pub struct Recent<K, V> {
    generation_max: usize,
    new: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq + Clone, V: Clone> Recent<K, V> {
    pub fn new(generation_max: usize) -> Self {
        Recent { generation_max, new: new_map(), old: new_map() }
    }

    pub fn get<Q>(&mut self, key: &Q) -> Option<V>
    where
        Q: Hash + hashbrown::Equivalent<K> + ?Sized,
    {
        if let Some(value) = self.new.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    pub fn insert(&mut self, key: K, value: V) {
        if self.new.len() >= self.generation_max {
            self.old = std::mem::replace(&mut self.new, new_map());
        }
        self.new.insert(key, value);
    }

    pub fn remove<Q>(&mut self, key: &Q)
    where
        Q: Hash + hashbrown::Equivalent<K> + ?Sized,
    {
        self.new.remove(key);
        self.old.remove(key);
    }

    pub fn len(&self) -> usize {
        self.new.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bound_and_keeps_what_is_used() {
        let mut recent = Recent::new(4);
        for i in 0..100 {
            recent.insert(i, i);
            assert_eq!(recent.get(&0), Some(0), "after {i}");
            assert!(recent.len() <= 8);
        }
        assert_eq!(recent.get(&50), None);
    }
}
