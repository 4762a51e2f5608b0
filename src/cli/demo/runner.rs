//! What demos share: commands that are shown and run one after another, each at most once; Ctrl-C stops them, the same `--output` goes on.

use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::cli::common::VerbArgs;
use crate::cli::progress::Bar;
use crate::cli::recipe::Resolved;
use crate::cli::settings;
use crate::io::atomic;
use crate::report::terminal;
use crate::train::run_dir::RunDir;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(in crate::cli) struct DemoArgs {
    /// All stages with few pictures and steps: minutes, but no scores worth reading
    #[arg(long, conflicts_with = "recipe")]
    fast: bool,
    #[command(flatten)]
    common: VerbArgs,
}

/// Verbs that take `--resume`; the others go on by themselves.
const TRAININGS: [&str; 4] = ["personalize", "pretrain", "adapt", "train"];

/// What a demo decides beside the settings of its commands, which lie in the same recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::cli) struct DemoConfig {
    /// The recipe of all commands.
    recipe: String,
    /// Steps of the training on the source that both segmenters go on from.
    start_iterations: u64,
    /// Streets of each test.
    test_scenes: u64,
    /// Seed of everything random.
    seed: u64,
}

impl Default for DemoConfig {
    fn default() -> Self {
        Self { recipe: "demo".into(), start_iterations: 500, test_scenes: 60, seed: 0 }
    }
}

/// A demo: a program, its recipes and its commands.
pub(in crate::cli) struct Script {
    /// The program whose commands they are.
    pub program: &'static str,
    /// The recipe, and that of `--fast`.
    pub recipes: [&'static str; 2],
    pub steps: &'static [Step],
}

/// One command of a demo.
pub(in crate::cli) struct Step {
    /// What it is, for people.
    pub title: &'static str,
    /// The folder it makes, inside the demo's.
    pub folder: &'static str,
    /// Seconds on two cores (AMD EPYC), also with `--fast`, for the estimate of the time left.
    pub seconds: [f64; 2],
    /// Arguments; `@` stands for the demo's folder, words in braces for its settings.
    pub command: &'static str,
}

/// Both demos begin with it.
pub(in crate::cli) const SOURCE: Step = Step {
    title: "the source: streets by day, with labels",
    folder: "source",
    seconds: [3.0, 1.0],
    command: "dataset render-street --look day --seed {seed}0",
};

/// A demo on its way.
pub(in crate::cli) struct Demo<'a> {
    script: &'a Script,
    args: &'a DemoArgs,
    config: DemoConfig,
    run: RunDir,
    progress: Bar,
    /// Where the commands compute.
    device: String,
    started: Instant,
}

impl<'a> Demo<'a> {
    /// A demo in the folder of `--output`, begun or new.
    ///
    /// # Errors
    /// A folder with a demo of other settings.
    pub fn open(script: &'a Script, args: &'a DemoArgs) -> Result<Self> {
        let device = args.common.compute.apply_f32()?;
        let mut given = args.common.run.clone();
        given.recipe.get_or_insert_with(|| script.recipes[usize::from(args.fast)].into());
        let recipe = given.recipe.clone();
        let resolved = settings::resolve::<DemoConfig>("demo", &given, &json!({ "recipe": recipe }))?;
        let run = match &args.common.run.output {
            Some(output) if output.join("recipe.toml").is_file() => RunDir::open(output)?,
            output => RunDir::create(output.as_deref(), Path::new(settings::RUNS), "demo")?,
        };
        record(&run, &resolved)?;
        let progress = args.common.display.progress();
        let (config, device) = (resolved.settings, crate::base::device::name(&device));
        Ok(Self { script, args, config, run, progress, device, started: Instant::now() })
    }

    /// Runs what is not done yet, and `after` with the name of each folder that is there then.
    ///
    /// # Errors
    /// A command that failed; interruption.
    pub fn run(&self, after: impl Fn(&str) -> Result<()>) -> Result<()> {
        for (index, step) in self.script.steps.iter().enumerate() {
            self.step(index, step)?;
            after(step.folder)?;
        }
        Ok(())
    }

