//! What makes a line of a language model a prompt.

use super::grammar::{Class, Grammar};

/// Why a line is no prompt.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// Characters that prompt files or tokenizers could misread.
    #[error("holds `{0}`; plain letters, digits, commas, full stops, apostrophes and hyphens are expected")]
    Character(char),
    /// Not one of the openings.
    #[error("does not begin with {0}")]
    Opening(String),
    /// Too few or too many words.
    #[error("has {found} words, not {least} to {most}")]
    Length {
        /// Its number of words.
        found: usize,
        /// Least number.
        least: usize,
        /// Greatest number.
        most: usize,
    },
    /// No word of the class it was asked for.
    #[error("names no word for the class {0}")]
    Class(String),
    /// No time of day, season or weather.
    #[error("names no time of day, season or weather")]
    Setting,
}

/// The lines of an answer without what language models put around them: thoughts, code fences, a JSON array, numbers and
/// bullets, quotes, the final full stop. Empty lines are left out.
pub fn lines(answer: &str) -> Vec<String> {
    let answer = answer.rsplit_once("</think>").map_or(answer, |(_, said)| said).trim();
    let inner = answer.strip_prefix("```").and_then(|text| text.strip_suffix("```"));
    let body = inner.map_or(answer, |text| text.trim_start_matches(|c: char| c.is_ascii_alphanumeric()));
    let raw = match serde_json::from_str::<Vec<String>>(body) {
        Ok(items) => items,
        Err(_) => body.lines().map(String::from).collect(),
    };
    raw.iter().map(|line| clean(line)).filter(|line| !line.is_empty()).collect()
}

fn clean(line: &str) -> String {
    let plain = line.replace(['\u{2019}', '\u{2018}'], "'").replace(['\u{2010}', '\u{2011}'], "-");
    let words: Vec<&str> = plain.split_whitespace().collect();
    let text = words.join(" ");
    let text = text.trim_start_matches(['-', '*', '\u{2022}']).trim_start();
    let text = without_number(text).trim();
    let wrapping = ['"', '\'', '`', '*', ',', '\u{201c}', '\u{201d}'];
    text.trim_matches(wrapping).trim_end_matches(['.', ' ']).trim_matches(wrapping).to_string()
}

/// `12. text`, `12) text`, `(12) text` → text.
fn without_number(text: &str) -> &str {
    let bare = text.strip_prefix('(').unwrap_or(text);
    let rest = bare.trim_start_matches(|c: char| c.is_ascii_digit());
    match rest.strip_prefix(['.', ')', ':']) {
        Some(after) if rest.len() < bare.len() => after,
        _ => text,
    }
}

/// Checks one cleaned line that was asked for as a prompt of `class`.
///
/// # Source
/// The properties of CLOUDS' published list: an English noun phrase that starts with one of three openings, 8 to 17 words, one
/// actor, object or place, and a time of day, a season or weather.
///
/// # Errors
/// The first fault.
pub fn check(line: &str, class: &Class, grammar: &Grammar) -> Result<(), Fault> {
    let strange = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, ' ' | ',' | '.' | '\'' | '-'));
    if let Some(c) = line.chars().find(strange) {
        return Err(Fault::Character(c));
    }
    let begins = |opening: &String| line.strip_prefix(opening.as_str()).is_some_and(|rest| rest.starts_with(' '));
    if !grammar.openings.iter().any(begins) {
        return Err(Fault::Opening(grammar.openings.join(", ")));
    }
    let found = line.split_whitespace().count();
    let (least, most) = grammar.words;
    if !(least..=most).contains(&found) {
        return Err(Fault::Length { found, least, most });
    }
    let tokens = tokens(line);
    if !names(&tokens, &class.words) {
        return Err(Fault::Class(class.name.clone()));
    }
    if names(&tokens, &grammar.settings) { Ok(()) } else { Err(Fault::Setting) }
}

/// Words in lower case, without punctuation.
pub(super) fn tokens(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_ascii_lowercase).collect()
}

/// True when one of the phrases occurs word by word.
fn names(line: &[String], phrases: &[String]) -> bool {
    phrases.iter().map(|phrase| tokens(phrase)).any(|phrase| line.windows(phrase.len().max(1)).any(|window| window == phrase))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(line: &str, class: &str) -> Option<String> {
        let grammar = Grammar::open("").unwrap();
        let class = grammar.class.iter().find(|known| known.name == class).unwrap();
        check(line, class, &grammar).err().map(|fault| fault.to_string())
    }

    #[test]
    fn prompts_pass_and_everything_else_has_a_reason() {
        for (line, class, part) in [
            ("A photo of a red bus crossing a bridge at dawn", "bus", None),
            ("A snapshot of two traffic lights, half hidden by fog, downtown", "traffic light", None),
            ("A picture of a jogger's shadow near a bus-stop on a winter day", "person", None),
            ("A picture of a jogger near a bus-stop on a winter day", "bus", None),
            ("Sure! Here are 20 prompts for you", "bus", Some("holds `!`")),
            (
                "Here are the prompts that you asked me for today",
                "bus",
                Some("does not begin with A photo, A picture, A snapshot"),
            ),
            ("a photo of a red bus crossing a bridge at dawn", "bus", Some("does not begin")),
            ("A photograph of a red bus crossing a bridge at dawn", "bus", Some("does not begin")),
            ("A photo of a bus at dawn", "bus", Some("has 7 words, not 8 to 17")),
            ("A photo of a red bus crossing a bridge at dawn while it rains on all of the people there", "bus", Some("20 words")),
            ("A photo of a business centre near a bridge at dawn", "bus", Some("names no word for the class bus")),
            ("A photo of a red bus crossing a very long bridge", "bus", Some("names no time of day")),
            ("A photo of a {identifier} bus crossing a bridge at dawn", "bus", Some("holds `{`")),
            ("A photo of a bus in front of a caf\u{e9} at dawn", "bus", Some("holds `\u{e9}`")),
        ] {
            match (fault(line, class), part) {
                (None, None) => {}
                (Some(found), Some(part)) if found.contains(part) => {}
                (found, _) => panic!("{line}: {found:?}, expected {part:?}"),
            }
        }
    }

    #[test]
    fn wrappings_of_answers_go() {
        let plain = ["A photo of a dog", "A picture of a cat's tail"];
        for answer in [
            "A photo of a dog.\nA picture of a cat's tail",
            "1. A photo of a dog\n\n2) \"A picture of a cat\u{2019}s tail.\"\r\n",
            "- **A photo of a dog**\n\u{2022}  A picture  of a cat's tail",
            "[\"A photo of a dog.\", \"A picture of a cat's tail\"]",
            "```json\n[\"A photo of a dog\",\n\"A picture of a cat's tail\"]\n```",
            "```\nA photo of a dog\nA picture of a cat's tail\n```",
            "<think>\nA photo of nothing\n</think>\n\n(1) A photo of a dog\n(2) A picture of a cat's tail",
        ] {
            assert_eq!(lines(answer), plain, "{answer}");
        }
        assert_eq!(lines("4x4 trucks\n\n ... \n"), ["4x4 trucks"]);
    }
}
