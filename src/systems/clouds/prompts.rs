//! `clouds prompts`: a prompt list from a grammar or a language model.
//!
//! ```text
//! RUN/
//!   prompts.txt       the list, one prompt a line
//!   prompts.jsonl     the same with class, source, request and hash
//!   rejected.jsonl    every other line of the answers, with the reason
//!   answers/          what language models said; running again asks only for what is missing
//! ```

use super::answers::Answers;
use super::collection::{Collection, Tally};
use super::config::PromptsConfig;
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::io::atomic;
use crate::io::manifest::json_lines;
use crate::prompting::client::{Client, ClientSettings};
use crate::prompting::gguf::{Gguf, Sampling};
use crate::prompting::{Grammar, Template, Writer, request_version};
use crate::train::run_dir::RunDir;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The list in a run folder.
pub const PROMPTS_FILE: &str = "prompts.txt";
/// The list with where each prompt came from.
pub const MANIFEST_FILE: &str = "prompts.jsonl";
/// Lines that are not in the list.
pub const REJECTED_FILE: &str = "rejected.jsonl";
/// Folder of answers.
const ANSWERS_FOLDER: &str = "answers";

/// Who writes the prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Template,
    Gguf(PathBuf),
    OpenAi(String),
}

impl std::str::FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "template" => Ok(Self::Template),
            Some(("gguf", file)) if !file.is_empty() => Ok(Self::Gguf(file.into())),
            Some(("openai", url)) if !url.is_empty() => Ok(Self::OpenAi(url.into())),
            _ => Err(Error::Usage(format!("--llm {text}: expected template, gguf:FILE or openai:URL"))),
        }
    }
}

/// What a run left behind.
#[derive(Debug, Clone, Serialize)]
pub struct Written {
    /// The list.
    pub prompts: PathBuf,
    /// Its number of prompts.
    pub count: usize,
    /// Share of the writer's lines that are valid, 0 to 1.
    pub valid: f64,
    /// How the writer's lines fared.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Writes the list of prompts into `run`. `key` is sent to a server as it asks for it.
///
/// # Errors
/// Unusable settings, files or servers; too few usable answers; interruption. Answers so far are kept.
pub fn run(config: &PromptsConfig, run: &RunDir, key: Option<String>, progress: &dyn Progress) -> Result<Written> {
    config.validate()?;
    let grammar = Grammar::open(&config.grammar)?;
    let answers = Answers::new(run.path().join(ANSWERS_FOLDER));
    let mut writer: Box<dyn Writer> = match config.llm.parse()? {
        Source::Template => Box::new(Template::new(grammar.clone())),
        Source::Gguf(file) => Box::new(Gguf::open(&file, sampling(config))?),
        Source::OpenAi(url) => {
            let client = Client::new(client_settings(config, url, key), answers.tokens()?)?;
            if client.exposes_key() {
                progress.warn("the key in `OPENAI_API_KEY` goes over the network unencrypted: the address begins with http");
            }
            Box::new(client)
        }
    };
    // A grammar answers at once; what others say is kept.
    let keep = config.llm.parse::<Source>()? != Source::Template;
    let mut collection = Collection::new(&grammar, config);
    for round in 0..config.rounds {
        let requests = collection.requests();
        if requests.is_empty() {
            break;
        }
        progress.say(&format!(
            "round {}: {} of {} prompts, {} requests",
            round + 1,
            collection.len(),
            config.count,
            requests.len()
        ));
        if keep {
            let said = answers.ask(writer.as_mut(), &requests, progress)?;
            requests.iter().zip(&said).for_each(|(request, answer)| collection.take(request, answer));
        } else {
            let take = &mut |at: usize, answer| {
                collection.take(&requests[at], &answer);
                Ok(())
            };
            writer.ask(&requests, take, progress)?;
        }
    }
    write(&grammar, config, run, &collection, &writer.name())
}

/// Writes the files; the list only if it is complete.
fn write(grammar: &Grammar, config: &PromptsConfig, run: &RunDir, collection: &Collection, source: &str) -> Result<Written> {
    let rejected = run.path().join(REJECTED_FILE);
    write_lines(&rejected, collection.rejected())?;
    let tally = collection.tally();
    let valid = 1.0 - tally.invalid as f64 / tally.lines.max(1) as f64;
    run.log("prompts", json!({ "tally": tally, "request": request_version(), "grammar": grammar.version, "source": source }))?;
    if collection.len() < config.count {
        let lacks = |class: &usize| collection.missing(*class) > 0;
        let lacking: Vec<&str> = (0..grammar.class.len()).filter(lacks).map(|class| grammar.class[class].name.as_str()).collect();
        return Err(Error::data(
            &rejected,
            format!("{} usable prompts in {} rounds of requests", config.count, config.rounds),
            format!("{} in {} lines; too few of {}", collection.len(), tally.lines, lacking.join(", ")),
            "see the reasons in that file; use another model, more `rounds`, or a greater `near_duplicate`",
        ));
    }
    let list = collection.prompts(source);
    let manifest = run.path().join(MANIFEST_FILE);
    write_lines(&manifest, &list)?;
    let prompts = run.path().join(PROMPTS_FILE);
    let text: String = list.iter().map(|prompt| format!("{}\n", prompt.prompt)).collect();
    atomic::write(&prompts, text.as_bytes())?;
    Ok(Written { prompts, count: list.len(), valid, tally })
}

fn write_lines(path: &Path, values: &[impl Serialize]) -> Result<()> {
    atomic::write(path, &json_lines(values).map_err(|e| Error::io(path, e))?)
}

/// What the first round would ask, without asking: no socket, no file.
///
/// # Errors
/// Unusable settings.
pub fn preview(config: &PromptsConfig) -> Result<Value> {
    config.validate()?;
    let grammar = Grammar::open(&config.grammar)?;
    let requests = Collection::new(&grammar, config).requests();
    // At least one prompt is asked for.
    let first = &requests[0];
    let mut shown = json!({ "requests": requests.len(), "request_version": request_version() });
    match config.llm.parse()? {
        Source::Template => shown["answer"] = Template::new(grammar.clone()).answer(first).text.lines().collect(),
        Source::Gguf(file) => {
            shown["file"] = json!(file);
            shown["first"] = json!({ "system": first.system, "user": first.user });
        }
        Source::OpenAi(url) => {
            let client = Client::new(client_settings(config, url, None), 0)?;
            shown["url"] = client.endpoint().into();
            shown["most_tokens"] = requests.iter().map(|request| client.most_tokens(request)).sum::<u64>().into();
            shown["first"] = client.body(first);
        }
    }
    Ok(shown)
}

fn sampling(config: &PromptsConfig) -> Sampling {
    Sampling { temperature: config.temperature, top_p: config.top_p, max_tokens: config.max_tokens }
}

fn client_settings(config: &PromptsConfig, url: String, key: Option<String>) -> ClientSettings {
    ClientSettings {
        url,
        model: config.model.clone(),
        key,
        concurrency: config.server.concurrency,
        timeout: Duration::from_secs_f64(config.server.timeout),
        attempts: config.server.attempts,
        pause: Duration::from_secs_f64(config.server.pause),
        temperature: config.temperature,
        max_tokens: config.max_tokens,
        max_tokens_field: config.server.max_tokens_field.clone(),
        send_seed: config.server.send_seed,
        budget: config.budget,
    }
}
