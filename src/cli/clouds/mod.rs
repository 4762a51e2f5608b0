//! The `clouds` program: its own verbs, and those it shares with `datum`.

mod demo;
mod masks;
mod pretrain;
mod pretrain_sam;
mod prompts;
mod refine;
mod train;

use super::{common::RunArgs, dataset, demo::runner::DemoArgs, doctor, evaluate, generate, manual, predict, report, settings};
use crate::base::Result;
use crate::train::run_dir::RunDir;
use clap::{CommandFactory, Parser, Subcommand};
use std::path::Path;

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
    Pretrain(pretrain::PretrainArgs),
    PretrainSam(pretrain_sam::PretrainSamArgs),
    Train(Box<train::TrainArgs>),
    Refine(refine::RefineArgs),
    Masks(masks::MasksArgs),
    #[command(after_help = "Examples:\n  clouds evaluate --checkpoint runs/adapted --dataset cityscapes\n  \
                            clouds evaluate --predictions ids --dataset bdd100k --split val --json")]
    Evaluate(evaluate::EvaluateArgs),
    #[command(after_help = "Examples:\n  clouds predict --checkpoint runs/adapted photos --output out")]
    Predict(predict::PredictArgs),
    #[command(after_help = "Examples:\n  clouds dataset render-street --look night --output night\n  clouds dataset check gta")]
    Dataset(dataset::DatasetArgs),
    /// Show the whole idea in minutes: no data, no downloads, no GPU
    #[command(
        after_help = "Streets by day are the labelled source; streets at night, in fog, rain and snow are the test, and no picture of them is\n\
                            used before. The demo runs the commands you would type and shows them; stop it at any time, and go on with the\n\
                            same --output.\n\n\
                            Examples:\n  clouds demo\n  clouds demo --fast\n  clouds demo --output runs/demo --seed 1"
    )]
    Demo(DemoArgs),
    #[command(after_help = "Examples:\n  clouds report runs/joint --output joint.html\n  clouds report runs/start runs/joint")]
    Report(report::ReportArgs),
    #[command(after_help = "Examples:\n  clouds doctor\n  clouds doctor --self-test --device cuda")]
    Doctor(doctor::DoctorArgs),
    #[command(after_help = "Examples:\n  clouds completions bash > ~/.local/share/bash-completion/completions/clouds")]
    Completions(manual::CompletionsArgs),
    #[command(after_help = "Examples:\n  clouds man --output ~/.local/share/man/man1\n  clouds man")]
    Man(manual::ManArgs),
}

/// Runs a verb.
pub(super) fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Prompts(args) => prompts::run(args),
        Verb::Generate(args) => generate::run_over(Some(GENERATE_RECIPE), *args),
        Verb::Pretrain(args) => pretrain::run(args),
        Verb::PretrainSam(args) => pretrain_sam::run(args),
        Verb::Train(args) => train::run(*args),
        Verb::Refine(args) => refine::run(args),
        Verb::Masks(args) => masks::run(args),
        Verb::Evaluate(args) => evaluate::run(args),
        Verb::Predict(args) => predict::run(args),
        Verb::Dataset(args) => dataset::run(args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Report(args) => report::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Completions(args) => manual::completions(&args, Cli::command()),
        Verb::Man(args) => manual::man(&args, Cli::command()),
    }
}

/// The folder of `--output`, where a run may have begun, or else a new numbered one: these verbs go on by themselves.
fn run_folder(label: &str, run: &RunArgs) -> Result<RunDir> {
    match &run.output {
        Some(folder) if folder.join("recipe.toml").is_file() => RunDir::open(folder),
        output => RunDir::create(output.as_deref(), Path::new(settings::RUNS), label),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::commands;
    use super::*;

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
