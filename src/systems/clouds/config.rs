//! Every value of the CLOUDS stages with its default. Field names are the keys of recipes and of `--set`.

use crate::base::{Error, Result};
use crate::prompting::client::endpoint;
use serde::{Deserialize, Serialize};

/// `clouds prompts`: a list of prompts, balanced over classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptsConfig {
    /// Who writes: `template`, `gguf:FILE` or `openai:URL`.
    pub llm: String,
    /// Model by the server's name for it (`openai:` only).
    pub model: String,
    /// Number of prompts.
    pub count: usize,
    /// Grammar file: classes, their words, the template's rules; empty: the shipped one for streets; `nano`: the shipped one in
    /// words that the small Stable Diffusion inside the program knows.
    pub grammar: String,
    /// Prompts asked for at a time.
    pub lines: usize,
    /// Two prompts that share this part of their content words (Jaccard index) count as the same.
    pub near_duplicate: f64,
    /// How often missing prompts are asked for.
    pub rounds: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Sampling temperature of language models.
    pub temperature: f64,
    /// Share of probability that tokens are drawn from (`gguf:` only).
    pub top_p: f64,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Tokens that may be spent at a server, requests and answers together; 0: any number.
    pub budget: u64,
    /// Use of a server.
    pub server: ServerConfig,
}

/// How a server is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Requests at a time.
    pub concurrency: usize,
    /// Seconds that one attempt may take.
    pub timeout: f64,
    /// Attempts for one request.
    pub attempts: usize,
    /// Seconds of pause after the first failed attempt; the pause doubles with each further one.
    pub pause: f64,
    /// Name of the field that holds `max_tokens`; some servers want `max_completion_tokens`.
    pub max_tokens_field: String,
    /// Whether the field `seed` is sent; some servers refuse it.
    pub send_seed: bool,
}

impl Default for PromptsConfig {
    fn default() -> Self {
        Self {
            llm: "template".into(),
            model: String::new(),
            count: 100,
            grammar: String::new(),
            lines: 20,
            near_duplicate: 0.6,
            rounds: 10,
            seed: 0,
            temperature: 1.0,
            top_p: 0.95,
            max_tokens: 1500,
            budget: 0,
            server: ServerConfig::default(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self { concurrency: 4, timeout: 120.0, attempts: 5, pause: 1.0, max_tokens_field: "max_tokens".into(), send_seed: true }
    }
}

impl PromptsConfig {
    /// # Errors
    /// Values that nothing can be done with.
    pub fn validate(&self) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        for (name, value) in [("count", self.count), ("lines", self.lines), ("rounds", self.rounds)] {
            if value == 0 {
                return usage(format!("`{name}` is 0\n  next: give a value of at least 1"));
            }
        }
        if !(self.near_duplicate > 0.0 && self.near_duplicate <= 1.0) {
            return usage(format!("near_duplicate {}: expected a value above 0, up to 1", self.near_duplicate));
        }
        let possible = (0.0..=10.0).contains(&self.temperature) && self.top_p > 0.0 && self.top_p <= 1.0;
        if !possible {
            return usage("temperature: expected 0 to 10; top_p: expected a value above 0, up to 1".into());
        }
        let seconds = |value: f64| (0.0..=86_400.0).contains(&value);
        if !seconds(self.server.timeout) || !seconds(self.server.pause) {
            return usage("server.timeout and server.pause: expected seconds, at most a day".into());
        }
        // Before anything is written down.
        self.llm.strip_prefix("openai:").map_or(Ok(()), |url| endpoint(url).map(drop))
    }
}
