//! `datum demo`: the whole idea on drawn streets, with the commands a user would type.

use super::common::{ComputeArgs, DisplayArgs, RunArgs};
use super::recipe::Resolved;
use super::settings;
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::io::atomic;
use crate::train::run_dir::RunDir;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Show the whole idea in minutes: no data, no downloads, no GPU
#[derive(Debug, Args)]
#[command(
    after_help = "Streets by day are the labelled source, ONE street at dusk the photo of the target. The demo runs the commands\n\
                        you would type and shows them; stop it at any time, and go on with the same --output.\n\n\
                        Examples:\n  datum demo\n  datum demo --fast\n  datum demo --output runs/demo --seed 1"
)]
pub struct DemoArgs {
    /// All stages in two and a half minutes: too few pictures and steps for scores worth reading
    #[arg(long, conflicts_with = "recipe")]
    fast: bool,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    display: DisplayArgs,
}

/// What the demo decides beside the settings of its commands, which lie in the same recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DemoConfig {
    /// The recipe of all commands.
    recipe: String,
    /// Steps of the training on the source that both segmenters go on from.
    start_iterations: u64,
    /// Streets of the test.
    test_scenes: u64,
    /// Seed of everything random.
    seed: u64,
}

impl Default for DemoConfig {
    fn default() -> Self {
        Self { recipe: "demo".into(), start_iterations: 500, test_scenes: 60, seed: 0 }
    }
}

/// One command of the demo.
struct Step {
    /// What it is, for people.
    title: &'static str,
    /// The folder it makes, inside the demo's.
    folder: &'static str,
    /// Seconds on two cores (AMD EPYC), for the estimate of the time left.
    seconds: [f64; 2],
    /// Arguments; `@` stands for the demo's folder, words in braces for its settings.
    command: &'static str,
}

/// The photo of the target, inside the demo's folder.
const PHOTO: &str = "photo/images/000000.png";
/// Describes the unseen streets.
const UNSEEN: &str = "unseen.toml";
/// Pseudo-target pictures with the photo among them.
const TARGET: &str = "pseudo-target";
/// Every so many pictures of the target set are the photo.
const PHOTO_EVERY: usize = 5;

const STEPS: &[Step] = &[
    Step {
        title: "the source: streets by day, with labels",
        folder: "source",
        seconds: [3.0, 1.0],
        command: "dataset render-street --look day --seed {seed}0",
    },
    Step {
        title: "the target: ONE street at dusk, without labels",
        folder: "photo",
        seconds: [1.0, 1.0],
        command: "dataset render-street --look dusk --seed {seed}1 --count 1",
    },
    Step {
        title: "streets at dusk nobody has seen, for the test at the end",
        folder: "unseen",
        seconds: [3.0, 2.0],
        command: "dataset render-street --look dusk --seed {seed}2 --count {test}",
    },
    Step {
        title: "nano learns the look of the photo",
        folder: "personalize",
        seconds: [35.0, 15.0],
        command: "personalize @/photo/images/000000.png --base nano --class-images @/source/images",
    },
    Step {
        title: "it redraws the streets in that look",
        folder: "generate",
        seconds: [50.0, 8.0],
        command: "generate --prompts things.txt --model @/personalize --init-images @/source/images \
                  --init-style @/photo/images/000000.png",
    },
    Step {
        title: "a segmenter learns from the source",
        folder: "start",
        seconds: [200.0, 48.0],
        command: "adapt --source street=@/source --strategy source-only --iterations {start} --set learning_rate=2e-3 \
                  --set warmup=50",
    },
    Step {
        title: "it goes on with the source alone",
        folder: "source-only",
        seconds: [65.0, 22.0],
        command: "adapt --source street=@/source --strategy source-only --init @/start --validation @/unseen.toml",
    },
    Step {
        title: "or with source and pseudo-target",
        folder: "adapted",
        seconds: [140.0, 45.0],
        command: "adapt --source street=@/source --target @/pseudo-target --init @/start --set fourier=0.01 \
                  --validation @/unseen.toml",
    },
];

