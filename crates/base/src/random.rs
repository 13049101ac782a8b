//! The one source of randomness: a small generator (xoshiro256**) seeded from the OS in
//! production and from the root seed in the simulation. Not for keys or tokens: those come from
//! the crypto library.

use std::sync::{Arc, Mutex, PoisonError};

/// A shared, cheaply cloned random generator.
#[derive(Clone, Debug)]
pub struct Random(Arc<Mutex<[u64; 4]>>);

/// The alphabet of generated name suffixes: no vowels and no look-alikes, as upstream's.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

impl Random {
    /// Seeded by the operating system.
    pub fn system() -> Self {
        let mut seed = [0u8; 8];
        // SAFETY: the buffer has room for as many bytes as are asked for.
        let read = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
        assert_eq!(read, seed.len() as isize, "Linux gives so few bytes whole, getrandom(2) says");
        Self::seeded(u64::from_le_bytes(seed))
    }

    /// Seeded with `seed`: the same seed gives the same sequence.
    pub fn seeded(seed: u64) -> Self {
        let mut x = seed;
        let mut next = || {
            // splitmix64
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Random(Arc::new(Mutex::new([next(), next(), next(), next()])))
    }

    /// The next 64 random bits.
    pub fn next_u64(&self) -> u64 {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `0..bound`. `bound` must not be zero.
    pub fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "bound is a positive count");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A random (version 4) UUID, lower case with hyphens.
    pub fn uuid(&self) -> String {
        let (a, b) = (self.next_u64(), self.next_u64());
        let a = (a & 0xffff_ffff_ffff_0fff) | 0x4000;
        let b = (b & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xffff,
            b >> 48,
            b & 0xffff_ffff_ffff
        )
    }

    /// The random suffix of a generated name: five characters, as upstream's `generateName`.
    pub fn suffix(&self) -> String {
        (0..5).map(|_| SUFFIX_ALPHABET[self.below(SUFFIX_ALPHABET.len() as u64) as usize] as char).collect()
    }

    /// `duration` plus up to `fraction` of it.
    pub fn jitter(&self, duration: std::time::Duration, fraction: f64) -> std::time::Duration {
        let unit = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        duration.mul_f64(1.0 + unit * fraction)
    }

    /// An independent generator derived from this one.
    pub fn fork(&self) -> Self {
        Self::seeded(self.next_u64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_sequence() {
        let (a, b) = (Random::seeded(7), Random::seeded(7));
        assert_eq!(a.uuid(), b.uuid());
        assert_eq!(a.suffix(), b.suffix());
        assert_ne!(a.uuid(), Random::seeded(8).uuid());
    }

    #[test]
    fn uuids_are_version_4() {
        let uuid = Random::seeded(1).uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "4");
        assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"));
    }

    #[test]
    fn below_covers_its_range() {
        let random = Random::seeded(3);
        let mut seen = [false; 5];
        for _ in 0..200 {
            seen[random.below(5) as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
    }
}