    /// Runs a command that was not finished yet, where it was stopped.
    fn step(&self, index: usize, step: &Step) -> Result<()> {
        let folder = self.path(step.folder);
        let done = self.path(format!("{}.done", step.folder));
        if done.is_file() {
            return Ok(());
        }
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: self.again() });
        }
        let left: f64 = self.script.steps[index..].iter().map(|step| step.seconds[usize::from(self.args.fast)]).sum();
        let left = indicatif::HumanDuration(Duration::from_secs_f64(left));
        self.progress.say(&format!("\n[{}/{}] {} (about {left} left in all)", index + 1, self.script.steps.len(), step.title));
        let mut arguments = self.arguments(step);
        let mut flags = vec!["--output".to_string(), folder.display().to_string()];
        if folder.join("recipe.toml").is_file() && TRAININGS.contains(&arguments[0].as_str()) {
            match folder.join("checkpoints").is_dir() {
                true => flags.extend(["--resume".into(), "latest".into()]),
                false => fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?,
            }
        }
        arguments.extend(flags);
        self.run.timed(step.folder, || self.call(&arguments))?;
        atomic::write(&done, b"")
    }

    fn arguments(&self, step: &Step) -> Vec<String> {
        let folder = self.run.path().display().to_string();
        let DemoConfig { recipe, start_iterations, test_scenes, seed } = &self.config;
        let values = [("{seed}", seed), ("{start}", start_iterations), ("{test}", test_scenes)];
        let fill = |word: &str| {
            let word = word.replace('@', &folder);
            values.iter().fold(word, |word, (name, value)| word.replace(name, &value.to_string()))
        };
        let mut arguments: Vec<String> = step.command.split_whitespace().map(fill).collect();
        arguments.extend(["--recipe".into(), recipe.clone()]);
        if arguments[0] != "dataset" {
            arguments.extend(["--device".into(), self.device.clone()]);
        }
        if !arguments.iter().any(|argument| argument == "--seed") {
            arguments.extend(["--seed".into(), seed.to_string()]);
        }
        arguments
    }

    /// Runs this program with other arguments and returns what it printed.
    ///
    /// # Errors
    /// What the command ended with; it has said why itself.
    pub fn call(&self, arguments: &[String]) -> Result<String> {
        self.progress.say(&format!("$ {} {}", self.script.program, arguments.join(" ")));
        let program = std::env::current_exe().map_err(|e| Error::io("the program itself", e))?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--json").stdin(Stdio::null()).stdout(Stdio::piped());
        if self.args.common.display.quiet {
            command.arg("--quiet");
        }
        if self.args.common.display.no_progress {
            command.arg("--no-progress");
        }
        if let Some(threads) = self.args.common.compute.threads {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        let failed = |e| Error::io("the program itself", e);
        let mut child = command.spawn().map_err(failed)?;
        wait_or_pass_on(&mut child).map_err(failed)?;
        let output = child.wait_with_output().map_err(failed)?;
        match output.status.code() {
            Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            _ if interrupt::requested() => Err(Error::Interrupted { resume: self.again() }),
            Some(130) => Err(Error::Interrupted { resume: self.again() }),
            code => Err(Error::environment(
                format!("`{} {}` ended with exit code {code:?}", self.script.program, arguments[0]),
                format!("see its message above, then {}", self.again()),
            )),
        }
    }

    fn again(&self) -> String {
        format!("run `{} demo --output {}` again, with the same settings", self.script.program, self.run.path().display())
    }

    /// A place in the demo's folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.run.path().join(name)
    }

    /// Describes drawn streets in `root` as a data set with all of them in one split; their labels serve scores alone.
    ///
    /// # Errors
    /// A full disk.
    pub fn describe(&self, name: &str, root: &str) -> Result<()> {
        let text = format!("extends = \"street\"\nroot = \"{root}\"\n[splits]\nval = \"images/*.png\"\n");
        atomic::write(&self.path(name), text.as_bytes())
    }

    /// The scores of a segmenter on a data set, as `evaluate --json` says them; overlays where a folder is given.
    ///
    /// # Errors
    /// What the command ended with.
    pub fn scores(&self, segmenter: &str, dataset: &str, overlays: Option<&str>) -> Result<Value> {
        let text = |name: &str| self.path(name).display().to_string();
        let mut arguments = ["evaluate", "--checkpoint", &text(segmenter), "--dataset", &text(dataset), "--device", &self.device]
            .map(String::from)
            .to_vec();
        arguments.extend(overlays.into_iter().flat_map(|folder| ["--overlays".to_string(), text(folder)]));
        parse(&self.run.timed("evaluate", || self.call(&arguments))?)
    }

    /// Writes the report of some runs side by side, `report.html`, and the result as `result.json`; shows `table` of it.
    ///
    /// # Errors
    /// What the report ended with; a full disk.
    pub fn finish(&self, runs: &[&str], mut result: Value, table: impl Fn(&Value) -> String) -> Result<()> {
        let report = self.path("report.html").display().to_string();
        let mut arguments = vec!["report".to_string()];
        arguments.extend(runs.iter().map(|name| self.path(name).display().to_string()));
        arguments.extend(["--output".into(), report.clone()]);
        self.call(&arguments)?;
        result["seconds"] = json!(self.seconds()?.round());
        result["report"] = json!(report);
        result["run"] = json!(self.run.path().display().to_string());
        atomic::write(&self.path("result.json"), format!("{result:#}\n").as_bytes())?;
        let places = format!("\n\npictures and curves: {report}\neverything:          {}", self.run.path().display());
        self.args.common.display.result(&result, || table(&result) + &places)
    }

    /// Time of all commands, over all times the demo was started.
    fn seconds(&self) -> Result<f64> {
        let path = self.path("log.jsonl");
        let log = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let seconds = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["seconds"].as_f64());
        Ok(seconds.sum::<f64>().max(self.started.elapsed().as_secs_f64()))
    }
}

