//! Prompt files: one prompt a line, `#` comments, holes as in [`super::fill`].

use super::template::{ClassSet, fill, has_class};
use crate::base::{Error, Result};
use crate::io::text::read_text;
use std::path::Path;

/// Files that come with the program, by name.
pub const SHIPPED: [(&str, &str); 4] = [
    ("scene.txt", include_str!("../../prompts/scene.txt")),
    ("things.txt", include_str!("../../prompts/things.txt")),
    ("things-stuff.txt", include_str!("../../prompts/things-stuff.txt")),
    ("street.txt", include_str!("../../prompts/street.txt")),
];

/// The templates of a prompt file.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptFile {
    /// Path, or the name of a shipped file.
    pub origin: String,
    /// Line numbers and templates.
    lines: Vec<(usize, String)>,
}

impl PromptFile {
    /// Reads the file at `path`, or `prompts.txt` in the folder of that name; where there is neither, the shipped file.
    ///
    /// # Errors
    /// Neither a file nor a shipped name, or a file without prompts.
    pub fn open(path: &str) -> Result<Self> {
        let inside = Path::new(path).join("prompts.txt");
        if inside.is_file() {
            return Self::parse(&inside.display().to_string(), &read_text(&inside)?);
        }
        if Path::new(path).exists() {
            return Self::parse(path, &read_text(Path::new(path))?);
        }
        match SHIPPED.iter().find(|(name, _)| *name == path || name.strip_suffix(".txt") == Some(path)) {
            Some((name, text)) => Self::parse(&format!("{name} (shipped)"), text),
            None => {
                let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
                let next = "write one prompt a line into a file of that name, or name a shipped one";
                Err(Error::data(path, format!("a prompt file or one of {}", names.join(", ")), "no such file", next))
            }
        }
    }

    /// Parses the text of a prompt file.
    ///
    /// # Errors
    /// No prompt on any line.
    pub fn parse(origin: &str, text: &str) -> Result<Self> {
        let lines: Vec<(usize, String)> = text
            .lines()
            .enumerate()
            .map(|(i, line)| (i + 1, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(number, line)| (number, line.to_string()))
            .collect();
        if lines.is_empty() {
            let found = match text.lines().count() {
                0 => "an empty file".to_string(),
                count => format!("only empty lines and comments in lines 1 to {count}"),
            };
            return Err(Error::data(origin, "one prompt a line", found, "add a line such as `a photo of {identifier} cars`"));
        }
        Ok(Self { origin: origin.into(), lines })
    }

    /// The prompts: every line once, or once per class where it has the hole `{class}`.
    ///
    /// # Errors
    /// A wrong hole, with its line number.
    pub fn expand(&self, identifier: &str, classes: ClassSet) -> Result<Prompts> {
        let mut prompts = Vec::new();
        for (number, template) in &self.lines {
            let at_line = |e: Error| {
                Error::data(&self.origin, "prompts with known holes", format!("line {number}: {e}"), "correct that line")
            };
            let nouns = classes.nouns();
            if has_class(template) && !nouns.is_empty() {
                for noun in nouns {
                    prompts.push(fill(template, identifier, Some(noun)).map_err(at_line)?);
                }
            } else {
                prompts.push(fill(template, identifier, None).map_err(at_line)?);
            }
        }
        Ok(Prompts(prompts))
    }
}

/// Finished prompts; never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts(Vec<String>);

impl Prompts {
    /// Number k and text of the prompt for image `j`: k = j mod n.
    ///
    /// # Source
    /// DATUM's generator cycles through its class list.
    pub fn of_image(&self, j: u64) -> (usize, &str) {
        let k = (j % self.0.len() as u64) as usize;
        (k, &self.0[k])
    }

    /// All prompts in order.
    pub fn all(&self) -> &[String] {
        &self.0
    }

    /// Number n of prompts.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// False: a prompt file without prompts is an error.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_files_are_found_by_name_and_a_local_file_wins() {
        let things = PromptFile::open("things.txt").unwrap().expand("sks", ClassSet::None).unwrap();
        assert_eq!(things.len(), 10);
        assert_eq!(things.of_image(0), (0, "a photo of sks traffic lights"));
        assert_eq!(things.of_image(2974), (4, "a photo of sks cars"));
        assert_eq!(PromptFile::open("things-stuff").unwrap().expand("sks", ClassSet::None).unwrap().len(), 19);
        // The lists of nouns and the files say the same.
        let template = PromptFile::parse("template", "a photo of {identifier} {class}").unwrap();
        let stuff = PromptFile::open("things-stuff.txt").unwrap().expand("sks", ClassSet::None).unwrap();
        assert_eq!(template.expand("sks", ClassSet::ThingsStuff).unwrap(), stuff);
        assert_eq!(template.expand("sks", ClassSet::Things).unwrap(), things);

        let dir = tempfile::tempdir().unwrap();
        let local = dir.path().join("things.txt");
        std::fs::write(&local, "\u{feff}# mine\r\n\r\n  a street  \r\n").unwrap();
        let local = PromptFile::open(local.to_str().unwrap()).unwrap().expand("sks", ClassSet::Things).unwrap();
        assert_eq!(local.all(), ["a street"]);
    }

    #[test]
    fn every_shipped_file_says_where_it_comes_from() {
        for (name, text) in SHIPPED {
            assert!(text.contains("# origin: ") && text.contains("# licence: "), "{name}");
        }
    }

    #[test]
    fn images_are_spread_evenly() {
        let prompts = PromptFile::open("things").unwrap().expand("sks", ClassSet::None).unwrap();
        let mut counts = [0; 10];
        (0..2975).for_each(|j| counts[prompts.of_image(j).0] += 1);
        assert_eq!(counts, [298, 298, 298, 298, 298, 297, 297, 297, 297, 297]);
    }

    #[test]
    fn files_without_prompts_and_wrong_lines_are_errors() {
        for (text, part) in [("", "an empty file"), ("# one\n\n# two\n", "lines 1 to 3")] {
            let error = PromptFile::parse("p.txt", text).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(part), "{error}");
        }
        let file = PromptFile::parse("p.txt", "# header\nfine\na {thing}\n").unwrap();
        assert!(file.expand("sks", ClassSet::Things).unwrap_err().to_string().contains("line 3"));
        let file = PromptFile::parse("p.txt", "a {class}").unwrap();
        assert!(file.expand("sks", ClassSet::None).unwrap_err().to_string().contains("line 1"));
        let message = PromptFile::open("nowhere.txt").unwrap_err().to_string();
        assert!(message.contains("things-stuff.txt"), "{message}");
    }
}
