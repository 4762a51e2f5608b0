//! Settings in layers: default < recipe < environment < `--set` < flag.
//!
//! A recipe is a TOML file with some of the settings; `extends = "NAME or FILE"` puts it on top of another one.
//! [`Layers`] collects values with their origins; [`Layers::resolve`] checks them against the settings type, which must carry
//! `#[serde(default, deny_unknown_fields)]` at every level. A `recipe.toml` written from the result is itself a recipe.

use crate::base::{Error, Result, suggest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// Environment variables `DATUM_SET_A__B=c` mean the same as `--set a.b=c`.
pub const ENVIRONMENT_PREFIX: &str = "DATUM_SET_";

/// Recipes below one another, at most.
const MAX_EXTENDS: usize = 4;

/// Values collected so far, with the origin of each. Call the methods in the order of precedence, lowest first.
#[derive(Debug, Clone)]
pub struct Layers {
    table: Table,
    /// Dotted key → origin, for all values that are not defaults.
    origins: BTreeMap<String, String>,
    shipped: &'static [(&'static str, &'static str)],
    /// A recipe may hold one table for each of these; ours is `verb`.
    verbs: &'static [&'static str],
    verb: String,
}

impl Layers {
    /// Starts from the defaults. `shipped` are recipes that live in the program, as (name, TOML).
    pub fn new(defaults: &impl Serialize, shipped: &'static [(&'static str, &'static str)]) -> Result<Self> {
        Ok(Self { table: to_table(defaults)?, origins: BTreeMap::new(), shipped, verbs: &[], verb: String::new() })
    }

