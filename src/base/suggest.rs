//! Help with misspelt names.

/// Hint for an unknown `word`: the nearest of `known` if it is near, else all of them. Meant to follow a full sentence.
///
/// # Example
/// ```
/// assert_eq!(datum::base::suggest::hint("iamges", &["images", "labels"]), "did you mean `images`?");
/// assert_eq!(datum::base::suggest::hint("zebra", &["images", "labels"]), "known: images, labels");
/// ```
pub fn hint(word: &str, known: &[impl AsRef<str>]) -> String {
    let distance = |name: &str| strsim::damerau_levenshtein(&word.to_lowercase(), &name.to_lowercase());
    let nearest = known.iter().map(AsRef::as_ref).min_by_key(|name| distance(name));
    match nearest {
        Some(name) if distance(name) <= (word.len().max(name.len()) / 3).max(1) => format!("did you mean `{name}`?"),
        _ => format!("known: {}", known.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")),
    }
}
