//! What a run folder tells, as far as it is there.

use super::metrics::{Curves, records};
use super::one_line;
use super::recipe::Recipe;
use crate::base::{Error, Result};
use crate::eval::ScoreFile;
use crate::eval::score_file;
use crate::io;
use crate::systems::datum::base;
use crate::systems::datum::generate::Shard;
use crate::systems::shared::segmenter_file;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Which command made a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `datum pretrain`
    Pretrain,
    /// `datum personalize`
    Personalize,
    /// `datum generate`
    Generate,
    /// `datum adapt`
    Adapt,
    /// `datum dataset render-street`
    RenderStreet,
    /// `clouds train`
    Train,
    /// `clouds pretrain`
    ClipPretrain,
    /// `clouds prompts`
    Prompts,
    /// `clouds refine`
    Refine,
    /// `clouds masks`
    Masks,
    /// `datum demo` or `clouds demo`
    Demo,
}

/// What `clouds pretrain` ends with, in the layout of open_clip.
const CLIP_WEIGHTS: &str = "clip/open_clip_model.safetensors";
/// What demos end with; they write their page before it.
const DEMO_RESULT: &str = "result.json";

/// One record of `log.jsonl`.
#[derive(Debug, Clone)]
pub struct StageTime {
    /// Name of the stage.
    pub stage: String,
    /// How long it took.
    pub seconds: f64,
    /// Peak memory of the process by its end.
    pub memory: Option<u64>,
    /// Seconds since 1970 at its end.
    pub end: Option<u64>,
    /// False if it failed or was interrupted.
    pub ok: bool,
}

/// A run folder.
#[derive(Debug, Clone)]
pub struct Run {
    /// The folder.
    pub path: PathBuf,
    /// What the page calls it.
    pub name: String,
    /// Which command made it; none for recipes of unknown kind.
    pub verb: Option<Verb>,
    /// Its settings.
    pub recipe: Recipe,
    /// `environment.json`; null without it.
    pub environment: Value,
    /// Stages in the order they ended.
    pub stages: Vec<StageTime>,
    /// Curves of its stages.
    pub curves: Vec<Curves>,
    /// Scores that `evaluate` left, without those of seeds.
    pub scores: Vec<ScoreFile>,
    /// Records of `manifest.jsonl`.
    pub items: Vec<Value>,
    /// The runs of `--seeds`.
    pub seeds: Vec<(u64, Run)>,
    /// Seeds that were asked for, as far as that is known.
    pub asked_seeds: usize,
    /// Images of the target that an adaptation logged.
    pub target_images: Vec<PathBuf>,
    /// What is missing or could not be read.
    pub notes: Vec<String>,
}

impl Verb {
    /// The words of the command line.
    fn words(self) -> &'static str {
        match self {
            Self::Pretrain | Self::ClipPretrain => "pretrain",
            Self::Personalize => "personalize",
            Self::Generate => "generate",
            Self::Adapt => "adapt",
            Self::RenderStreet => "dataset render-street",
            Self::Train => "train",
            Self::Prompts => "prompts",
            Self::Refine => "refine",
            Self::Masks => "masks",
            Self::Demo => "demo",
        }
    }

    /// The program and the words.
    pub fn command(self) -> String {
        let is_clouds = matches!(self, Self::Train | Self::ClipPretrain | Self::Prompts | Self::Refine | Self::Masks);
        let program = if is_clouds { "clouds" } else { "datum" };
        format!("{program} {}", self.words())
    }

    /// True if it learns in steps, which leave curves.
    pub fn is_training(self) -> bool {
        matches!(self, Self::Pretrain | Self::Personalize | Self::Adapt | Self::Train | Self::ClipPretrain)
    }

    /// Told by keys that only its recipe has.
    fn of(recipe: &Recipe) -> Option<Self> {
        let keys = [
            ("unet.steps", Self::Pretrain),
            ("instance_prompt", Self::Personalize),
            ("guidance_scale", Self::Generate),
            ("strategy", Self::Adapt),
            ("look", Self::RenderStreet),
            ("teacher.period", Self::Train),
            ("model.text_width", Self::ClipPretrain),
            ("near_duplicate", Self::Prompts),
            ("keep_unassigned", Self::Refine),
            ("automatic", Self::Masks),
            ("start_iterations", Self::Demo),
        ];
        keys.into_iter().find(|(key, _)| recipe.has(key)).map(|(_, verb)| verb)
    }
}

