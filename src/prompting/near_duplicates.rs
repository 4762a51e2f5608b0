//! Prompts that say the same in nearly the same words.

use super::validate::tokens;
use std::collections::{BTreeMap, BTreeSet};

/// Words without content of their own, and those of every opening.
const STOP_WORDS: &[&str] = &[
    "a", "an", "the", "of", "in", "on", "at", "by", "to", "with", "and", "near", "from", "for", "under", "over", "is", "its",
    "photo", "picture", "snapshot", "taken", "beside", "next", "during",
];

/// Prompts so far, by their content words.
///
/// Two prompts are near-duplicates when the Jaccard index of their sets of content words is at least the threshold:
/// |A ∩ B| / |A ∪ B|.
#[derive(Debug, Clone)]
pub struct NearDuplicates {
    threshold: f64,
    /// Content word → numbers of the prompts that have it.
    having: BTreeMap<String, Vec<usize>>,
    /// Number of content words of each prompt.
    sizes: Vec<usize>,
}

impl NearDuplicates {
    /// None so far. `threshold` from 0 (everything that shares a word) to 1 (the same words).
    pub fn new(threshold: f64) -> Self {
        Self { threshold, having: BTreeMap::new(), sizes: Vec::new() }
    }

    /// Adds a prompt, unless an earlier one is nearly the same.
    ///
    /// # Errors
    /// The number of the most similar earlier prompt (of equals the first).
    pub fn insert(&mut self, prompt: &str) -> Result<(), usize> {
        let words: BTreeSet<String> = tokens(prompt).into_iter().filter(|word| !STOP_WORDS.contains(&word.as_str())).collect();
        let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
        for other in words.iter().filter_map(|word| self.having.get(word)).flatten() {
            *shared.entry(*other).or_default() += 1;
        }
        let similar = |(other, both): (usize, usize)| (both as f64 / (words.len() + self.sizes[other] - both) as f64, other);
        let nearest = shared.into_iter().map(similar).max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        if let Some((index, other)) = nearest.filter(|(index, _)| *index >= self.threshold) {
            debug_assert!(index <= 1.0);
            return Err(other);
        }
        for word in &words {
            self.having.entry(word.clone()).or_default().push(self.sizes.len());
        }
        self.sizes.push(words.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_other_word_is_not_enough() {
        let mut seen = NearDuplicates::new(0.6);
        assert_eq!(seen.insert("A photo of a red bus crossing a stone bridge at dawn"), Ok(()));
        assert_eq!(seen.insert("A picture of the red bus crossing a stone bridge at dusk"), Err(0));
        assert_eq!(seen.insert("A picture of a blue tram under a stone bridge at dusk"), Ok(()));
        // 5 of 7 content words are those of prompt 0, 2 of 9 those of prompt 1: the nearest counts.
        assert_eq!(seen.insert("A red bus crossing a stone bridge, tram"), Err(0));
        assert_eq!(seen.insert("BRIDGE stone Dawn-crossing, bus: red."), Err(0), "order, case and punctuation do not count");
        assert_eq!(seen.insert("a tram"), Ok(()));
    }
}