/// Runs the verb.
pub fn run(args: DemoArgs) -> Result<()> {
    let (device, _) = args.compute.apply()?;
    let progress = args.display.progress();
    let started = Instant::now();
    let mut given = args.run.clone();
    given.recipe.get_or_insert_with(|| if args.fast { "demo-fast".into() } else { "demo".into() });
    let recipe = given.recipe.clone();
    let resolved = settings::resolve::<DemoConfig>("demo", &given, &json!({ "recipe": recipe }))?;
    let run = match &args.run.output {
        Some(output) if output.join("recipe.toml").is_file() => RunDir::open(output)?,
        output => RunDir::create(output.as_deref(), Path::new(settings::RUNS), "demo")?,
    };
    record(&run, &resolved)?;
    let device = crate::base::device::name(&device);
    let demo = Demo { args: &args, config: &resolved.settings, folder: run.path(), progress: &progress, device, started };
    for (index, step) in STEPS.iter().enumerate() {
        demo.step(index, step, &run)?;
        match step.folder {
            "unseen" => demo.describe_unseen()?,
            "generate" => demo.pseudo_target()?,
            _ => {}
        }
    }
    demo.finish(&run)
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

struct Demo<'a> {
    args: &'a DemoArgs,
    config: &'a DemoConfig,
    folder: &'a Path,
    progress: &'a dyn Progress,
    /// Where the commands compute.
    device: String,
    started: Instant,
}

impl Demo<'_> {
    /// Runs a command that was not finished yet, where it was stopped.
    fn step(&self, index: usize, step: &Step, run: &RunDir) -> Result<()> {
        let folder = self.folder.join(step.folder);
        let done = self.folder.join(format!("{}.done", step.folder));
        if done.is_file() {
            return Ok(());
        }
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: self.again() });
        }
        let left: f64 = STEPS[index..].iter().map(|step| step.seconds[usize::from(self.args.fast)]).sum();
        let left = indicatif::HumanDuration(Duration::from_secs_f64(left));
        self.progress.say(&format!("\n[{}/{}] {} (about {left} left in all)", index + 1, STEPS.len(), step.title));
        let mut arguments = self.arguments(step);
        let mut flags = vec!["--output".to_string(), folder.display().to_string()];
        if folder.join("recipe.toml").is_file() && arguments[0] != "generate" && arguments[0] != "dataset" {
            match folder.join("checkpoints").is_dir() {
                true => flags.extend(["--resume".into(), "latest".into()]),
                false => fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?,
            }
        }
        arguments.extend(flags);
        run.timed(step.folder, || self.call(&arguments))?;
        atomic::write(&done, b"")
    }

    fn arguments(&self, step: &Step) -> Vec<String> {
        let folder = self.folder.display().to_string();
        let DemoConfig { recipe, start_iterations, test_scenes, seed } = self.config;
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
    fn call(&self, arguments: &[String]) -> Result<String> {
        self.progress.say(&format!("$ datum {}", arguments.join(" ")));
        let program = std::env::current_exe().map_err(|e| Error::io("the program itself", e))?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--json").stdin(Stdio::null()).stdout(Stdio::piped());
        if self.args.display.quiet {
            command.arg("--quiet");
        }
        if self.args.display.no_progress {
            command.arg("--no-progress");
        }
        if let Some(threads) = self.args.compute.threads {
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
                format!("`datum {}` ended with exit code {code:?}", arguments[0]),
                format!("see its message above, then {}", self.again()),
            )),
        }
    }

    fn again(&self) -> String {
        format!("run `datum demo --output {}` again, with the same settings", self.folder.display())
    }

    /// The generated pictures, with the photo as every fifth one.
    fn pseudo_target(&self) -> Result<()> {
        let (from, to) = (self.folder.join("generate/images"), self.folder.join(TARGET));
        fs::create_dir_all(&to).map_err(|e| Error::io(&to, e))?;
        let place = |from: &Path, name: String| {
            let target = to.join(name);
            if target.exists() {
                return Ok(());
            }
            fs::hard_link(from, &target).or_else(|_| fs::copy(from, &target).map(drop)).map_err(|e| Error::io(&target, e))
        };
        let pictures = crate::io::images::list(&from)?;
        for picture in &pictures {
            place(picture, picture.file_name().unwrap_or_default().to_string_lossy().into_owned())?;
        }
        (0..pictures.len() / (PHOTO_EVERY - 1)).try_for_each(|i| place(&self.folder.join(PHOTO), format!("photo_{i}.png")))
    }

    /// All unseen streets as one split: their labels serve the test and the curves alone.
    fn describe_unseen(&self) -> Result<()> {
        let text = "# All unseen streets; their labels serve the test and the curves alone.\nextends = \"street\"\nroot = \"unseen\"\n[splits]\nval = \"images/*.png\"\n";
        atomic::write(&self.folder.join(UNSEEN), text.as_bytes())
    }

    /// Scores both segmenters, shows them side by side and writes the report.
    fn finish(&self, run: &RunDir) -> Result<()> {
        let mut scores = Vec::new();
        for name in ["source-only", "adapted"] {
            let (folder, dataset) =
                (self.folder.join(name).display().to_string(), self.folder.join(UNSEEN).display().to_string());
            let overlays = self.folder.join(name).join("overlays").display().to_string();
            let command = ["evaluate", "--checkpoint", &folder, "--dataset", &dataset, "--overlays", &overlays, "--device", &self.device];
            let arguments = command.map(String::from).to_vec();
            scores.push(parse(&run.timed("evaluate", || self.call(&arguments))?)?);
        }
        let report = self.folder.join("report.html").display().to_string();
        let [before, after] = ["source-only", "adapted"].map(|name| self.folder.join(name).display().to_string());
        self.call(&["report".into(), before, after, "--output".into(), report.clone()])?;
        let result = json!({
            "source_only": scores[0],
            "adapted": scores[1],
            "seconds": self.seconds_of_all()?.round(),
            "report": report,
            "run": self.folder,
        });
        atomic::write(&self.folder.join("result.json"), format!("{result:#}\n").as_bytes())?;
        self.args.display.result(&result, || table(&result))
    }

    /// Time of all commands, over all times the demo was started.
    fn seconds_of_all(&self) -> Result<f64> {
        let path = self.folder.join("log.jsonl");
        let log = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let seconds = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["seconds"].as_f64());
        Ok(seconds.sum::<f64>().max(self.started.elapsed().as_secs_f64()))
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

