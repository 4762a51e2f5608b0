//! Prompts with holes: `{identifier}` for the personalised word, `{class}` for a class noun.

use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};

/// The identifier that DATUM trains: a rare token of CLIP's vocabulary.
pub const DEFAULT_IDENTIFIER: &str = "sks";

/// Thing classes as nouns, in the order in which DATUM's generator cycles through them.
pub const THINGS: [&str; 10] =
    ["traffic lights", "traffic signs", "persons", "riders", "cars", "trucks", "trains", "buses", "motorcycles", "bicycles"];

/// Stuff classes as nouns. DATUM does not publish its own; these are the remaining Cityscapes classes.
pub const STUFF: [&str; 9] = ["roads", "sidewalks", "buildings", "walls", "fences", "poles", "vegetation", "terrain", "sky"];

/// Which nouns fill `{class}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassSet {
    /// No class: prompts must not have the hole.
    None,
    /// The ten thing classes.
    #[default]
    Things,
    /// Things, then stuff.
    ThingsStuff,
}

impl ClassSet {
    /// The nouns, in order.
    pub fn nouns(self) -> Vec<&'static str> {
        match self {
            Self::None => Vec::new(),
            Self::Things => THINGS.to_vec(),
            Self::ThingsStuff => [&THINGS[..], &STUFF[..]].concat(),
        }
    }
}

/// True when a template has the hole `{class}`.
pub(super) fn has_class(template: &str) -> bool {
    template.contains("{class}")
}

/// Fills the holes of a template.
///
/// # Errors
/// A hole of another name, a brace without partner, `{class}` without a class.
///
/// # Example
/// ```
/// let prompt = datum::prompting::fill("a photo of {identifier} {class}", "sks", Some("cars")).unwrap();
/// assert_eq!(prompt, "a photo of sks cars");
/// ```
pub fn fill(template: &str, identifier: &str, class: Option<&str>) -> Result<String> {
    let wrong = |what: String| Error::Usage(format!("{what} in the prompt `{template}`; holes are {{identifier}} and {{class}}"));
    let mut filled = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        filled.push_str(&rest[..at]);
        let hole = rest[at..].strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, after) = hole.ok_or_else(|| wrong("a brace without partner".into()))?;
        filled.push_str(match name {
            "identifier" => identifier,
            "class" => class.ok_or_else(|| wrong("{class} without a class set".into()))?,
            other => return Err(wrong(format!("an unknown hole {{{other}}}"))),
        });
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_of_the_prompt_ablation_can_be_asked_for() {
        // inference prompt, class set, number of prompts, the fifth of them (or the only one)
        let rows = [
            ("a photo of a {identifier} urban scene", ClassSet::None, 1, "a photo of a sks urban scene"),
            ("a photo of a {identifier} {class}", ClassSet::Things, 10, "a photo of a sks cars"),
            ("a photo of a {identifier} {class}", ClassSet::ThingsStuff, 19, "a photo of a sks cars"),
            (
                "a photo of a {identifier} {class} seen from the dash cam",
                ClassSet::Things,
                10,
                "a photo of a sks cars seen from the dash cam",
            ),
            ("a photo of {identifier} scene from a car", ClassSet::None, 1, "a photo of sks scene from a car"),
            ("a photo of a {identifier} {class}", ClassSet::Things, 10, "a photo of a sks cars"),
            (
                "a photo of {class} in a {identifier} scene from a car",
                ClassSet::Things,
                10,
                "a photo of cars in a sks scene from a car",
            ),
        ];
        for (template, classes, count, expected) in rows {
            let file = crate::prompting::PromptFile::parse("row", template).unwrap();
            let prompts = file.expand("sks", classes).unwrap();
            assert_eq!(prompts.len(), count);
            assert_eq!(prompts.of_image(4).1, expected);
        }
    }

    #[test]
    fn wrong_holes_are_named() {
        for (template, part) in
            [("a {thing}", "{thing}"), ("a {class", "without partner"), ("a } b", "without partner"), ("{class}", "class set")]
        {
            let message = fill(template, "sks", None).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