    /// Recipes may serve several verbs, with a table named after each; this one takes the table of `verb`.
    pub fn for_verb(self, verb: &str, verbs: &'static [&'static str]) -> Self {
        Self { verbs, verb: verb.into(), ..self }
    }

    /// Adds a recipe: a file, or the name of a shipped one.
    ///
    /// # Errors
    /// No such recipe, text that is not TOML, recipes that extend one another in a circle.
    pub fn recipe(&mut self, recipe: &str) -> Result<()> {
        let (mut recipe, mut chain) = (recipe.to_string(), Vec::new());
        loop {
            let (origin, mut table) = self.read(&recipe)?;
            let base = take_extends(&mut table, &origin)?;
            chain.push((origin, table));
            let Some(base) = base else { break };
            if chain.len() > MAX_EXTENDS {
                let names: Vec<&str> = chain.iter().map(|(origin, _)| origin.as_str()).collect();
                let what = format!("{} extend one another in a circle, or too deep", names.join(", "));
                return Err(Error::Usage(format!("{what}\n  next: at most {MAX_EXTENDS} recipes may lie below one")));
            }
            let beside = Path::new(&recipe).with_file_name(&base);
            recipe = if beside.is_file() { beside.display().to_string() } else { base };
        }
        chain.into_iter().rev().for_each(|(origin, table)| self.merge(table, &origin));
        Ok(())
    }

    fn read(&self, recipe: &str) -> Result<(String, Table)> {
        let path = Path::new(recipe);
        let (origin, text) = match self.shipped.iter().find(|(name, _)| *name == recipe) {
            Some((name, text)) if !path.is_file() => (format!("recipe {name}"), (*text).to_string()),
            _ if path.is_file() => (format!("recipe {recipe}"), std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?),
            _ => {
                let hint = suggest::hint(recipe, &self.shipped.iter().map(|(name, _)| *name).collect::<Vec<_>>());
                return Err(Error::Usage(format!("no recipe file or shipped recipe `{recipe}`\n  next: {hint}")));
            }
        };
        let table = text.parse::<Table>().map_err(|e| {
            Error::data(path, "a recipe in TOML", e.to_string().trim().to_string(), "correct the file at that place")
        })?;
        Ok((origin, self.own_part(table)))
    }

    /// The table of our verb in a recipe for several; other recipes as they are.
    fn own_part(&self, mut table: Table) -> Table {
        if !self.verbs.iter().any(|verb| table.get(*verb).is_some_and(Value::is_table)) {
            return table;
        }
        let own = table.remove(&self.verb);
        for verb in self.verbs {
            table.remove(*verb);
        }
        if let Some(Value::Table(own)) = own {
            table.extend(own);
        }
        table
    }

    /// Adds the variables that start with [`ENVIRONMENT_PREFIX`]; pass those of the process.
    pub fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        let mut ours: Vec<(String, String)> =
            variables.into_iter().filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
        ours.sort();
        for (name, text) in ours {
            let key = name[ENVIRONMENT_PREFIX.len()..].to_lowercase().replace("__", ".");
            self.insert(&key, self.parse(&key, &text), &format!("environment {name}"))?;
        }
        Ok(())
    }

    /// Adds one `--set KEY=VALUE`. The value is TOML; what does not parse is text.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let (key, text) = assignment.split_once('=').ok_or_else(|| {
            Error::Usage(format!("`--set {assignment}` has no `=`\n  next: write `--set KEY=VALUE`, e.g. `--set seed=1`"))
        })?;
        let key = key.trim();
        self.insert(key, self.parse(key, text.trim()), "`--set`")
    }

    /// Adds the value of a flag, when it was given.
    pub fn flag(&mut self, key: &str, flag: &str, value: Option<impl Serialize>) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        let value = Value::try_from(value).map_err(|e| Error::Usage(format!("`{flag}`: {e}")))?;
        self.insert(key, value, &format!("`{flag}`"))
    }

    /// Text stays text where the setting is text; elsewhere it is read as TOML.
    fn parse(&self, key: &str, text: &str) -> Value {
        let as_text = || Value::String(text.to_string());
        let is_text = matches!(lookup(&self.table, key), Some(Value::String(_)));
        if is_text && !text.starts_with(['"', '\'']) {
            return as_text();
        }
        let parsed = format!("value = {text}").parse::<Table>().ok().filter(|table| table.len() == 1);
        parsed.and_then(|mut table| table.remove("value")).unwrap_or_else(as_text)
    }

    fn insert(&mut self, key: &str, value: Value, origin: &str) -> Result<()> {
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(Error::Usage(format!("{origin}: `{key}` is not a key\n  next: write it as `group.name`")));
        }
        let nested = key.rsplit('.').fold(value, |value, part| Value::Table(Table::from_iter([(part.to_string(), value)])));
        if let Value::Table(table) = nested {
            self.merge(table, origin);
        }
        Ok(())
    }

    fn merge(&mut self, table: Table, origin: &str) {
        merge(&mut self.table, table, "", &mut |key| {
            self.origins.insert(key, origin.to_string());
        });
    }

    /// The settings.
    ///
    /// # Errors
    /// Unknown keys (with a suggestion) and values of the wrong kind, each with where it came from.
    pub fn resolve<T: DeserializeOwned + Serialize>(self) -> Result<Resolved<T>> {
        let settings = serde_path_to_error::deserialize(Value::Table(self.table)).map_err(|error| {
            let path = error.path().to_string();
            explain(&path, error.inner().message(), &self.origins)
        })?;
        Ok(Resolved { settings, origins: self.origins })
    }
}

/// Checked settings and where each value came from.
#[derive(Debug, Clone)]
pub struct Resolved<T> {
    /// The settings.
    pub settings: T,
    origins: BTreeMap<String, String>,
}

impl<T: Serialize> Resolved<T> {
    /// Every setting as TOML, with its origin as a comment: the run folder's `recipe.toml`.
    pub fn to_toml(&self) -> Result<String> {
        let mut text = String::new();
        render(&to_table(&self.settings)?, "", &self.origins, &mut text);
        Ok(text)
    }

    /// Where the value of a dotted key came from.
    pub fn origin(&self, key: &str) -> &str {
        self.origins.get(key).map_or("default", String::as_str)
    }
}