/// Two columns of scores, shares (or null) in percent, and what changed from the first to the second.
pub(in crate::cli) fn compared<'a>(
    [what, before, after]: [&str; 3],
    rows: impl Iterator<Item = (&'a str, &'a Value, &'a Value)>,
) -> String {
    let row = |(name, before, after): (&str, &Value, &Value)| {
        let (before, after) = (before.as_f64(), after.as_f64());
        let change = before.zip(after).map_or_else(|| "–".into(), |(a, b)| format!("{:+.1}", 100.0 * (b - a)));
        vec![name.to_string(), terminal::percent(before), terminal::percent(after), change]
    };
    terminal::table(&[what, before, after, "change"], &rows.map(row).collect::<Vec<_>>())
}

/// Writes the settings; refuses to go on with a demo of other ones.
fn record(run: &RunDir, resolved: &Resolved<DemoConfig>) -> Result<()> {
    let path = run.path().join("recipe.toml");
    let before = fs::read_to_string(&path).ok().and_then(|text| toml::from_str::<DemoConfig>(&text).ok());
    match before {
        Some(before) if before != resolved.settings => Err(Error::Usage(format!(
            "{} is a demo with other settings\n  next: give the same ones as before, or another --output",
            run.path().display()
        ))),
        Some(_) => Ok(()),
        None => settings::record(run, resolved, &[]),
    }
}

/// Waits for a child; Ctrl-C and the like that reached only this process are passed on to it, once.
fn wait_or_pass_on(child: &mut Child) -> std::io::Result<()> {
    let mut passed_on = false;
    // What it prints is one line, so that it never waits for us to read.
    while child.try_wait()?.is_none() {
        if interrupt::requested() && !passed_on {
            passed_on = true;
            interrupt::pass_on(child.id());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text.trim())
        .map_err(|e| Error::environment(format!("the scores are no JSON: {e}"), "report this as a defect"))
}
