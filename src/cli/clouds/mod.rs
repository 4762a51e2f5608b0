//! The `clouds` program: its own verbs, and those it shares with `datum`.

mod prompts;
mod train;

use super::{evaluate, generate, predict};
use crate::base::Result;
use clap::{Parser, Subcommand};

/// Recipe below all others of `clouds generate`.
const GENERATE_RECIPE: &str = "clouds-sd2";

/// Make a segmenter hold in places nobody has seen, with street scenes nobody photographed
#[derive(Debug, Parser)]
#[command(name = "clouds", version, arg_required_else_help = true, max_term_width = 110)]
#[command(
    after_help = "The stages:\n  clouds prompts --count 100 --output list\n  clouds generate --prompts list\n  clouds train --source gta --backbone-weights clip.bin"
)]
pub(super) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Prompts(prompts::PromptsArgs),
    /// Generate street scenes from a prompt list, with Stable Diffusion 2 and the settings of CLOUDS
    #[command(
        after_help = "Settings that are not given are those of CLOUDS (recipe clouds-sd2): Stable Diffusion 2, 5000 images, Euler, \
                            50 steps,\nguidance 7.5, the model's own size (768x768). Images that are there already are kept: run \
                            the same command with\nthe same --output to go on.\n\n\
                            Examples:\n  clouds generate --prompts list\n  clouds generate --prompts street.txt --shard 0/4 --output set\n  \
                            clouds generate --model runs/small/model --count 200"
    )]
    Generate(Box<generate::GenerateArgs>),
    Train(Box<train::TrainArgs>),
    #[command(after_help = "Examples:\n  clouds evaluate --checkpoint runs/adapted --dataset cityscapes\n  \
                            clouds evaluate --predictions ids --dataset bdd100k --split val --json")]
    Evaluate(evaluate::EvaluateArgs),
    #[command(after_help = "Examples:\n  clouds predict --checkpoint runs/adapted photos --output out")]
    Predict(predict::PredictArgs),
}

/// Runs a verb.
pub(super) fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Prompts(args) => prompts::run(args),
        Verb::Generate(args) => generate::run_over(Some(GENERATE_RECIPE), *args),
        Verb::Train(args) => train::run(*args),
        Verb::Evaluate(args) => evaluate::run(args),
        Verb::Predict(args) => predict::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::commands;
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_example_is_accepted() {
        let mut lines = commands("clouds", include_str!("../../../README.md"));
        let program = Cli::command();
        for help in std::iter::once(&program).chain(program.get_subcommands()).map(|command| command.get_after_help()) {
            let examples = commands("clouds", &help.map(ToString::to_string).unwrap_or_default());
            assert!(!examples.is_empty());
            lines.extend(examples);
        }
        for line in lines {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert!(parsed.is_ok(), "`{line}`: {}", parsed.unwrap_err());
        }
    }
}
