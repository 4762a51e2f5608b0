//! A grammar of prompts: what a prompt must name, and sentences that do.

use crate::base::{Error, Result, Rng};
use crate::io::text::read_text;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The grammar that comes with the program: 19 classes of street scenes.
const STREETS: &str = include_str!("../../prompts/street-grammar.toml");
/// Street scenes in the words of the small Stable Diffusion inside the program.
const NANO: (&str, &str) = ("nano", include_str!("../../prompts/nano-grammar.toml"));
/// Holes within holes, at most.
const MAX_DEPTH: usize = 16;
/// Characters of the longest sentence that rules may make.
const MAX_LENGTH: usize = 4096;
/// Sentences drawn for one of the right length.
const MAX_DRAWS: usize = 20;

/// Words by which prompts are recognised, and rules that make some.
///
/// In rules, `{name}` stands for one of the alternatives of the rule `name`; `{opening}` and `{subject}` for an opening and
/// for a subject of the class that is asked for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grammar {
    /// Changes with every change of the file.
    pub version: u32,
    /// How every prompt begins.
    pub openings: Vec<String>,
    /// Least and greatest number of words of a prompt.
    pub words: (usize, usize),
    /// Times of day, seasons and weather; a prompt names one.
    pub settings: Vec<String>,
    /// What prompts are about, in train-id order.
    pub class: Vec<Class>,
    /// Alternatives by name; `prompt` is where sentences start.
    rules: BTreeMap<String, Vec<String>>,
}

/// One class of a [`Grammar`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Name of the class.
    pub name: String,
    /// A prompt of the class names one of these.
    pub words: Vec<String>,
    /// Alternatives for `{subject}`.
    subjects: Vec<String>,
}

impl Grammar {
    /// Reads a grammar file; an empty path gives the shipped one for streets, `nano` that in words of the small Stable Diffusion.
    ///
    /// # Errors
    /// A missing file, text that is not such a grammar, holes without a rule, rules that never end.
    pub fn open(path: &str) -> Result<Self> {
        let (text, origin) = match path {
            "" => (STREETS.to_string(), "street-grammar.toml (shipped)"),
            name if name == NANO.0 => (NANO.1.to_string(), "nano-grammar.toml (shipped)"),
            path => (read_text(Path::new(path))?, path),
        };
        let wrong = |found: String| Error::data(origin, "a grammar of prompts", found, "correct that place of the file");
        let grammar: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim().into()))?;
        grammar.check().map_err(wrong)?;
        Ok(grammar)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let least = |what: &str, there: bool| there.then_some(()).ok_or_else(|| format!("no {what}"));
        least("`openings`", !self.openings.is_empty())?;
        least("`[[class]]`", !self.class.is_empty())?;
        least("rule `prompt`", self.rules.contains_key("prompt"))?;
        for class in &self.class {
            least(&format!("words of the class `{}`", class.name), !class.words.is_empty())?;
            for text in self.alternatives("subject", class).unwrap_or_default() {
                self.check_text(text, class)?;
            }
            self.check_text("{prompt}", class)?;
            let longest = self.longest("prompt", class, &mut BTreeMap::new());
            if longest > MAX_LENGTH {
                return Err(format!("rules that make sentences of up to {longest} characters, more than {MAX_LENGTH}"));
            }
        }
        Ok(())
    }

    /// Every way through the holes of `text` ends. Each alternative is followed once a depth, however many ways lead to it.
    fn check_text(&self, text: &str, class: &Class) -> std::result::Result<(), String> {
        let mut level = BTreeSet::from([text.to_string()]);
        for _ in 0..MAX_DEPTH {
            let mut next = BTreeSet::new();
            for text in &level {
                for name in holes(text)? {
                    let alternatives = self.alternatives(name, class).filter(|texts| !texts.is_empty());
                    next.extend(alternatives.ok_or_else(|| format!("`{{{name}}}` without a rule"))?.iter().cloned());
                }
            }
            if next.is_empty() {
                return Ok(());
            }
            level = next;
        }
        Err(format!("rules that lead back to themselves, or are nested deeper than {MAX_DEPTH}"))
    }

    /// Characters of the longest sentence by the rule `name`, at most. Rules have to end ([`Self::check_text`]).
    fn longest<'a>(&'a self, name: &'a str, class: &'a Class, known: &mut BTreeMap<&'a str, usize>) -> usize {
        if let Some(length) = known.get(name) {
            return *length;
        }
        let mut longest = 0;
        for text in self.alternatives(name, class).unwrap_or_default() {
            let inner = holes(text).unwrap_or_default();
            let inner = inner.into_iter().map(|hole| self.longest(hole, class, known));
            longest = longest.max(inner.fold(text.len(), usize::saturating_add));
        }
        known.insert(name, longest);
        longest
    }

    fn alternatives<'a>(&'a self, name: &str, class: &'a Class) -> Option<&'a [String]> {
        match name {
            "opening" => Some(&self.openings),
            "subject" => Some(&class.subjects),
            name => self.rules.get(name).map(Vec::as_slice),
        }
    }

    /// A sentence about the class number `class`, of a permitted length if one turns up soon.
    ///
    /// # Randomness
    /// One draw for each hole, from left to right; again while the sentence is too short or too long, but a few times only.
    pub fn sentence(&self, class: usize, rng: &mut Rng) -> String {
        let mut sentence = String::new();
        for _ in 0..MAX_DRAWS {
            sentence = self.fill("prompt", &self.class[class], rng);
            if (self.words.0..=self.words.1).contains(&sentence.split_whitespace().count()) {
                break;
            }
        }
        sentence
    }

    /// One of the alternatives of the rule `name` with its holes filled; empty without such a rule.
    pub fn fill(&self, name: &str, class: &Class, rng: &mut Rng) -> String {
        let Some(alternatives) = self.alternatives(name, class).filter(|texts| !texts.is_empty()) else { return String::new() };
        let mut filled = String::new();
        let mut rest = alternatives[rng.below(alternatives.len())].as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let (hole, after) = after.split_once('}').unwrap_or((after, ""));
            filled.push_str(before);
            let inner = self.fill(hole, class, rng);
            fit_article(&mut filled, &inner);
            filled.push_str(&inner);
            rest = after;
        }
        filled + rest
    }
}

