//! Who writes prompts, and what it is asked.

use super::grammar::Grammar;
use crate::base::progress::Progress;
use crate::base::{Result, Rng};
use serde::{Deserialize, Serialize};

/// The text that is sent to language models; see its header.
const REQUEST: &str = include_str!("../../prompts/street-request.txt");
/// Settings that a request gives as examples.
const HINTS: usize = 5;

/// One request for prompts of one class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Number of the request within the run.
    pub number: u64,
    /// Class of the grammar.
    pub class: usize,
    /// Prompts wanted.
    pub lines: usize,
    /// Seed of the run.
    pub seed: u64,
    /// What the model is told about its task.
    pub system: String,
    /// What it is asked.
    pub user: String,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// True when the writer was stopped in the middle of it.
    pub cut: bool,
    /// Tokens of request and answer together; 0 for what costs nothing.
    pub tokens: u64,
}

/// Something that answers requests with text, one prompt a line.
pub trait Writer {
    /// Its name in manifests.
    fn name(&self) -> String;

    /// What its answers depend on beside its name and the request: how text is drawn.
    fn sampling(&self) -> String;

    /// Answers `requests` in any order: each answer goes to `heard` with the position of its request as soon as it is there.
    ///
    /// # Errors
    /// What `heard` returns; a writer that cannot go on; an interruption.
    fn ask(
        &mut self,
        requests: &[Request],
        heard: &mut dyn FnMut(usize, Answer) -> Result<()>,
        progress: &dyn Progress,
    ) -> Result<()>;
}

/// Version of the text that is sent to language models.
pub fn request_version() -> &'static str {
    REQUEST.lines().find_map(|line| line.strip_prefix("# version: ")).unwrap_or("unknown")
}

impl Request {
    /// The request number `number` of a run: `lines` prompts of a class.
    ///
    /// # Randomness
    /// The examples of settings come from the stream `prompt request` of the seed and the number.
    pub fn new(grammar: &Grammar, number: u64, class: usize, lines: usize, seed: u64) -> Self {
        let wanted = &grammar.class[class];
        let mut rng = Rng::stream(seed, "prompt request", &[number]);
        let hints: Vec<String> = (0..HINTS).map(|_| grammar.fill("setting", wanted, &mut rng)).collect();
        let holes = [
            ("{openings}", grammar.openings.join(" or ")),
            ("{least}", grammar.words.0.to_string()),
            ("{most}", grammar.words.1.to_string()),
            ("{count}", lines.to_string()),
            ("{class}", wanted.name.clone()),
            ("{words}", wanted.words.join(", ")),
            ("{hints}", hints.join(", ")),
        ];
        let text: Vec<&str> = REQUEST.lines().filter(|line| !line.starts_with('#')).collect();
        let filled = holes.iter().fold(text.join("\n"), |text, (hole, value)| text.replace(hole, value));
        let (system, user) = filled.split_once("\n---\n").unwrap_or(("", &filled));
        Self { number, class, lines, seed, system: system.into(), user: user.into() }
    }
}

/// Sentences of a grammar: no model, no network, the same on every machine.
#[derive(Debug, Clone)]
pub struct Template {
    grammar: Grammar,
}

impl Template {
    /// Draws from `grammar`.
    pub fn new(grammar: Grammar) -> Self {
        Self { grammar }
    }

    /// The answer to one request.
    ///
    /// # Randomness
    /// Each line from the stream `template prompts` of the seed, the request's number and the line's.
    pub fn answer(&self, request: &Request) -> Answer {
        let line = |line| {
            let mut rng = Rng::stream(request.seed, "template prompts", &[request.number, line]);
            self.grammar.sentence(request.class, &mut rng)
        };
        let lines: Vec<String> = (0..request.lines as u64).map(line).collect();
        Answer { text: lines.join("\n"), cut: false, tokens: 0 }
    }
}

impl Writer for Template {
    fn name(&self) -> String {
        format!("template:{}", self.grammar.version)
    }

    fn sampling(&self) -> String {
        String::new()
    }

    fn ask(&mut self, requests: &[Request], heard: &mut dyn FnMut(usize, Answer) -> Result<()>, _: &dyn Progress) -> Result<()> {
        requests.iter().enumerate().try_for_each(|(at, request)| heard(at, self.answer(request)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hole_of_the_request_is_filled() {
        let grammar = Grammar::open("").unwrap();
        assert!(REQUEST.contains("# origin: ") && REQUEST.contains("# licence: ") && request_version() == "1");
        let request = Request::new(&grammar, 3, 15, 20, 7);
        let text = format!("{}\n{}", request.system, request.user);
        assert!(!text.contains(['{', '}', '#']), "{text}");
        assert!(request.user.contains("Write 20 prompts") && request.user.contains("shows bus in"), "{text}");
        assert!(request.system.starts_with("You write prompts"));
        assert_ne!(Request::new(&grammar, 4, 15, 20, 7).user, request.user, "other requests have other hints");
    }
}
