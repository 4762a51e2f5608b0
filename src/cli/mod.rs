//! The command line: argument types, one file per verb, and what all verbs share. The only folder that reads flags,
//! environment variables and the terminal.

mod adapt;
mod clouds;
pub mod common;
mod dataset;
mod demo;
mod doctor;
mod evaluate;
mod generate;
mod lora;
mod manual;
mod personalize;
mod predict;
mod pretrain;
pub mod progress;
pub mod recipe;
mod report;
mod settings;

use crate::base::Result;
use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Adapt a semantic segmenter to a place nobody labelled, from one photo of it
#[derive(Debug, Parser)]
#[command(name = "datum", version, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "The three stages:\n  datum personalize target.png\n  datum generate --prompts things.txt\n  \
                        datum adapt --source NAME=ROOT --target FOLDER")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Pretrain(pretrain::PretrainArgs),
    Personalize(personalize::PersonalizeArgs),
    Generate(generate::GenerateArgs),
    Adapt(adapt::AdaptArgs),
    Evaluate(evaluate::EvaluateArgs),
    Predict(predict::PredictArgs),
    Lora(lora::LoraArgs),
    Dataset(dataset::DatasetArgs),
    /// Show the whole idea in minutes: no data, no downloads, no GPU
    #[command(
        after_help = "Streets by day are the labelled source, ONE street at dusk the photo of the target. The demo runs the commands\n\
                            you would type and shows them; stop it at any time, and go on with the same --output.\n\n\
                            Examples:\n  datum demo\n  datum demo --fast\n  datum demo --output runs/demo --seed 1"
    )]
    Demo(demo::runner::DemoArgs),
    Report(report::ReportArgs),
    Doctor(doctor::DoctorArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

/// Runs the `datum` program on the process's arguments.
pub fn datum() -> ExitCode {
    program(|cli: Cli| run(cli.verb))
}

/// Runs the `clouds` program on the process's arguments.
pub fn clouds() -> ExitCode {
    program(clouds::run)
}

fn program<C: Parser>(run: impl FnOnce(C) -> Result<()>) -> ExitCode {
    crate::base::heap::keep_pages();
    crate::base::threads::share_processors();
    crate::base::interrupt::install();
    let cli = match C::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe while printing help is not worth a message.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match crate::base::group::leave(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With nowhere left to say it, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Pretrain(args) => pretrain::run(args),
        Verb::Personalize(args) => personalize::run(args),
        Verb::Generate(args) => generate::run(args),
        Verb::Adapt(args) => adapt::run(args),
        Verb::Evaluate(args) => evaluate::run(args),
        Verb::Predict(args) => predict::run(args),
        Verb::Lora(args) => lora::run(args),
        Verb::Dataset(args) => dataset::run(args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Report(args) => report::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Completions(args) => manual::completions(&args, Cli::command()),
        Verb::Man(args) => manual::man(&args, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::StreetSet;
    use crate::io::atomic;
    use crate::systems::clouds::config::PromptsConfig;
    use crate::systems::clouds::everything::MasksConfig;
    use crate::systems::clouds::pretrain::config::ClipPretrainConfig;
    use crate::systems::clouds::pretrain_sam::config::SamPretrainConfig;
    use crate::systems::clouds::refine_folder::RefineFolderConfig;
    use crate::systems::clouds::train::config::TrainConfig;
    use crate::systems::datum::config::{AdaptConfig, GenerateConfig, PersonalizeConfig};
    use crate::systems::datum::pretrain::config::PretrainConfig;
    use std::path::Path;

    /// Command lines in `text` that call `program`; a line goes on after a backslash; a comment or a redirection ends it.
    pub(super) fn commands(program: &str, text: &str) -> Vec<String> {
        let joined = text.replace("\\\n", " ");
        let cut =
            |line: &str| line.split(" #").next().and_then(|line| line.split(" >").next()).unwrap_or_default().trim().to_string();
        joined.lines().map(cut).filter(|line| line.starts_with(&format!("{program} "))).collect()
    }

    fn parses(commands: &[String], place: &str) {
        for command in commands {
            let parsed = Cli::try_parse_from(command.split_whitespace());
            assert!(parsed.is_ok(), "{place}: `{command}`: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn every_command_of_the_readme_and_the_help_is_accepted() {
        let readme = commands("datum", include_str!("../../README.md"));
        assert!(readme.len() >= 7, "{readme:?}");
        parses(&readme, "README.md");
        for (words, verb) in manual::verbs(Cli::command()) {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = commands("datum", &help);
            assert!(!examples.is_empty(), "{words:?} has no example");
            parses(&examples, &words.join(" "));
        }
    }

    /// The default settings of verbs that take a recipe.
    fn defaults(words: &[String]) -> Option<String> {
        let text = match words.last()?.as_str() {
            "pretrain" if words[0] == "clouds" => toml::to_string(&ClipPretrainConfig::default()),
            "pretrain" => toml::to_string(&PretrainConfig::default()),
            "pretrain-sam" => toml::to_string(&SamPretrainConfig::default()),
            "personalize" => toml::to_string(&PersonalizeConfig::default()),
            "generate" => toml::to_string(&GenerateConfig::default()),
            "prompts" => toml::to_string(&PromptsConfig::default()),
            "adapt" => toml::to_string(&AdaptConfig::default()),
            "train" => toml::to_string(&TrainConfig::default()),
            "refine" => toml::to_string(&RefineFolderConfig::default()),
            "masks" => toml::to_string(&MasksConfig::default()),
            "render-street" => toml::to_string(&StreetSet::default()),
            _ => return None,
        };
        Some(text.unwrap())
    }

    /// `UPDATE_REFERENCE=1 cargo test --lib reference` writes the pages anew.
    #[test]
    fn reference_pages_are_current() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
        let pages = [Cli::command(), clouds::Cli::command()].map(|program| manual::reference(program, &defaults)).concat();
        assert!(pages.len() > 20, "{}", pages.len());
        if std::env::var_os("UPDATE_REFERENCE").is_some() {
            pages.iter().try_for_each(|(name, text)| atomic::write(&folder.join(name), text.as_bytes())).unwrap();
        }
        for (name, text) in &pages {
            let written = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            assert!(written == *text, "docs/reference/{name} is not what the program says: UPDATE_REFERENCE=1 writes it anew");
        }
        let written = folder.read_dir().unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let gone: Vec<String> = written.filter(|file| !pages.iter().any(|(name, _)| name == file)).collect();
        assert!(gone.is_empty(), "pages of verbs that are gone: {gone:?}");
    }
}
