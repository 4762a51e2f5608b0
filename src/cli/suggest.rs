//! "Did you mean".

/// The candidate most like `name`, when one is close enough to be meant.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.into_iter().map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

/// ``did you mean `X`?``, or else the list of candidates.
pub fn hint<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(candidate) = closest(name, candidates.clone()) {
        return format!("did you mean `{candidate}`?");
    }
    let known: Vec<String> = candidates.into_iter().map(|candidate| format!("`{candidate}`")).collect();
    if known.is_empty() { "remove it".into() } else { format!("use one of {}", known.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_suggested_and_strangers_listed() {
        assert_eq!(hint("stpes", ["steps", "seed"]), "did you mean `steps`?");
        assert_eq!(hint("zebra", ["steps", "seed"]), "use one of `steps`, `seed`");
        assert_eq!(hint("zebra", []), "remove it");
    }
}
