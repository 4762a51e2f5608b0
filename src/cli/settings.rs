//! From flags to the settings of a verb, and from settings to a run folder.

use super::common::RunArgs;
use super::recipe::{ENVIRONMENT_PREFIX, Layers, Resolved};
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::data::Search;
use crate::io::hash;
use crate::io::hub::HubSettings;
use crate::systems::datum::base::Places;
use crate::systems::datum::report;
use crate::train::checkpoint::Resume;
use crate::train::run_dir::RunDir;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Recipes that live in the program.
const SHIPPED: &[(&str, &str)] = &[
    ("clouds-gta", include_str!("../../recipes/clouds-gta.toml")),
    ("clouds-synthia", include_str!("../../recipes/clouds-synthia.toml")),
    ("clouds-cityscapes", include_str!("../../recipes/clouds-cityscapes.toml")),
    ("clouds-nano", include_str!("../../recipes/clouds-nano.toml")),
    ("clouds-demo", include_str!("../../recipes/clouds-demo.toml")),
    ("clouds-demo-fast", include_str!("../../recipes/clouds-demo-fast.toml")),
    ("clouds-camvid", include_str!("../../recipes/clouds-camvid.toml")),
    ("clouds-nano-clip", include_str!("../../recipes/clouds-nano-clip.toml")),
    ("clouds-nano-clip-2", include_str!("../../recipes/clouds-nano-clip-2.toml")),
    ("clouds-nano-sam", include_str!("../../recipes/clouds-nano-sam.toml")),
    ("clouds-sd2", include_str!("../../recipes/clouds-sd2.toml")),
    ("camvid-dusk", include_str!("../../recipes/camvid-dusk.toml")),
    ("nano-things", include_str!("../../recipes/nano-things.toml")),
    ("nano-things-2", include_str!("../../recipes/nano-things-2.toml")),
    ("nano", include_str!("../../recipes/nano.toml")),
    ("demo", include_str!("../../recipes/demo.toml")),
    ("demo-fast", include_str!("../../recipes/demo-fast.toml")),
    ("lora-rank-4", include_str!("../../lora/rank-4.toml")),
    ("lora-rank-16", include_str!("../../lora/rank-16.toml")),
];

/// Verbs with a table of their own in recipes.
const VERBS: &[&str] = &[
    "pretrain",
    "pretrain-clip",
    "pretrain-sam",
    "personalize",
    "generate",
    "adapt",
    "render-street",
    "demo",
    "prompts",
    "train",
    "refine",
    "masks",
];

/// Folder of numbered runs.
pub const RUNS: &str = "runs";

/// Settings in layers: default < recipe < environment < `--set` < flag. `flags` serialises to the flags that were given,
/// named after the settings. A recipe may hold a table for each verb; `verb` picks its own.
pub fn resolve<T>(verb: &str, run: &RunArgs, flags: &impl Serialize) -> Result<Resolved<T>>
where
    T: Serialize + DeserializeOwned + Default,
{
    resolve_over(None, verb, run, flags)
}

/// Like [`resolve`] with a recipe `base` between the defaults and the recipe that was asked for.
pub fn resolve_over<T>(base: Option<&str>, verb: &str, run: &RunArgs, flags: &impl Serialize) -> Result<Resolved<T>>
where
    T: Serialize + DeserializeOwned + Default,
{
    let mut layers = Layers::new(&T::default(), SHIPPED)?.for_verb(verb, VERBS);
    for recipe in base.into_iter().chain(run.recipe.as_deref()) {
        layers.recipe(recipe)?;
    }
    layers.environment(variables(std::env::vars_os())?)?;
    for assignment in &run.set {
        layers.set(assignment)?;
    }
    let given = toml::Table::try_from(flags).map_err(|e| Error::Usage(e.to_string()))?;
    for (key, value) in given {
        layers.flag(&key, &format!("--{}", key.replace('_', "-")), Some(value))?;
    }
    layers.flag("seed", "--seed", run.seed)?;
    layers.resolve()
}

