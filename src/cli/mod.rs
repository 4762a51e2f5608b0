//! The command line: argument types, one file per verb, and what all verbs share. The only folder that reads flags,
//! environment variables and the terminal.

mod adapt;
mod clouds;
pub mod common;
mod dataset;
mod evaluate;
mod generate;
mod personalize;
mod predict;
mod pretrain;
pub mod progress;
pub mod recipe;
mod report;
mod settings;

use crate::base::Result;
use clap::{Parser, Subcommand};
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
    Dataset(dataset::DatasetArgs),
    Report(report::ReportArgs),
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
    crate::base::interrupt::install();
    let cli = match C::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe while printing help is not worth a message.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(cli) {
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
        Verb::Dataset(args) => dataset::run(args),
        Verb::Report(args) => report::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Command lines in `text` that call `program`; a line goes on after a backslash, a comment ends it.
    pub(super) fn commands(program: &str, text: &str) -> Vec<String> {
        let joined = text.replace("\\\n", " ");
        let lines = joined.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
        lines.filter(|line| line.starts_with(&format!("{program} "))).map(String::from).collect()
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
        for verb in Cli::command().get_subcommands() {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = commands("datum", &help);
            assert!(!examples.is_empty(), "{} has no example", verb.get_name());
            parses(&examples, verb.get_name());
        }
    }
}
