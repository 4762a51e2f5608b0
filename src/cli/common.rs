//! Flag groups that verbs share, and what follows from them.

use super::progress::{Bar, Style};
use crate::base::device::{self, DeviceChoice};
use crate::base::{Error, Result, group, threads};
use crate::nn;
use crate::train::checkpoint::Resume;
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;

/// A number from 0 to 1.
pub fn share(text: &str) -> std::result::Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// Where and how tensors are computed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Computing")]
pub struct ComputeArgs {
    /// Device: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Number type of the computation; bf16 takes a GPU, or a processor with AMX
    #[arg(long, default_value = "f32", value_name = "TYPE")]
    pub dtype: DTypeChoice,
    /// Number of threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// A number type as named by `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DTypeChoice {
    /// 32 bit.
    F32,
    /// 16 bit, range of f32.
    Bf16,
    /// 16 bit, IEEE.
    F16,
}

impl ComputeArgs {
    /// Sets the number of threads and gives device and type. Call once, before anything is computed.
    ///
    /// # Errors
    /// A device or type this build cannot compute with.
    pub fn apply(&self) -> Result<(Device, DType)> {
        let opened = self.device.open()?;
        if let Some(note) = &opened.note {
            eprintln!("warning: {note}");
        }
        let dtype = self.number_type(&opened.device)?;
        if let Some(threads) = self.threads.map(usize::from).or_else(threads::share_of_machine) {
            set_threads(threads)?;
        }
        device::make_current(&opened.device, dtype);
        Ok((opened.device, dtype))
    }

    /// As [`Self::apply`], for verbs whose networks compute in f32 only.
    ///
    /// # Errors
    /// As [`Self::apply`], and any other type.
    pub fn apply_f32(&self) -> Result<Device> {
        let (device, dtype) = self.apply()?;
        if dtype != DType::F32 {
            return Err(Error::environment("this command computes in f32 only on a GPU", "leave `--dtype` out"));
        }
        Ok(device)
    }

    fn number_type(&self, device: &Device) -> Result<DType> {
        let refused = |why: &str, next: &str| Err(Error::environment(why, next));
        match self.dtype {
            DTypeChoice::F32 => Ok(DType::F32),
            DTypeChoice::Bf16 if device.is_cuda() => Ok(DType::BF16),
            // Tensors stay f32 there, see `nn::allow_bf16`.
            DTypeChoice::Bf16 if nn::allow_bf16(true) => Ok(DType::F32),
            DTypeChoice::Bf16 => refused(
                "this processor computes in f32 only: it has no matrix unit for bf16 (AMX of Intel's server processors, on Linux)",
                "leave `--dtype` out, or compute on a GPU of NVIDIA (docs/gpu.md)",
            ),
            DTypeChoice::F16 => {
                refused("no network computes in f16: its range is too small", "leave `--dtype` out, or use `--dtype bf16`")
            }
        }
    }

    /// As [`Self::apply`], for verbs that several processes run together.
    ///
    /// # Errors
    /// As [`Self::apply`] and [`group::join`].
    pub fn join(&self) -> Result<()> {
        let (device, _) = self.apply()?;
        group::join(&device)
    }
}

/// Matrix products ask the environment for the number of threads, everything else rayon's pool.
pub(super) fn set_threads(threads: usize) -> Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: called at the start of a command, before the pool below is the first to start threads.
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| Error::environment(format!("cannot start {threads} threads: {e}"), "give a smaller number to `--threads`"))
}

/// What is shown, and how.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct DisplayArgs {
    /// Show warnings and errors only
    #[arg(long, short)]
    pub quiet: bool,
    /// Show no progress bar
    #[arg(long, env = "NO_PROGRESS", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_progress: bool,
    /// Print one JSON object with the result to standard output
    #[arg(long)]
    pub json: bool,
}

impl DisplayArgs {
    /// The progress display for standard error.
    pub fn progress(&self) -> Bar {
        let quiet = self.quiet || !group::current().is_main();
        Bar::new(Style::choose(quiet, self.no_progress))
    }

    /// The result on standard output: as JSON with `--json`, else as text for people. A closed pipe is no error. Of processes
    /// that work together only the main one says something.
    pub fn result(&self, result: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if !group::current().is_main() {
            return Ok(());
        }
        let line = if self.json {
            serde_json::to_string(result)
                .map_err(|e| Error::environment(format!("the result is no JSON: {e}"), "report this as a defect"))?
        } else {
            text()
        };
        match std::io::Write::write_all(&mut std::io::stdout(), format!("{line}\n").as_bytes()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output", e)),
            _ => Ok(()),
        }
    }
}

/// Where a run's settings come from and where it goes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Recipe: a TOML file, or the name of a shipped one
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<String>,
    /// Set one value of the recipe, e.g. training.steps=100; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Seed of all random draws
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Folder for the results [default: a new numbered folder under runs/]
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// What every verb takes that computes and leaves a run.
#[derive(Debug, Clone, Args)]
pub struct VerbArgs {
    /// Settings and folder.
    #[command(flatten)]
    pub run: RunArgs,
    /// Device and threads.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// What is said.
    #[command(flatten)]
    pub display: DisplayArgs,
}

/// Going on with a run.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Run")]
pub struct ResumeArgs {
    /// Go on with the newest checkpoint, or with that of a folder
    #[arg(long, value_name = "latest|PATH")]
    pub resume: Option<Resume>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Verb {
        #[command(flatten)]
        compute: ComputeArgs,
        #[command(flatten)]
        display: DisplayArgs,
        #[command(flatten)]
        run: RunArgs,
        #[command(flatten)]
        resume: ResumeArgs,
    }

    fn parse(line: &str) -> std::result::Result<Verb, clap::Error> {
        Verb::try_parse_from(std::iter::once("verb").chain(line.split_whitespace()))
    }

    #[test]
    fn flags_parse_and_defaults_are_the_processor() {
        let verb = parse("--resume latest --set a.b=1 --set c=x --seed 4 --output out --json").unwrap();
        assert_eq!(verb.compute.apply().unwrap().1, DType::F32);
        assert_eq!(verb.resume.resume, Some(Resume::Latest));
        assert_eq!(verb.run.set, ["a.b=1", "c=x"]);
        assert!(verb.display.json && !verb.display.quiet);
        let path = parse("--resume runs/one").unwrap();
        assert_eq!(path.resume.resume, Some(Resume::Path("runs/one".into())));
    }

    #[test]
    fn devices_this_build_lacks_end_with_exit_code_4() {
        for (line, word) in [("--device cuda:1", "cuda"), ("--device metal", "metal"), ("--dtype f16", "f16")] {
            let error = parse(line).unwrap().compute.apply().unwrap_err();
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains(word), "{error}");
        }
        for line in ["--device tpu", "--device cuda:x", "--device cpu:1", "--threads 0", "--dtype f64"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