impl Run {
    /// Reads what is there.
    ///
    /// # Errors
    /// [`Error::Data`] for a folder without `recipe.toml`, or with one that is broken.
    pub fn read(path: &Path) -> Result<Self> {
        let of_seed = |(seed, folder): (u64, PathBuf)| Ok((seed, Self::with_seeds(&folder, Vec::new())?));
        let seeds = segmenter_file::seeds(path).into_iter().map(of_seed).collect::<Result<Vec<_>>>()?;
        Self::with_seeds(path, seeds)
    }

    fn with_seeds(path: &Path, seeds: Vec<(u64, Self)>) -> Result<Self> {
        let file = path.join("recipe.toml");
        if !file.is_file() {
            let found = match (path.is_dir(), path.exists()) {
                (true, _) => "a folder without it",
                (_, true) => "a file",
                _ => "nothing there",
            };
            let next = "name the folder of a run of `pretrain`, `personalize`, `generate` or `adapt`";
            return Err(Error::data(path, "a run folder (with recipe.toml)", found, next));
        }
        let recipe = Recipe::read(&file)?;
        let mut run = Self {
            path: path.into(),
            name: name(path),
            verb: Verb::of(&recipe),
            recipe,
            environment: Value::Null,
            stages: Vec::new(),
            curves: Vec::new(),
            scores: Vec::new(),
            items: Vec::new(),
            seeds,
            asked_seeds: 0,
            target_images: Vec::new(),
            notes: Vec::new(),
        };
        run.read_environment();
        run.read_log();
        run.read_curves();
        run.read_items();
        run.read_scores();
        Ok(run)
    }

    fn read_environment(&mut self) {
        let path = self.path.join("environment.json");
        let parse = |text: String| serde_json::from_str::<Value>(&text).map_err(|e| e.to_string());
        match io::read_text(&path).map_err(|_| "it is missing".to_string()).and_then(parse) {
            Ok(value) => self.environment = value,
            Err(reason) => self.notes.push(format!("Machine and versions: environment.json cannot be read ({reason}).")),
        }
    }

    /// Records of a file of the run; what is wrong with it becomes a note.
    fn lines(&mut self, name: &str, what: &str) -> Vec<Value> {
        match records(&self.path.join(name)) {
            Ok((found, broken)) => {
                self.count_broken(name, broken);
                found
            }
            Err(_) => {
                self.notes.push(format!("{what}: there is no readable {name}."));
                Vec::new()
            }
        }
    }

    fn count_broken(&mut self, name: &str, broken: usize) {
        if broken > 0 {
            let plural = if broken == 1 { "line that is" } else { "lines that are" };
            self.notes.push(format!("{name}: {broken} {plural} no whole record, left out."));
        }
    }

    fn read_log(&mut self) {
        let stage = |record: &Value| {
            Some(StageTime {
                stage: record.get("stage")?.as_str()?.to_string(),
                seconds: record.get("seconds")?.as_f64()?,
                memory: record.get("peak_memory_mib").and_then(Value::as_u64).map(|mib| mib << 20),
                end: record.get("time").and_then(Value::as_u64),
                ok: record.get("ok").and_then(Value::as_bool).unwrap_or(true),
            })
        };
        // With seeds, times are in their folders.
        let log = match self.seeds.is_empty() {
            true => self.lines("log.jsonl", "Time and memory"),
            false => records(&self.path.join("log.jsonl")).map(|(found, _)| found).unwrap_or_default(),
        };
        let last = |event: &str, key: &str| {
            let found = log.iter().rev().find(|record| record.get("event").and_then(Value::as_str) == Some(event));
            found.and_then(|record| record.get(key)?.as_array().cloned()).unwrap_or_default()
        };
        self.asked_seeds = last("seeds", "seeds").len();
        self.target_images = last("data", "target_images").iter().filter_map(Value::as_str).map(PathBuf::from).collect();
        if self.seeds.is_empty() {
            self.stages = log.iter().filter_map(stage).collect();
            return;
        }
        for (seed, run) in &self.seeds {
            let of_seed = |time: &StageTime| StageTime { stage: format!("{}, seed {seed}", time.stage), ..time.clone() };
            self.stages.extend(run.stages.iter().map(of_seed));
        }
    }

