//! `clouds prompts`

use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::cli::common::VerbArgs;
use crate::cli::settings;
use crate::systems::clouds::config::PromptsConfig;
use crate::systems::clouds::prompts::{self, Written};
use clap::Args;
use serde::Serialize;

/// Variable that holds the key for a server.
const KEY: &str = "OPENAI_API_KEY";

/// Write a list of prompts of street scenes, balanced over classes, no two alike
#[derive(Debug, Args)]
#[command(after_help = "Writers:\n  template       the grammar that ships with the program: offline, in a moment\n  \
                        gguf:FILE      a quantised Llama or Qwen on this machine; a SentencePiece model needs its tokenizer.json beside it\n  \
                        openai:URL     any server with OpenAI's chat protocol; a key is read from the variable OPENAI_API_KEY\n\n\
                        Lines that break a rule or say the same as another one are kept in rejected.jsonl with the reason. Answers of\n\
                        language models are kept: run the same command with the same --output to go on.\n\n\
                        Examples:\n  clouds prompts --count 1000\n  \
                        clouds prompts --llm gguf:qwen2.5-7b-instruct-q4_k_m.gguf --output list\n  \
                        clouds prompts --llm openai:http://localhost:8080/v1 --output list\n  \
                        clouds prompts --llm openai:https://api.openai.com/v1 --model gpt-4o-mini --budget 200000 --dry-run")]
pub(super) struct PromptsArgs {
    #[command(flatten)]
    flags: Flags,
    /// Show what would be asked, and ask nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: VerbArgs,
}

#[derive(Debug, Args, Serialize)]
struct Flags {
    /// Who writes: template, gguf:FILE or openai:URL [default: template]
    #[arg(long, value_name = "WRITER")]
    llm: Option<String>,
    /// Model by the server's name for it
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Number of prompts [default: 100]
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Tokens that may be spent at a server, requests and answers together [default: any number]
    #[arg(long, value_name = "TOKENS")]
    budget: Option<u64>,
}

/// Runs the verb.
pub(super) fn run(args: PromptsArgs) -> Result<()> {
    args.common.compute.apply_f32()?;
    let resolved = settings::resolve::<PromptsConfig>("prompts", &args.common.run, &args.flags)?;
    let config = &resolved.settings;
    if args.dry_run {
        let shown = prompts::preview(config)?;
        return args.common.display.result(&shown, || format!("{shown:#}"));
    }
    config.validate()?;
    let progress = args.common.display.progress();
    let writer = config.llm.split(':').next().unwrap_or_default();
    let run = super::run_folder(&format!("prompts_{writer}"), &args.common.run)?;
    settings::record(&run, &resolved, &[&config.grammar])?;
    let key = std::env::var(KEY).ok().map(|key| key.trim().to_string()).filter(|key| !key.is_empty());
    let written = run.timed("prompts", || prompts::run(config, &run, key, &progress)).map_err(|error| match error {
        Error::Interrupted { .. } => Error::Interrupted {
            resume: format!("run the same command with `--output {}`; answers are kept", run.path().display()),
        },
        other => other,
    })?;
    // What is not UTF-8 in a path is no JSON.
    let written = Written { prompts: written.prompts.display().to_string().into(), ..written };
    args.common.display.result(&written, || {
        let tally = written.tally;
        let said = format!("{} prompts from {} lines, {:.1} % of them valid", written.count, tally.lines, 100.0 * written.valid);
        progress.say(&said);
        format!("{}", written.prompts.display())
    })
}
