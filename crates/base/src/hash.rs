//! Hash maps whose order depends only on their content and history, so that a simulated run is
//! repeatable. [`set_hash_seed`] keys them per process in production, against keys chosen
//! by an attacker.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

static SEED: AtomicU64 = AtomicU64::new(0x5eed_5ce9_0000_0001);

/// Keys every map made from now on. Call it once, first thing in `main`.
pub fn set_hash_seed(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
}

/// The hasher of [`HashMap`] and [`HashSet`].
#[derive(Clone, Copy, Debug)]
pub struct Keyed(u64);

impl Default for Keyed {
    fn default() -> Self {
        Keyed(SEED.load(Ordering::Relaxed))
    }
}

impl BuildHasher for Keyed {
    type Hasher = foldhash::fast::FoldHasher<'static>;

    fn build_hasher(&self) -> Self::Hasher {
        foldhash::fast::FoldHasher::with_seed(self.0, foldhash::SharedSeed::global_fixed())
    }
}

pub type HashMap<K, V> = hashbrown::HashMap<K, V, Keyed>;
pub type HashSet<K> = hashbrown::HashSet<K, Keyed>;

pub fn new_map<K, V>() -> HashMap<K, V> {
    HashMap::with_hasher(Keyed::default())
}

pub fn new_set<K>() -> HashSet<K> {
    HashSet::with_hasher(Keyed::default())
}

/// A 64-bit hash that is the same in every process and version: for names (the pod template
/// hash), never for tables.
pub fn hash_of(value: &impl Hash) -> u64 {
    // FNV-1a: tiny and fixed for all time.
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    value.hash(&mut hasher);
    hasher.finish()
}
