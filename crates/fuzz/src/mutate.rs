//! Inputs made of others, from a seed.

use crate::Target;
use skeg_base::Random;

/// Longer inputs are cut.
const LENGTH_MAX: usize = 4096;

/// Makes the same inputs for the same target and seed.
pub struct Mutator<'t> {
    random: Random,
    target: &'t Target,
    words: Vec<&'static [u8]>,
}

impl<'t> Mutator<'t> {
    pub fn new(target: &'t Target, seed: u64) -> Self {
        let is_separator = |c: &u8| !c.is_ascii_alphanumeric() && *c != b'_';
        let mut words: Vec<&'static [u8]> =
            target.seeds.iter().flat_map(|seed| seed.split_inclusive(is_separator)).collect();
        words.sort_unstable();
        words.dedup();
        Mutator { random: Random::seeded(seed), target, words }
    }

    fn below(&self, bound: usize) -> usize {
        self.random.below(bound.max(1) as u64) as usize
    }

    fn seed(&self) -> &'static [u8] {
        self.target.seeds[self.below(self.target.seeds.len())]
    }

    /// The next input: a seed with a few changes.
    pub fn input(&self) -> Vec<u8> {
        let mut input = self.seed().to_vec();
        for _ in 0..=self.below(6) {
            self.change(&mut input);
        }
        input.truncate(LENGTH_MAX);
        input
    }

    fn change(&self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let end = (at + self.below(16)).min(input.len());
        let word = || match self.words.len() {
            0 => b"".as_slice(),
            count => self.words[self.below(count)],
        };
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.random.next_u64() as u8,
            2 => drop(input.drain(at..end)),
            3 => drop(input.splice(at..end, word().iter().copied())),
            4 => drop(input.splice(at..at, word().iter().copied())),
            5 => {
                let part = input[at..end].to_vec();
                drop(input.splice(at..at, part.repeat(1 + self.below(40))));
            }
            6 => {
                let other = self.seed();
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                const DIGITS: [&str; 6] = ["0", "-1", "9223372036854775808", "1e999", "null", "0.1"];
                drop(input.splice(at..at, DIGITS[self.below(DIGITS.len())].bytes()));
            }
        }
    }
}