fn to_table(value: &impl Serialize) -> Result<Table> {
    Table::try_from(value)
        .map_err(|e| Error::environment(format!("settings cannot be written as TOML: {e}"), "report this as a defect"))
}

fn take_extends(table: &mut Table, origin: &str) -> Result<Option<String>> {
    match table.remove("extends") {
        None => Ok(None),
        Some(Value::String(base)) => Ok(Some(base)),
        Some(other) => Err(Error::Usage(format!("{origin}: `extends` must be the name of a recipe in quotes, found {other}"))),
    }
}

fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((first, rest)) => lookup(table.get(first)?.as_table()?, rest),
    }
}

/// Tables are merged, everything else is replaced; `changed` hears the dotted key of each value.
fn merge(into: &mut Table, from: Table, prefix: &str, changed: &mut impl FnMut(String)) {
    for (name, value) in from {
        let key = format!("{prefix}{name}");
        match (into.get_mut(&name), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new, &format!("{key}."), changed),
            (_, Value::Table(new)) => {
                let mut table = Table::new();
                changed(key.clone());
                merge(&mut table, new, &format!("{key}."), changed);
                into.insert(name, Value::Table(table));
            }
            (_, value) => {
                changed(key);
                into.insert(name, value);
            }
        }
    }
}

/// Turns serde's message into one for people.
fn explain(path: &str, message: &str, origins: &BTreeMap<String, String>) -> Error {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = message.contains("unknown field").then(|| quoted.first().copied()).flatten();
    let key = match unknown {
        // The path ends with the unknown key, or with its parent, depending on the deserialiser.
        Some(name) if path != name && !path.ends_with(&format!(".{name}")) => {
            if path == "." {
                name.to_string()
            } else {
                format!("{path}.{name}")
            }
        }
        _ => path.to_string(),
    };
    let below = || origins.iter().find(|(other, _)| other.starts_with(&format!("{key}."))).map(|(_, origin)| origin);
    let origin = origins.get(&key).or_else(below).map_or("default", String::as_str);
    match unknown {
        Some(name) => {
            let hint = suggest::hint(name, &quoted[1..]);
            Error::Usage(format!("unknown key `{key}` ({origin})\n  next: {hint}"))
        }
        None => Error::Usage(format!("`{key}` ({origin}): {}\n  next: correct the value there", message.trim())),
    }
}

/// Values first, then sub-tables, as TOML wants it.
fn render(table: &Table, prefix: &str, origins: &BTreeMap<String, String>, text: &mut String) {
    for (name, value) in table.iter().filter(|(_, value)| !value.is_table()) {
        let origin = origins.get(&format!("{prefix}{name}")).map_or("default", String::as_str);
        text.push_str(&format!("{} = {value}  # {origin}\n", bare(name)));
    }
    for (name, value) in table {
        if let Value::Table(inner) = value {
            let path: Vec<String> = prefix.split('.').filter(|part| !part.is_empty()).chain([name.as_str()]).map(bare).collect();
            text.push_str(&format!("\n[{}]\n", path.join(".")));
            render(inner, &format!("{prefix}{name}."), origins, text);
        }
    }
}