    fn read_curves(&mut self) {
        if !self.seeds.is_empty() || self.verb.is_some_and(|verb| !verb.is_training()) {
            return;
        }
        let files = std::fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut names: Vec<String> = files.filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| name.starts_with("metrics") && name.ends_with(".jsonl"));
        // The autoencoder (`vae`) is trained before the U-Net.
        names.sort_by(|a, b| b.cmp(a));
        for name in &names {
            match Curves::read(&self.path.join(name)) {
                Ok((curves, broken)) => {
                    self.curves.push(curves);
                    self.count_broken(name, broken);
                }
                Err(error) => self.notes.push(format!("Curves: {}", one_line(&error))),
            }
        }
        if names.is_empty() && self.verb.is_some() {
            self.notes.push("Curves: there is no metrics.jsonl; the training has not begun.".into());
        }
    }

    fn read_items(&mut self) {
        if matches!(self.verb, Some(Verb::Generate | Verb::RenderStreet)) {
            self.items = self.lines("manifest.jsonl", "Images");
        }
    }

    fn read_scores(&mut self) {
        if !matches!(self.verb, Some(Verb::Adapt | Verb::Train)) {
            return;
        }
        let (scores, broken) = ScoreFile::read_all(&self.path);
        self.notes.extend(broken.iter().map(|error| format!("Scores: {}", one_line(error))));
        let trained = std::fs::metadata(segmenter_file::locate(&self.path)).and_then(|file| file.modified());
        let trained = trained.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        for file in &scores {
            if trained.is_some_and(|trained| trained.as_secs() > file.time + 1) {
                let title = file.subject.title();
                self.notes.push(format!("Scores on {title} are older than the segmenter; evaluate again."));
            }
        }
        let any = !scores.is_empty() || self.seeds.iter().any(|(_, run)| !run.scores.is_empty());
        if !any {
            let folder = self.path.display();
            let next = format!("`datum evaluate --checkpoint {folder} --dataset DATASET` adds them");
            self.notes.push(format!("Scores, confusion matrix and overlays: there is no {}/; {next}.", score_file::FOLDER));
        }
        self.scores = scores;
    }

    /// True if the result of the run is there; of a run of unknown kind nobody knows.
    pub fn is_finished(&self) -> bool {
        let has = |name: &str| self.path.join(name).exists();
        match self.verb {
            Some(Verb::Pretrain) => has("model/model_index.json"),
            Some(Verb::Personalize) => has("model/model_index.json") || has(base::LORA_FILE),
            Some(Verb::Adapt) if !self.seeds.is_empty() => {
                self.seeds.len() >= self.asked_seeds && self.seeds.iter().all(|(_, run)| run.is_finished())
            }
            Some(Verb::Adapt | Verb::Train) => has(segmenter_file::FILE),
            Some(Verb::Generate | Verb::RenderStreet) => self.items.len() as u64 >= self.wanted_items(),
            Some(Verb::ClipPretrain) => has(CLIP_WEIGHTS),
            Some(Verb::Prompts | Verb::Refine | Verb::Masks) => self.stages.last().is_some_and(|stage| stage.ok),
            Some(Verb::Demo) => has(DEMO_RESULT) && has(super::FILE),
            None => false,
        }
    }

    /// How many images the run was asked for; a shard's share of them.
    pub fn wanted_items(&self) -> u64 {
        let count = self.recipe.count("count").unwrap_or(0);
        match self.recipe.text("shard").parse::<Shard>() {
            Ok(shard) => (count + shard.count - 1 - shard.index.min(shard.count - 1)) / shard.count,
            Err(_) => count,
        }
    }

    /// Steps done and steps asked for, by stage, of trainings.
    pub fn steps(&self) -> Vec<(String, u64, Option<u64>)> {
        let asked = |stage: &str| match (self.verb, stage) {
            (Some(Verb::Adapt), _) => self.recipe.count("iterations"),
            (Some(Verb::Train), _) => {
                let of_part = format!("{}_iterations", self.recipe.text("stage"));
                self.recipe.count("iterations").filter(|steps| *steps > 0).or_else(|| self.recipe.count(&of_part))
            }
            (_, "") => self.recipe.count("steps"),
            (_, stage) => self.recipe.count(&format!("{stage}.steps")),
        };
        self.curves.iter().map(|curves| (curves.stage.clone(), curves.last, asked(&curves.stage))).collect()
    }

    /// A file or folder that the recipe names, as seen from here or from the folders above the run.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let here = PathBuf::from(name);
        let run = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let above = run.ancestors().skip(1).take(3).map(|folder| folder.join(name)).collect::<Vec<_>>();
        std::iter::once(here).chain(above).find(|path| !name.is_empty() && path.exists())
    }
}

/// The folder's own name; for `seed-N` and the like the one above it too.
fn name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.into());
    let part = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match full.parent() {
        Some(parent) if part(&full).starts_with("seed-") => format!("{}/{}", part(parent), part(&full)),
        _ => part(&full),
    }
}
