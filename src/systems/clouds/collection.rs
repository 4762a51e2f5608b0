//! The prompts so far: one quota for each class, no two that say the same, and every line that was refused.

use super::config::PromptsConfig;
use crate::prompting::{Answer, Grammar, NearDuplicates, Request, validate};
use serde::Serialize;

/// A prompt of the list: a line of `prompts.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prompt {
    /// Number of the prompt in the list; image j gets prompt j mod n.
    pub index: usize,
    /// The text.
    pub prompt: String,
    /// Class it was asked for, which it names.
    pub class: String,
    /// Who wrote it.
    pub source: String,
    /// Number of the request it answers.
    pub request: u64,
    /// BLAKE3 of the text, in hex.
    pub blake3: String,
}

/// A line that is not in the list: a line of `rejected.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rejected {
    /// The line.
    pub line: String,
    /// Why it is not in the list.
    pub reason: String,
    /// Class it was asked for.
    pub class: String,
    /// Number of the request it answers.
    pub request: u64,
}

/// How the lines of all answers fared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// All of them.
    pub lines: usize,
    /// Those that break a rule.
    pub invalid: usize,
    /// Those that say the same as an earlier one.
    pub near_duplicates: usize,
    /// Good ones of classes that had enough.
    pub surplus: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Collection<'a> {
    grammar: &'a Grammar,
    config: &'a PromptsConfig,
    /// Accepted (text, class, request) in the order they came; near-duplicates refer to it.
    accepted: Vec<(String, usize, u64)>,
    rejected: Vec<Rejected>,
    seen: NearDuplicates,
    /// Requests so far.
    requests: u64,
    tally: Tally,
}

impl<'a> Collection<'a> {
    /// No prompts yet.
    pub fn new(grammar: &'a Grammar, config: &'a PromptsConfig) -> Self {
        let seen = NearDuplicates::new(config.near_duplicate);
        Self { grammar, config, accepted: Vec::new(), rejected: Vec::new(), seen, requests: 0, tally: Tally::default() }
    }

    /// Prompts that a class still lacks. Quotas differ by one at most.
    pub fn missing(&self, class: usize) -> usize {
        let classes = self.grammar.class.len();
        let quota = self.config.count / classes + usize::from(class < self.config.count % classes);
        quota.saturating_sub(self.accepted.iter().filter(|(_, of, _)| *of == class).count())
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.accepted.len()
    }

    /// True while there are none.
    pub fn is_empty(&self) -> bool {
        self.accepted.is_empty()
    }

    /// Requests for everything that is missing, with a tenth to spare; none when the list is complete.
    pub fn requests(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        for class in 0..self.grammar.class.len() {
            let missing = self.missing(class);
            let mut wanted = missing + missing.div_ceil(10);
            while wanted > 0 {
                let lines = wanted.min(self.config.lines);
                requests.push(Request::new(self.grammar, self.requests, class, lines, self.config.seed));
                self.requests += 1;
                wanted -= lines;
            }
        }
        requests
    }

    /// Takes the lines of an answer, or notes why not.
    pub fn take(&mut self, request: &Request, answer: &Answer) {
        let mut lines = validate::lines(&answer.text);
        if answer.cut && !answer.text.ends_with('\n') {
            let last = lines.pop();
            last.into_iter().for_each(|line| self.reject(request, line, "was cut off".into(), |tally| &mut tally.invalid));
        }
        let class = &self.grammar.class[request.class];
        for line in lines {
            if let Err(fault) = validate::check(&line, class, self.grammar) {
                self.reject(request, line, fault.to_string(), |tally| &mut tally.invalid);
            } else if self.missing(request.class) == 0 {
                let reason = format!("the class {} has enough prompts", class.name);
                self.reject(request, line, reason, |tally| &mut tally.surplus);
            } else if let Err(earlier) = self.seen.insert(&line) {
                let reason = format!("says nearly the same as `{}`", self.accepted[earlier].0);
                self.reject(request, line, reason, |tally| &mut tally.near_duplicates);
            } else {
                self.tally.lines += 1;
                self.accepted.push((line, request.class, request.number));
            }
        }
    }

    fn reject(&mut self, request: &Request, line: String, reason: String, count: fn(&mut Tally) -> &mut usize) {
        self.tally.lines += 1;
        *count(&mut self.tally) += 1;
        let class = self.grammar.class[request.class].name.clone();
        self.rejected.push(Rejected { line, reason, class, request: request.number });
    }

    /// The list: classes take turns, so that every beginning of it is balanced too.
    pub fn prompts(&self, source: &str) -> Vec<Prompt> {
        let mut turns = vec![0; self.grammar.class.len()];
        let mut order: Vec<(usize, usize, usize)> = Vec::new();
        for (at, (_, class, _)) in self.accepted.iter().enumerate() {
            order.push((turns[*class], *class, at));
            turns[*class] += 1;
        }
        order.sort_unstable();
        let prompt = |(index, &(_, class, at)): (usize, &(usize, usize, usize))| Prompt {
            index,
            prompt: self.accepted[at].0.clone(),
            class: self.grammar.class[class].name.clone(),
            source: source.into(),
            request: self.accepted[at].2,
            blake3: blake3::hash(self.accepted[at].0.as_bytes()).to_hex().to_string(),
        };
        order.iter().enumerate().map(prompt).collect()
    }

    /// Refused lines in the order they came.
    pub fn rejected(&self) -> &[Rejected] {
        &self.rejected
    }

    /// How the lines fared.
    pub fn tally(&self) -> Tally {
        self.tally
    }
}