/// IoU per class of both segmenters and what adaptation changed, in percent.
fn table(result: &Value) -> String {
    let percent = |value: &Value| value.as_f64().map(|value| 100.0 * value);
    let line = |name: &str, before: &Value, after: &Value| {
        let show = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.1}"));
        let change = percent(before).zip(percent(after)).map_or_else(|| "–".into(), |(a, b)| format!("{:+.1}", b - a));
        format!("{name:<16}{:>12}{:>10}{change:>10}", show(percent(before)), show(percent(after)))
    };
    let (before, after) = (&result["source_only"], &result["adapted"]);
    let classes = before["classes"].as_array().into_iter().flatten().zip(after["classes"].as_array().into_iter().flatten());
    let mut lines = vec![format!("{:<16}{:>12}{:>10}{:>10}", "IoU, %", "source-only", "adapted", "change")];
    lines.extend(classes.map(|(a, b)| line(a["name"].as_str().unwrap_or_default(), &a["iou"], &b["iou"])));
    lines.push(line("mIoU", &before["mIoU"], &after["mIoU"]));
    let text = |key: &str| result[key].as_str().unwrap_or_default();
    lines.push(format!("\npictures and curves: {}\neverything:          {}", text("report"), text("run")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_changed_and_what_is_missing() {
        let scores = |miou: f64, iou: Value| json!({ "mIoU": miou, "classes": [{ "name": "road", "iou": iou }] });
        let text = table(
            &json!({ "source_only": scores(0.25, json!(0.5)), "adapted": scores(0.375, Value::Null), "run": "runs/demo", "report": "page" }),
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["road", "50.0", "–", "–"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["mIoU", "25.0", "37.5", "+12.5"]);
        assert!(lines[4].ends_with("page") && lines[5].ends_with("runs/demo"));
    }
}