fn bare(name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if plain { name.to_string() } else { Value::String(name.to_string()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        seed: u64,
        prompt: String,
        note: Option<String>,
        training: Training,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Training {
        steps: u64,
        learning_rate: f64,
        sizes: Vec<usize>,
        schedule: crate::train::schedule::Schedule,
    }

    impl Default for Settings {
        fn default() -> Self {
            Self { seed: 0, prompt: "a photo".into(), note: None, training: Training::default() }
        }
    }

    impl Default for Training {
        fn default() -> Self {
            Self { steps: 10, learning_rate: 1e-3, sizes: vec![1], schedule: Default::default() }
        }
    }

    const SHIPPED: &[(&str, &str)] = &[
        ("base", "seed = 7\n[training]\nsteps = 20\nlearning_rate = 1"),
        ("chain", "extends = \"base\""),
        ("circle", "extends = \"circle\""),
    ];

    fn layers() -> Layers {
        Layers::new(&Settings::default(), SHIPPED).unwrap()
    }

    #[test]
    fn each_layer_wins_over_the_ones_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.toml");
        std::fs::write(&file, "extends = \"chain\"\n[training]\nsteps = 30\nsizes = [4]\n[training.schedule]\nshape = \"poly\"")
            .unwrap();
        let file = file.display().to_string();
        let mut layers = layers();
        layers.recipe(&file).unwrap();
        layers.environment([("DATUM_SET_TRAINING__STEPS".into(), "40".into()), ("PATH".into(), "x".into())]).unwrap();
        layers.set("training.sizes=[5, 6]").unwrap();
        layers.set("prompt=123").unwrap();
        layers.set("note = a note").unwrap();
        layers.flag("training.steps", "--steps", Some(50)).unwrap();
        layers.flag("seed", "--seed", None::<u64>).unwrap();
        let resolved: Resolved<Settings> = layers.resolve().unwrap();
        let settings = &resolved.settings;
        assert_eq!((settings.seed, settings.training.steps, settings.training.learning_rate), (7, 50, 1.0));
        assert_eq!((&settings.training.sizes[..], &settings.prompt[..]), (&[5, 6][..], "123"));
        assert_eq!(settings.note.as_deref(), Some("a note"));
        let origins = ["seed", "training.steps", "training.sizes", "training.schedule.shape", "training.schedule.power"];
        let file_origin = format!("recipe {file}");
        assert_eq!(origins.map(|key| resolved.origin(key)), ["recipe base", "`--steps`", "`--set`", &file_origin, "default"]);

        // What is written is a recipe that gives the same settings.
        let text = resolved.to_toml().unwrap();
        assert!(text.contains("steps = 50  # `--steps`\n") && text.contains("\n[training.schedule]\n"), "{text}");
        let again = dir.path().join("recipe.toml");
        std::fs::write(&again, &text).unwrap();
        let mut second = self::layers();
        second.recipe(&again.display().to_string()).unwrap();
        assert_eq!(second.resolve::<Settings>().unwrap().settings, *settings);
    }

    fn message(change: impl FnOnce(&mut Layers) -> Result<()>) -> String {
        let mut layers = layers();
        let error = change(&mut layers).and_then(|()| layers.resolve::<Settings>().map(|_| ())).unwrap_err();
        assert!(matches!(error.exit_code(), 2 | 3));
        error.to_string()
    }

    #[test]
    fn errors_name_key_origin_and_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let file = |text: &str| {
            let path = dir.path().join("r.toml");
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let typo = file("[training]\nstpes = 3");
        assert_eq!(
            message(|l| l.recipe(&typo)),
            format!("unknown key `training.stpes` (recipe {typo})\n  next: did you mean `steps`?")
        );
        assert_eq!(message(|l| l.set("sed=1")), "unknown key `sed` (`--set`)\n  next: did you mean `seed`?");
        let table = file("[trainig]\nsteps = 3");
        assert!(message(|l| l.recipe(&table)).starts_with(&format!("unknown key `trainig` (recipe {table})")));
        let kind = message(|l| l.set("training.steps=many"));
        assert!(kind.starts_with("`training.steps` (`--set`): invalid type: string \"many\""), "{kind}");
        let name = message(|l| l.set("training.schedule.shape=poyl"));
        assert!(name.contains("`training.schedule.shape` (`--set`)") && name.contains("`poly`"), "{name}");
        assert!(message(|l| l.recipe("bsae")).ends_with("did you mean `base`?"));
        let syntax = file("seed = = 3");
        assert!(message(|l| l.recipe(&syntax)).contains("line 1"));
        assert!(message(|l| l.recipe("circle")).contains("recipe circle, recipe circle, "));
        assert!(message(|l| l.set("training.steps")).contains("has no `=`"));
        assert!(message(|l| l.set("training..steps=1")).contains("is not a key"));
    }
}