/// Those of `all` variables that are settings; the others may hold anything.
fn variables(all: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>> {
    let ours = all.filter(|(name, _)| name.as_encoded_bytes().starts_with(ENVIRONMENT_PREFIX.as_bytes()));
    let text = |(name, value): (OsString, OsString)| match (name.into_string(), value.into_string()) {
        (Ok(name), Ok(value)) => Ok((name, value)),
        (name, _) => {
            let name = name.unwrap_or_else(|name| name.to_string_lossy().into_owned());
            Err(Error::Usage(format!(
                "environment {name}: name and value must be UTF-8\n  next: correct the variable, or unset it"
            )))
        }
    };
    ours.map(text).collect()
}

/// The run folder of a verb: a new one, or with `resume` the one that goes on.
///
/// # Errors
/// A folder in use, not empty, or without a run to go on with.
pub fn run_folder(verb: &str, label: &str, run: &RunArgs, resume: Option<&Resume>) -> Result<RunDir> {
    match (resume, &run.output) {
        (None, output) => RunDir::create(output.as_deref(), Path::new(RUNS), &format!("{verb}_{label}")),
        (Some(_), Some(output)) => RunDir::open(output),
        (Some(Resume::Path(path)), None) => RunDir::open(&run_of(path)),
        (Some(Resume::Latest), None) => {
            let newest = RunDir::newest(Path::new(RUNS), verb).ok_or_else(|| {
                Error::data(
                    RUNS,
                    format!("a run of `{verb}` to resume"),
                    "none",
                    "start without `--resume`, or name its folder with `--output`",
                )
            })?;
            RunDir::open(&newest)
        }
    }
}

/// The run folder a checkpoint belongs to: two levels up from `checkpoints/step-N`, or the folder itself.
fn run_of(path: &Path) -> PathBuf {
    match path.ancestors().find(|folder| folder.join("recipe.toml").is_file()) {
        Some(folder) => folder.into(),
        None => path.into(),
    }
}

/// Does the work of a run with `recipe.toml` and `environment.json` in its folder, and `report.html` at its end. A resumed run
/// keeps the settings it has until the work accepted the new ones.
pub fn recorded<T: Serialize, R>(
    run: &RunDir,
    resolved: &Resolved<T>,
    inputs: &[&str],
    resume: Option<&Resume>,
    progress: &dyn Progress,
    work: impl FnOnce() -> Result<R>,
) -> Result<R> {
    if resume.is_none() {
        record(run, resolved, inputs)?;
    }
    let result = work();
    if resume.is_some() && matches!(result, Ok(_) | Err(Error::Interrupted { .. })) {
        record(run, resolved, inputs)?;
    }
    if result.is_ok() && run.is_written() {
        refresh_report(run.path(), progress);
    }
    result
}

/// Brings `report.html` of a run up to date. The run is worth more than its report: what goes wrong is a warning.
pub fn refresh_report(run: &Path, progress: &dyn Progress) {
    match report::refresh(run) {
        Ok(written) => progress.say(&format!("report: {}", written.path.display())),
        Err(error) => progress.warn(&format!("no report was written: {error}")),
    }
}

/// Writes `recipe.toml` and `environment.json`; `inputs` are files whose hashes are recorded.
pub fn record<T: Serialize>(run: &RunDir, resolved: &Resolved<T>, inputs: &[&str]) -> Result<()> {
    if !run.is_written() {
        return Ok(());
    }
    run.write_recipe(&resolved.to_toml()?)?;
    let hash = |path: &&str| Some((path.to_string(), hash::file(Path::new(path)).ok()?));
    run.write_environment(&inputs.iter().filter_map(hash).collect::<BTreeMap<_, _>>())
}

/// Where models are looked for.
pub fn places() -> Places {
    Places { runs: RUNS.into(), hub: HubSettings::from_variables(|name| std::env::var(name).ok()) }
}

/// Where data sets are looked up.
pub fn search() -> Search {
    Search::new(std::env::var_os("DATUM_DATASETS").map(PathBuf::from))
}

/// A short name for a run folder: the file stem of what it works on.
pub fn stem(text: &str) -> String {
    let name = text.split('=').next().unwrap_or(text);
    Path::new(name).file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::StreetSet;
    use crate::systems::clouds::config::PromptsConfig;
    use crate::systems::clouds::pretrain::config::ClipPretrainConfig;
    use crate::systems::clouds::pretrain_sam::config::SamPretrainConfig;
    use crate::systems::clouds::train::config::TrainConfig;
    use crate::systems::datum::config::{AdaptConfig, GenerateConfig, Method, PersonalizeConfig};
    use crate::systems::datum::pretrain::config::PretrainConfig;
    use serde_json::json;

    fn resolved<T: Serialize + DeserializeOwned + Default>(verb: &str, recipe: &str) -> T {
        let run = RunArgs { recipe: Some(recipe.into()), ..RunArgs::default() };
        resolve::<T>(verb, &run, &json!({})).unwrap_or_else(|e| panic!("{recipe}, {verb}: {e}")).settings
    }

    #[test]
    fn every_shipped_recipe_is_accepted_by_its_verbs() {
        for (name, text) in SHIPPED {
            for verb in toml::from_str::<toml::Table>(text).unwrap().keys() {
                match verb.as_str() {
                    "pretrain" => resolved::<PretrainConfig>(verb, name).validate().unwrap(),
                    "pretrain-clip" => {
                        let files = ClipPretrainConfig { images: "i".into(), captions: "c".into(), ..resolved(verb, name) };
                        files.validate().unwrap();
                    }
                    "pretrain-sam" => {
                        let folders = SamPretrainConfig { images: "i".into(), labels: "l".into(), ..resolved(verb, name) };
                        folders.validate().unwrap();
                    }
                    "personalize" => resolved::<PersonalizeConfig>(verb, name).validate().unwrap(),
                    "generate" => drop(resolved::<GenerateConfig>(verb, name)),
                    "adapt" => resolved::<AdaptConfig>(verb, name).validate().unwrap(),
                    "prompts" => resolved::<PromptsConfig>(verb, name).validate().unwrap(),
                    "train" => drop(resolved::<TrainConfig>(verb, name).network(19, None).unwrap()),
                    "render-street" => drop(resolved::<StreetSet>(verb, name)),
                    "demo" => drop(resolved::<crate::cli::demo::runner::DemoConfig>(verb, name)),
                    "extends" => {}
                    other => panic!("{name} has a table for `{other}`"),
                }
            }
        }
        let low_rank = resolved::<PersonalizeConfig>("personalize", "lora-rank-16");
        assert_eq!((low_rank.method, low_rank.rank), (Method::Lora, 16));
    }
}