/// The names in braces.
fn holes(text: &str) -> std::result::Result<Vec<&str>, String> {
    let unpaired = || format!("a brace without partner in `{text}`");
    let mut names = Vec::new();
    let mut parts = text.split('{');
    if parts.next().is_some_and(|first| first.contains('}')) {
        return Err(unpaired());
    }
    for part in parts {
        let (name, after) = part.split_once('}').ok_or_else(unpaired)?;
        if after.contains('}') {
            return Err(unpaired());
        }
        names.push(name);
    }
    Ok(names)
}

/// Turns a final `a ` before a vowel into `an `.
fn fit_article(before: &mut String, next: &str) {
    let article = before.as_str() == "a " || before.ends_with(" a ");
    if article && next.starts_with(['a', 'e', 'i', 'o', 'u']) {
        before.insert(before.len() - 1, 'n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        version = 1
        openings = ["A photo"]
        words = [2, 9]
        settings = ["dawn"]
        class = [{ name = "car", words = ["car"], subjects = ["a {color} car"] }]
        [rules]
        prompt = ["{opening} of {subject} at dawn"]
        color = ["orange"]
    "#;

    fn open(text: &str) -> Result<Grammar> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grammar.toml");
        std::fs::write(&path, text).unwrap();
        Grammar::open(path.to_str().unwrap())
    }

    #[test]
    fn holes_are_filled_and_articles_fit() {
        let sentence = open(SMALL).unwrap().sentence(0, &mut Rng::stream(0, "test", &[]));
        assert_eq!(sentence, "A photo of an orange car at dawn");
    }

    #[test]
    fn the_shipped_grammar_has_the_classes_of_cityscapes() {
        let grammar = Grammar::open("").unwrap();
        let dataset: toml::Table = toml::from_str(include_str!("../../datasets/cityscapes.toml")).unwrap();
        let names: Vec<&str> = grammar.class.iter().map(|class| class.name.as_str()).collect();
        assert_eq!(names, dataset["classes"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect::<Vec<_>>());
        let header = STREETS.lines().find_map(|line| line.strip_prefix("# version: ")).unwrap();
        assert_eq!(header, grammar.version.to_string());
        assert!(STREETS.contains("# origin: ") && STREETS.contains("# licence: "));
    }

    #[test]
    fn broken_grammars_are_named() {
        // Four holes in each of ten rules: a million words.
        let nested: String = (0..9).map(|i| format!("a{i} = [\"{}\"]\n", format!("{{a{}}}", i + 1).repeat(4))).collect();
        for (from, to, part) in [
            ("a {color} car", "a {colour} car", "`{colour}` without a rule"),
            ("[\"orange\"]", "[\"dark {color}\"]", "lead back to themselves"),
            ("[\"orange\"]", "[]", "`{color}` without a rule"),
            ("a {color} car", "a {color car", "a brace without partner"),
            ("a {color} car", "a color} car", "a brace without partner"),
            ("prompt =", "prompts =", "no rule `prompt`"),
            ("words = [\"car\"]", "words = []", "no words of the class `car`"),
            ("version = 1", "", "version"),
            ("[\"orange\"]", &format!("[\"{}\"]\n{nested}\na9 = [\"many\"]", "{a0}{a0}{a0}{a0}"), "sentences of up to"),
        ] {
            let error = open(&SMALL.replace(from, to)).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(part), "{to}: {error}");
        }
    }
}
