//! `datum report`

use super::common::DisplayArgs;
use crate::base::Result;
use crate::systems::datum::report;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Show a run, or several side by side, as one HTML page
#[derive(Debug, Args)]
#[command(
    after_help = "The page holds everything it shows and needs no network. Every verb that trains or generates writes it at its\n\
                        end, `evaluate` adds scores to it; this verb makes it for interrupted runs and to compare runs.\n\n\
                        Examples:\n  datum report runs/adapted\n  \
                        datum report runs/source-only runs/adapted --output comparison.html\n  \
                        datum report runs/adapted --baseline runs/source-only"
)]
pub struct ReportArgs {
    /// Run folders; of several, the first is the baseline
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Run that the others are compared with
    #[arg(long, value_name = "RUN")]
    baseline: Option<PathBuf>,
    /// File to write [default: report.html in the run, or comparison.html in the first of several]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    display: DisplayArgs,
}

/// Runs the verb.
pub fn run(args: ReportArgs) -> Result<()> {
    let written = report::write(&args.runs, args.baseline.as_deref(), args.output.as_deref())?;
    let runs: Vec<String> = written.runs.iter().map(|run| run.display().to_string()).collect();
    let result = json!({ "report": written.path.display().to_string(), "runs": runs, "bytes": written.bytes });
    args.display.result(&result, || format!("{}", written.path.display()))
}
